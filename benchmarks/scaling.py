"""What grows with what: `python benchmarks/scaling.py`.

Cost of a forward against batch and context (to the length of the embedded pair, and to 8k on a small random Llama), of
a step against draft length and tree size, and the tuner's own time against the length of a study and the size of a
workload. Each with the exponent of a power law through its points and a sentence. Takes about four minutes; the study
is ended after three of them, and `--only study_length --study-seconds 1800` gives it the time for all its trials.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from common import (
    arguments,
    begin,
    growth,
    median_seconds,
    pocket_decoder,
    random_llama,
    random_text,
    say,
    write,
)
from tuner_overhead import seconds_by_trial, seconds_by_workload

from autospec import SpecConfig, SpeculativeDecoder
from autospec.clock import Clock
from autospec.engine.cache import KVCache
from autospec.engine.model import CausalLM, load_model
from autospec.engine.rows import RowTokens
from autospec.records import StepStats

CONTEXT = 256
LONG = {  # about 4 M parameters, made for contexts of 8k
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
}
VOCAB = 2048


def against_batch(target: CausalLM, sizes: list[int], repeats: int) -> dict[str, Any]:
    """Return growth of one forward with the number of rows, one token of each and five."""
    clock, text = Clock(target.device), random_text(CONTEXT, target.vocab_size)
    results = {}
    for num_new in (1, 5):
        seconds = []
        for size in sizes:
            cache = KVCache(CONTEXT + num_new, size)
            asked = [RowTokens(row, text[:num_new]) for row in range(size)]
            target.forward_rows([RowTokens(row, text, num_logits=1) for row in range(size)], cache)

            def step(cache: KVCache = cache, asked: list[RowTokens] = asked) -> None:
                target.forward_rows(asked, cache)
                for one in asked:
                    cache.crop(one.row, CONTEXT)

            seconds.append(median_seconds(step, clock, repeats))
        results[f"{num_new} new"] = growth(f"forward of {num_new} tokens a row against batch", sizes, seconds)
    return results


def against_context(target: CausalLM, name: str, contexts: list[int], repeats: int) -> dict[str, Any]:
    """Return growth with the context of forwards of one and eight tokens, and of a prefill.

    Attention makes a prefill quadratic at last; a forward of a few tokens must stay linear.
    """
    clock, text = Clock(target.device), random_text(contexts[-1], target.vocab_size)
    seconds: dict[str, list[float]] = {"1 new": [], "8 new": [], "prefill": []}
    for context in contexts:
        cache = KVCache(context)

        def prefill(cache: KVCache = cache, context: int = context) -> None:
            cache.crop(0, 0)
            target.forward(torch.tensor([text[:context]]), cache, num_logits=1)

        seconds["prefill"].append(median_seconds(prefill, clock, 1, warm_ups=1))
        for num_new in (1, 8):

            def step(cache: KVCache = cache, num_new: int = num_new, start: int = context - num_new) -> None:
                cache.crop(0, start)
                target.forward(torch.tensor([text[:num_new]]), cache)

            seconds[f"{num_new} new"].append(median_seconds(step, clock, repeats))
    return {
        key: growth(f"{name}: {key} against context", contexts, own, 2.0 if key == "prefill" else 1.0)
        for key, own in seconds.items()
    }


def against_config(
    decoder: SpeculativeDecoder, what: str, configs: dict[int, SpecConfig], num_new: int
) -> dict[str, Any]:
    """Return growth of draft, verification and acceptance of a step with a size, over what steps really drafted."""
    prompts = [random_text(CONTEXT, decoder.target.vocab_size, seed) for seed in range(3)]
    points: dict[str, list[float]] = {"drafted": [], "draft": [], "verify": [], "accept": []}
    for config in configs.values():
        total = StepStats()
        for output in decoder.generate(prompts, config=config, max_new_tokens=num_new, ignore_eos=True):
            total.merge(output.stats)
        points["drafted"].append(total.num_drafted / total.num_steps)
        for phase in ("draft", "verify", "accept"):
            points[phase].append(getattr(total, f"{phase}_seconds") / total.num_steps)
    drafted = points.pop("drafted")
    document: dict[str, Any] = {
        "configs": [config.to_json() for config in configs.values()],
        "drafted_a_step": drafted,
    }
    for phase, seconds in points.items():
        document[phase] = growth(f"{phase} against {what}", drafted, seconds)
    return document


def against_study(num_trials: int, space: str, most_seconds: float) -> dict[str, Any]:
    """Return growth of the tuner's time for one trial with the number of trials before it."""
    trials, num_proposals = seconds_by_trial(num_trials, space, most_seconds)
    seconds = np.array(trials)
    edges = np.linspace(0, len(seconds), 11).astype(int)
    windows = [(low, high) for low, high in pairwise(edges) if high > low]
    middles = [float(low + high + 1) / 2 for low, high in windows]
    document = growth(
        f"the tuner's own time for a trial against trials ({space})",
        middles,
        [float(np.median(seconds[low:high])) for low, high in windows],
    )
    say(f"{len(seconds)} trials of {num_proposals} proposals: {seconds.sum():.1f} s of the tuner's own time")
    return document | {
        "space": space,
        "num_trials": len(seconds),
        "num_proposals": num_proposals,
        "total_seconds": float(seconds.sum()),
    }


def against_workload(decoder: SpeculativeDecoder, sizes: list[int]) -> dict[str, Any]:
    """Return growth of reading, splitting, hashing, rendering and planning with the number of prompts."""
    runs = [[seconds_by_workload(size, decoder) for _ in range(3)] for size in sizes]
    return {
        what: growth(f"{what} against prompts", sizes, [statistics.median(run[what] for run in of) for of in runs])
        for what in runs[0][0]
    }


def chains(lengths: list[int]) -> dict[int, SpecConfig]:
    """Return chains of the small model that never stop."""
    return {length: SpecConfig("draft", length) for length in lengths}


def trees(sizes: list[int]) -> dict[int, SpecConfig]:
    """Return best-first trees of the small model by nodes."""
    return {size: SpecConfig("draft", 8, tree_shape="best_first", tree_width=4, tree_nodes=size) for size in sizes}


def parts(decoder: SpeculativeDecoder, options: argparse.Namespace) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return what is measured, by name."""
    short, repeats = options.quick, 3 if options.quick else 15
    contexts = [128, 256, 512, 1000]
    long_contexts = [256, 512, 1024] if short else [256, 512, 1024, 2048, 4096, 8000]
    long = load_model(random_llama("cpu", torch.float32, VOCAB, **LONG))
    return {
        "batch": lambda: against_batch(decoder.target, [1, 2, 4] if short else [1, 2, 4, 8, 16], repeats),
        "context": lambda: against_context(decoder.target, "embedded target", contexts, repeats),
        "long_context": lambda: against_context(long, "random Llama", long_contexts, repeats),
        "draft_length": lambda: against_config(
            decoder, "draft length", chains([1, 4, 16] if short else [1, 2, 4, 8, 16, 32, 64]), 16 if short else 120
        ),
        "tree_size": lambda: against_config(
            decoder, "nodes of a tree", trees([4, 16, 64] if short else [4, 8, 16, 32, 64, 128]), 16 if short else 60
        ),
        "study_length": lambda: against_study(options.trials, options.space, options.study_seconds),
        "workload_size": lambda: against_workload(decoder, [100, 200, 400] if short else [1250, 2500, 5000, 10_000]),
    }


def main() -> None:
    """Measure and write."""
    parser = arguments(__doc__, "scaling")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--trials", type=int, default=1000, help="of the study in which nothing is measured")
    parser.add_argument("--only", nargs="+", help="some of the parts, by their names in the JSON")
    parser.add_argument("--study-seconds", type=float, default=180.0, help="most seconds of it, trials or not")
    parser.add_argument("--space", default="full", help="search space of that study")
    options = parser.parse_args()
    document = begin(options)
    decoder = pocket_decoder()
    chosen = parts(decoder, options)
    if unknown := set(options.only or ()) - set(chosen):
        parser.error(f"--only must name some of {list(chosen)}, but got {sorted(unknown)}")
    for name in options.only or chosen:
        started = Clock("cpu").now()
        document[name] = chosen[name]()
        say(f"{name}: {Clock('cpu').now() - started:.0f} s")
        write(document, options.out)


if __name__ == "__main__":
    main()
