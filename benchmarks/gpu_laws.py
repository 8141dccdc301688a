"""The five laws on a device, for `benchmarks/gpu.py`: random tiny models and the embedded pair, in float32.

1: greedy output equals plain decoding's. 2: the sampled distribution is the target's. 3: the seed alone decides the
ids, whatever else is in the batch. 4: the cache after a commit equals a fresh prefill. 5: a draft is a function of the
text. A first difference is excused where plain decoding was within 1e-4 of a tie. All of it operation by operation, by
captured graphs, and a part of it by compiled code.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from common import in_form, pocket_decoder, pocket_prompts

from autospec import SamplingParams, SpecConfig, SpeculativeDecoder
from autospec.engine.cache import KVCache
from autospec.engine.drafters import DraftPlan
from autospec.engine.session import Job, Session
from autospec.engine.termination import Stopping
from autospec.records import Generation

GREEDY, SAMPLED = SamplingParams(), SamplingParams(temperature=0.7, top_p=0.95, seed=11)
NUM_NEW, TIE_GAP, ACCURACY, LEAST_P = 24, 1e-4, 1e-4, 1e-5
PROMPTS = [[1, 2, 3, 4, 5, 6, 1, 2, 3], [10, 11, 12, 13, 10, 11, 12, 13, 14, 10, 11], [7, 8, 9, 7, 8]]
CONFIGS = (
    SpecConfig("draft", 4),
    SpecConfig("draft", 6, stop_rule="confidence", stop_threshold=0.3),
    SpecConfig("draft", 4, tree_shape="beam", tree_width=3, tree_nodes=8),
    SpecConfig("draft", 4, tree_shape="best_first", tree_width=3, tree_nodes=8),
    SpecConfig("ngram", 4),
    SpecConfig("suffix", 4),
    SpecConfig("recycling", 3, tree_shape="best_first", tree_width=3, tree_nodes=8),
    SpecConfig("early_exit", 3),
)
DRAWING = (SpecConfig("draft", 3, accept_rule="rejection"), SpecConfig("draft", 3, accept_rule="block"))
TOLD_TOKENS = ("draft", "ngram", "suffix")  # which are told nothing of the target but its tokens
FORMS = {"eager": 0.5, "graphs": 0.9, "compiled": 1.0}  # and by when each must be done, in parts of the time
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.4}
KINDS = {  # two that run by the lean forward, and one that runs by transformers' own
    "llama": {**TINY, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2},
    "qwen3": {**TINY, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.4},
}


@dataclass
class Ledger:
    """What was checked."""

    num_checks: int = 0
    num_tokens: int = 0
    num_excused: int = 0
    failures: list[str] = field(default_factory=list)

    def check(self, holds: bool, message: str) -> None:
        """Count a check."""
        self.num_checks += 1
        if not holds:
            self.failures.append(message)

    def compare(
        self, decoder: SpeculativeDecoder, wanted: Sequence[Generation], got: Sequence[Generation], what: Any
    ) -> None:
        """Check that outputs have the same tokens; `what` is a sentence and the sampling of the first prompt."""
        sentence, sampling = what
        for row, (one, two) in enumerate(zip(wanted, got, strict=True)):
            self.num_tokens += len(one.token_ids)
            pairs = enumerate(zip(one.token_ids, two.token_ids, strict=True))
            first = next((at for at, (left, right) in pairs if left != right), None)
            if first is None:
                self.check(True, sentence)
                continue
            own = replace(sampling, seed=sampling.seed + row)
            gap = decoder.tie_gap(one.prompt_ids, one.token_ids, first, own)
            self.num_excused += gap < TIE_GAP
            self.check(gap < TIE_GAP, f"{sentence}: token {first} of prompt {row} differs, {gap:.1e} from a tie")


def tiny_decoder(kind: str, device: str, vocab_size: int = 64, form: str = "eager") -> SpeculativeDecoder:
    """Return a random model, a noisy copy that drafts, and what looks things up; see `in_form`."""
    from transformers import AutoConfig, AutoModelForCausalLM

    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = AutoConfig.for_model(kind, vocab_size=vocab_size, max_position_embeddings=256, **special, **KINDS[kind])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        target = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
        small = copy.deepcopy(target)
        for parameter in small.parameters():
            if parameter.dim() > 1:
                parameter += 0.02 * torch.randn(parameter.shape)
    sources: dict[str, Any] = {name: name for name in ("ngram", "suffix", "recycling", "early_exit")}
    drafters = {"draft": small.to(device), **sources}
    decoder = SpeculativeDecoder.from_pretrained(target.to(device), drafters, compile=form == "compiled")
    return in_form(decoder, form)


def outputs_of(
    decoder: SpeculativeDecoder, prompts: Any, config: SpecConfig, sampling: SamplingParams, size: int = 1
) -> list[Generation]:
    """Generate without ending early."""
    how: dict[str, Any] = {"config": config, "sampling": sampling, "ignore_eos": True, "batch_size": size}
    return decoder.generate(prompts, max_new_tokens=NUM_NEW, **how)


def check_outputs(ledger: Ledger, name: str, decoder: SpeculativeDecoder, prompts: Any, config: SpecConfig) -> None:
    """Check laws 1 and 3, alone and in a batch."""
    for sampling in (GREEDY, SAMPLED):
        where = f"{name}, {config.short()}, {'greedy' if sampling.is_greedy else 'sampled'}"
        alone = outputs_of(decoder, prompts, config, sampling)
        if sampling.is_greedy or config.accept_rule == "exact":
            plain = outputs_of(decoder, prompts, SpecConfig(), sampling)
            ledger.compare(decoder, plain, alone, (f"{where}, against plain decoding", sampling))
        beside = outputs_of(decoder, prompts, config, sampling, len(prompts))
        ledger.compare(decoder, alone, beside, (f"{where}, in a batch against alone", sampling))
        last = replace(sampling, seed=sampling.seed + len(prompts) - 1)
        ledger.compare(decoder, alone[-1:], outputs_of(decoder, prompts[-1:], config, last), (f"{where}, again", last))


def check_cache(ledger: Ledger, name: str, decoder: SpeculativeDecoder, prompt: list[int], config: SpecConfig) -> None:
    """Check law 4 after every step."""
    target = decoder.target
    session = Session(target, decoder.drafters[config.drafter], Job(tuple(prompt), config, SAMPLED, 5, NUM_NEW))
    text, worst = list(prompt), 0.0
    for tokens in session.run():
        text += tokens
        length = len(text) - 1
        fresh = KVCache(length)
        target.forward(torch.tensor([text[:-1]]), fresh)
        for got, wanted in ((session.cache.keys, fresh.keys), (session.cache.values, fresh.values)):
            for layer, states in wanted.items():
                error = (got[layer][:, :, :length] - states[:, :, :length]).abs().max() / states.abs().max()
                worst = max(worst, float(error))
    ledger.check(worst < ACCURACY, f"{name}, {config.short()}: the cache is {worst:.1e} off a fresh prefill")


def check_drafts(
    ledger: Ledger, name: str, decoder: SpeculativeDecoder, prompt: list[int], config: SpecConfig
) -> None:
    """Check law 5: told at once or token by token, asked before or not, the draft is the same."""
    if config.drafter not in TOLD_TOKENS:
        return
    drafter, text = decoder.drafters[config.drafter], prompt * 2
    drafts = []
    for known, asks in ((len(text), False), (len(prompt), True), (len(prompt), False)):
        plan = DraftPlan(config, SAMPLED, 3, 4 * len(text), Stopping(config), KVCache(0))
        drafter.start(text[:known], plan)
        for token in text[known:]:
            if asks:
                drafter.propose(2)
            drafter.commit([token])
        tree = drafter.propose(config.draft_length)
        drafts.append((list(tree.tokens), list(tree.parents)))
    same = all(draft == drafts[0] for draft in drafts)
    ledger.check(same, f"{name}, {config.short()}: a draft depends on where steps began: {drafts}")


def check_distribution(ledger: Ledger, device: str, num_prompts: int) -> None:
    """Check law 2: the second and third token of many seeds, against the target's own probabilities."""
    from scipy.stats import chisquare

    vocab, prompt, target = 6, [1, 2, 3], None
    decoder = tiny_decoder("llama", device, vocab)
    target, sampling = decoder.target, SamplingParams(temperature=1.0, seed=100)
    texts = torch.cartesian_prod(*[torch.arange(vocab)] * 3)
    rows = torch.cat([torch.tensor([prompt]).expand(len(texts), -1), texts], dim=1)
    logits = target.forward(rows, KVCache(rows.shape[1], len(rows)))[:, len(prompt) - 1 : -1].float().cpu()
    chances = logits.softmax(dim=-1).gather(2, texts[..., None]).prod(dim=1)[:, 0].double()
    for config in DRAWING:
        outputs = decoder.generate(
            [prompt] * num_prompts, config=config, sampling=sampling, max_new_tokens=3, batch_size=64, ignore_eos=True
        )
        places = torch.tensor([output.token_ids for output in outputs]) @ torch.tensor([vocab * vocab, vocab, 1])
        counts = torch.bincount(places, minlength=len(texts)).double()
        order = chances.argsort(descending=True)
        groups = (chances[order].cumsum(0) * 20).long().clamp(max=19)  # of about the same probability
        seen, wanted = (torch.zeros(20).double().index_add(0, groups, one[order]) for one in (counts, chances))
        kept = wanted > 0
        p = float(chisquare(seen[kept].numpy(), (wanted[kept] / wanted.sum() * num_prompts).numpy()).pvalue)
        ledger.check(p > LEAST_P, f"{config.short()}: the sampled distribution is not the target's, p = {p:.1e}")


def pairs(form: str, device: str, is_small: bool) -> Iterator[tuple[str, SpeculativeDecoder, list[list[int]]]]:
    """Yield names, decoders and prompts."""
    for kind in list(KINDS)[: 1 if is_small or form == "compiled" else None]:
        yield f"{kind}, {form}", tiny_decoder(kind, device, form=form), PROMPTS
    if form == "compiled" or (is_small and form != "eager"):
        return
    lookups = {name: name for name in ("suffix", "recycling", "early_exit")}
    decoder = in_form(pocket_decoder(device, "float32", **lookups), form)
    prompts = pocket_prompts(decoder, "tune", 1 if is_small else 3)
    alone = SpeculativeDecoder(decoder.target, decoder.drafters)
    yield f"embedded pair, {form}", alone, prompts * (3 // len(prompts))


def configs(form: str, is_small: bool) -> Sequence[SpecConfig]:
    """Return what is checked; every shape of every model takes seconds to compile."""
    every = (*CONFIGS, *DRAWING)
    if form == "compiled":
        return every[:1]
    return every[::3] if is_small and form != "eager" else every


def laws(device: str, is_small: bool, until: float) -> dict[str, Any]:
    """Check all laws on a device; return counts, and a sentence for everything that does not hold."""
    ledger, left_out, launches = Ledger(), list[str](), dict[str, int]()
    started = time.monotonic()
    check_distribution(ledger, device, 200 if is_small else 1500)
    for form, share in FORMS.items():
        for name, decoder, prompts in pairs(form, device, is_small):
            for config in configs(form, is_small):
                if time.monotonic() > started + share * (until - started):
                    left_out.append(f"{name}, {config.short()}")
                    continue
                check_outputs(ledger, name, decoder, prompts, config)
                check_cache(ledger, name, decoder, prompts[0], config)
                check_drafts(ledger, name, decoder, prompts[0], config)
                launches[name] = decoder.target.num_launches
    for name, number in launches.items():
        if not name.startswith("gpt2") and not name.endswith("compiled"):  # a compiler is not everywhere
            ledger.check((number > 0) == name.endswith("graphs"), f"{name}: {number} launches")
    return {
        "hold": not ledger.failures,
        "num_checks": ledger.num_checks,
        "num_tokens_compared": ledger.num_tokens,
        "num_excused_by_a_tie": ledger.num_excused,
        "num_launches": launches,
        "failures": ledger.failures[:50],
        "left_out": left_out,
        "allow_tf32": torch.backends.cuda.matmul.allow_tf32,
    }
