"""What forwards, drafts and batches cost on a device, for `benchmarks/gpu.py`: models of random weights."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from common import in_form, median_seconds, pocket_decoder, pocket_prompts, random_llama, random_text, say

from autospec import SamplingParams, SpecConfig, SpeculativeDecoder
from autospec.clock import Clock
from autospec.engine.cache import KVCache
from autospec.engine.drafters import DraftPlan
from autospec.engine.termination import Stopping

TINY = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
SHAPES: dict[str, dict[str, Any]] = {
    "1B": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    },
    "8B": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096,
    },
    "draft": {
        "vocab_size": 128256,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 4,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    },
}
GOALS = {"1B": 0.6, "8B": 0.8}
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
COPY_BYTES = 1 << 30
PROMPT_LENGTH, CONTEXT = 128, 512


def make(name: str, device: str, is_small: bool) -> Any:
    """Return a model of a shape in bfloat16, or of the tiny one.

    Raises:
        MemoryError: The device has not room for it and a packed copy of its weights.
    """
    shape = dict(TINY if is_small else SHAPES[name])
    if not is_small:
        num_weights = shape["num_hidden_layers"] * shape["hidden_size"] * (
            2.5 * shape["hidden_size"] + 3 * shape["intermediate_size"]
        ) + 2 * shape["vocab_size"] * shape["hidden_size"]  # fmt: skip
        needed, free = 4.4 * num_weights, torch.cuda.mem_get_info()[0]
        if needed > free:
            raise MemoryError(f"{name} needs about {needed / 1e9:.0f} GB, but {free / 1e9:.0f} GB are free")
    return random_llama(device, torch.bfloat16, shape.pop("vocab_size"), **shape)


def copy_bandwidth(device: str, is_small: bool) -> float:
    """Return bytes per second read and written by a large copy."""
    size = COPY_BYTES >> 6 if is_small else COPY_BYTES
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    to = torch.empty_like(source)
    return 2 * size / median_seconds(lambda: to.copy_(source), Clock(device), 20)


def _bytes_per_token(model: Any, context: float) -> float:
    """Return what one token of plain decoding must read: all weights but rows of the embeddings, and the cache."""
    config = model.config
    weights = sum(parameter.nbytes for parameter in model.parameters())
    if not config.tie_word_embeddings:
        weights -= model.get_input_embeddings().weight.nbytes
    head = config.hidden_size // config.num_attention_heads
    return weights + context * 2 * config.num_hidden_layers * config.num_key_value_heads * head * 2


def roofline(name: str, device: str, is_small: bool, until: float) -> dict[str, Any]:
    """Return tokens per second of plain decoding, ours and transformers', and the share of the copy bandwidth."""
    bandwidth, model = copy_bandwidth(device, is_small), make(name, device, is_small)
    num_new, prompt = 8 if is_small else 96, random_text(PROMPT_LENGTH, 500)
    decoder = SpeculativeDecoder.from_pretrained(model)
    own, others = _seconds_per_token(decoder, model, prompt, num_new, until)
    seconds, other = statistics.median(own), statistics.median(others)
    needed = _bytes_per_token(model, PROMPT_LENGTH + num_new / 2)
    result = {
        "num_weights": sum(parameter.numel() for parameter in model.parameters()),
        "runs_by_lean_forward": decoder.target.is_lean,
        "bytes_per_token": needed,
        "copy_bytes_per_second": bandwidth,
        "tokens_per_second": 1 / seconds,
        "seconds_per_token": own,
        "share_of_copy_bandwidth": needed / seconds / bandwidth,
        "goal_for_that": GOALS[name],
        "transformers_tokens_per_second": 1 / other,
        "transformers_seconds_per_token": others,
        "times_transformers": other / seconds,
        "goal_for_those": 2.0,
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
    }
    say(
        f"{name}: {1 / seconds:.1f} tokens/s, {result['share_of_copy_bandwidth']:.0%} of {bandwidth / 1e9:.0f} GB/s, "
        f"{other / seconds:.2f} times transformers'"
    )
    return result


def _seconds_per_token(
    decoder: SpeculativeDecoder, model: Any, prompt: list[int], num_new: int, until: float
) -> tuple[list[float], list[float]]:
    """Return runs of plain decoding without its prefill, ours and transformers', in turns."""
    clock, ids = Clock(model.device), torch.tensor([prompt], device=model.device)

    def ours() -> float:
        stats = decoder.generate([prompt], max_new_tokens=num_new + 1, ignore_eos=True)[0].stats
        return (stats.total_seconds - stats.prefill_seconds) / stats.num_steps

    def theirs(num: int) -> float:
        started = clock.now()
        with torch.inference_mode():
            model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=num, do_sample=False)
        return clock.now() - started

    ours(), theirs(2)  # warm up
    own, others = list[float](), list[float]()
    while not own or (len(own) < 5 and time.monotonic() < until):
        own.append(ours())
        others.append((theirs(num_new + 1) - theirs(1)) / num_new)
    return own, others


def verification(device: str, is_small: bool, until: float) -> dict[str, Any]:
    """Return seconds of target forwards of 1 to 128 tokens behind a context, and what they cost in plain ones."""
    decoder = SpeculativeDecoder.from_pretrained(make("1B", device, is_small))
    target, clock = decoder.target, Clock(device)
    cache = target.new_cache(CONTEXT + SIZES[-1])
    text, seconds = random_text(CONTEXT, 500), dict[int, float]()
    target.forward(torch.tensor([text]), cache, num_logits=1)
    for size in SIZES[:: 4 if is_small else 1]:
        if time.monotonic() > until and seconds:
            break

        def step(size: int = size) -> None:
            target.forward(torch.tensor([text[:size]]), cache)
            cache.crop(0, CONTEXT)

        seconds[size] = median_seconds(step, clock, 3 if is_small else 30)
    return {"context": CONTEXT, "seconds": seconds, "in_plain": {at: one / seconds[1] for at, one in seconds.items()}}


def draft_loop(device: str, is_small: bool, until: float) -> dict[str, Any]:
    """Return seconds of drafting 1 to 16 tokens, as one launch and one by one.

    Drafted by a small random model and by the embedded draft.
    """
    small, target = make("draft", device, is_small), make("1B", device, is_small)
    decoders = {
        "random draft": SpeculativeDecoder.from_pretrained(target, {"draft": small}),
        "embedded draft": pocket_decoder(device),
    }
    clock, results = Clock(device), dict[str, Any]()
    for name, decoder in decoders.items():
        for form in ("graphs", "eager"):
            seconds = _draft_seconds(in_form(decoder, form), clock, (1, 4) if is_small else (1, 2, 4, 8, 16), until)
            lengths = list(seconds)
            per_token = (seconds[lengths[-1]] - seconds[1]) / max(1, lengths[-1] - 1)
            results[f"{name}, {form}"] = {"seconds": seconds, "seconds_per_further_token": per_token}
            say(f"{name}, {form}: {1e6 * per_token:.0f} us for each further token")
    return results


def _draft_seconds(
    decoder: SpeculativeDecoder, clock: Clock, lengths: Sequence[int], until: float
) -> dict[int, float]:
    """Return what it takes to draft so many tokens behind a context; the first is always measured."""
    drafter, text, config = decoder.drafters["draft"], random_text(CONTEXT, 500), SpecConfig("draft", max(lengths))
    drafter.start(text, DraftPlan(config, SamplingParams(), 0, 2 * CONTEXT, Stopping(config), KVCache(0)))
    seconds = dict[int, float]()
    for length in lengths:
        if time.monotonic() > until and seconds:
            break
        seconds[length] = median_seconds(partial(drafter.propose, length), clock, 20)
    return seconds


def batch_sweep(device: str, is_small: bool, until: float) -> dict[str, Any]:
    """Return tokens per second by batch size: the embedded pair plain and speculating, a 1B shape plain."""
    loaded = pocket_decoder(device)
    prompts = pocket_prompts(loaded, "held_out", 4 if is_small else 32)
    pair = SpeculativeDecoder(loaded.target, loaded.drafters)
    configs = [SpecConfig(), SpecConfig("draft", 3), SpecConfig("ngram", 6, ngram_min=1, ngram_max=3)]
    results = {"embedded pair": _sweep(pair, prompts, configs, 8 if is_small else 48, until)}
    random_model = SpeculativeDecoder.from_pretrained(make("1B", device, is_small))
    texts = [random_text(PROMPT_LENGTH, 500, seed) for seed in range(len(prompts))]
    results["1B"] = _sweep(random_model, texts, [SpecConfig()], 8 if is_small else 32, until)
    return results


def _sweep(
    decoder: SpeculativeDecoder,
    prompts: Sequence[list[int]],
    configs: Sequence[SpecConfig],
    num_new: int,
    until: float,
) -> list[dict[str, Any]]:
    clock, rows = Clock(decoder.target.device), list[dict[str, Any]]()
    sizes = [size for size in (1, 2, 4, 8, 16, 32) if size <= len(prompts)]
    for size in sizes:
        for config in configs:
            if time.monotonic() > until and rows:
                continue

            def run(size: int = size, config: SpecConfig = config) -> None:
                decoder.generate(
                    prompts[:size], config=config, batch_size=size, max_new_tokens=num_new, ignore_eos=True
                )

            seconds = median_seconds(run, clock, 3, warm_ups=1)
            rows.append(
                {"batch_size": size, "config": config.to_json(), "tokens_per_second": size * num_new / seconds}
            )
            say(f"batch {size}, {config.short()}: {rows[-1]['tokens_per_second']:.0f} tokens/s")
    return rows
