"""The table of drafters and rules that every contract check runs over, and table models.

A table model is a causal language model of a few tokens whose next-token probabilities are written down.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.cache import KVCache
from autospec.engine.compiling import recorded
from autospec.engine.datastore import Datastore
from autospec.engine.drafters import (
    CombinedDrafter,
    DatastoreDrafter,
    Drafter,
    DraftPlan,
    LookaheadDrafter,
    NgramDrafter,
    RecyclingDrafter,
    SmallModelDrafter,
    SuffixDrafter,
)
from autospec.engine.lean.compiled import CompiledLean
from autospec.engine.model import CausalLM
from autospec.engine.rows import RowTokens
from autospec.engine.termination import Stopping
from autospec.rules import ACCEPT_RULES, STOP_RULES, TREE_SHAPES, draws_children

VOCAB = 3
ORDER = 2  # a row depends on the last two tokens


class TableLM:
    """What the engine asks of a `CausalLM`. Its keys are the tokens themselves, so it reads its text from the cache.

    Args:
        probs: [vocab, vocab, vocab] the next-token row behind each pair of tokens.
    """

    revision, device, dtype, is_launched, compiles = None, torch.device("cpu"), torch.float32, False, False

    def __init__(self, probs: Tensor, name: str = "table", context_length: int = 1000) -> None:
        self.logits, self.name, self.vocab_size = probs.log().float(), name, probs.shape[-1]
        self.context_length = self.usable_length = context_length
        self.eos_token_ids: frozenset[int] = frozenset()
        self.fed: list[list[int]] = []  # the tokens of every forward

    def check_length(self, num_tokens: int) -> None:
        assert num_tokens <= self.context_length

    def check_room(self, num_rows: int, capacity: int) -> None:
        pass

    def new_cache(self, capacity: int, num_rows: int = 1) -> KVCache:
        return KVCache(capacity, num_rows)

    def forward(
        self,
        input_ids: Tensor,
        cache: KVCache,
        *,
        num_logits: int = 0,
        tree_mask: Tensor | None = None,
        depths: Sequence[int] | None = None,
    ) -> Tensor:
        num_new = input_ids.shape[1]
        keys, _ = cache.update(input_ids[:, None, :, None], input_ids[:, None, :, None], 0)
        asked, places = range(num_new)[-num_logits:], []
        for row, length in enumerate(cache.lengths):
            past, new = keys[row, 0, max(0, length - ORDER) : length, 0].tolist(), input_ids[row].tolist()
            self.fed.append(new)
            for last in asked:
                if tree_mask is None:
                    text = [*past, *new[: last + 1]]
                else:
                    recent = keys[row, 0, : length + num_new, 0][-tree_mask.shape[1] :]
                    before = keys[row, 0, : length + num_new - tree_mask.shape[1], 0][-ORDER:].tolist()
                    text = [*before, *recent[tree_mask[last]].tolist()]
                before_last = text[-2] if len(text) > 1 else 0  # as if token 0 stood before every text
                places.append(before_last * self.vocab_size + text[-1])
        cache.advance(num_new)
        logits = self.logits.view(-1, self.vocab_size)[torch.tensor(places)]
        return logits.view(len(cache.lengths), len(asked), -1)

    def forward_rows(
        self, asked: Sequence[RowTokens], cache: KVCache, layers: Sequence[int] = ()
    ) -> list[tuple[Tensor, Tensor | None]]:
        assert not layers, "a table has no hidden states"
        return [
            (
                self.forward(
                    torch.tensor([list(one.token_ids)]),
                    cache.row(one.row),
                    num_logits=one.num_logits,
                    tree_mask=one.tree_mask,
                    depths=one.depths,
                )[0],
                None,
            )
            for one in asked
        ]

    def forward_with_hidden(
        self, input_ids: Tensor, cache: KVCache, layers: Sequence[int], **tree: Any
    ) -> tuple[Tensor, Tensor]:
        assert not layers, "a table has no hidden states"
        logits = self.forward(input_ids, cache, **tree)
        return logits, logits[..., :0]

    def draft_chain(self, token_ids: Sequence[int], cache: KVCache, form: Any, draws: Sequence[int] = ()) -> None:
        return None


def make_table(seed: int, vocab_size: int = VOCAB) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand([vocab_size] * (ORDER + 1), generator=generator, dtype=torch.float64) ** 2 + 1e-3
    return weights / weights.sum(dim=-1, keepdim=True)


def filtered(row: Tensor, sampling: SamplingParams) -> list[float]:
    """Temperature, top-k and top-p on one row of probabilities, written independently of the engine."""
    weights = [float(p) ** (1.0 / sampling.temperature) for p in row]
    order = sorted(range(len(weights)), key=lambda token: -weights[token])
    order = order[: sampling.top_k] if sampling.top_k else order
    total, kept, reached = sum(weights[token] for token in order), [0.0] * len(weights), 0.0
    for token in order:
        if reached < sampling.top_p:
            kept[token] = weights[token] / total
            reached += kept[token]
    return [p / sum(kept) for p in kept]


def joint(
    table: Tensor, prompt: Sequence[int], num_tokens: int, sampling: SamplingParams
) -> dict[tuple[int, ...], float]:
    """The exact probability of every output of `num_tokens` tokens."""
    rows = {pair: filtered(table[pair], sampling) for pair in product(range(table.shape[-1]), repeat=ORDER)}
    law: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(num_tokens):
        law = {
            (*text, token): weight * p
            for text, weight in law.items()
            for token, p in enumerate(rows[tuple([*prompt, *text][-ORDER:])])  # type: ignore[index]
        }
    return law


def p_value(counts: Counter[tuple[int, ...]], law: dict[tuple[int, ...], float]) -> float:
    """Chi-square test that outputs follow a law; 0 where one was seen that cannot be."""
    total = sum(counts.values())
    if any(law[text] == 0.0 for text in counts):
        return 0.0
    cells = sorted((weight * total, counts[text]) for text, weight in law.items() if weight > 0.0)
    rare = [cell for cell in cells if cell[0] < 5.0]
    common = cells[len(rare) :]
    if sum(weight for weight, _ in rare) > 0.0:
        common.append((sum(weight for weight, _ in rare), sum(count for _, count in rare)))
    expected, observed = zip(*common, strict=True)
    return float(chisquare(observed, expected).pvalue)


BEGINNINGS = ((1, 2, 3, 4, 5, 6, 1, 2, 3), (10, 11, 12, 13, 10, 11, 12, 13, 14, 10, 11))  # of texts of the laws
ROLLOUT_LENGTH = 16
_ROLLOUTS: WeakKeyDictionary[Any, list[list[int]]] = WeakKeyDictionary()


def rollouts(model: Any) -> list[list[int]]:
    """What a model makes of every token and of a few longer beginnings: texts for drafters that look things up."""
    if model not in _ROLLOUTS:
        starts = [torch.arange(model.vocab_size)[:, None]]
        starts += [torch.tensor([beginning]) % model.vocab_size for beginning in BEGINNINGS]
        _ROLLOUTS[model] = [text for start in starts for text in continued(model, start)]
    return _ROLLOUTS[model]


def continued(model: Any, start: Tensor) -> list[list[int]]:
    cache, rows = KVCache(start.shape[1] + ROLLOUT_LENGTH, len(start)), [start]
    for _ in range(ROLLOUT_LENGTH):
        rows.append(model.forward(rows[-1], cache, num_logits=1).argmax(dim=-1))
    texts: list[list[int]] = torch.cat(rows, dim=1).tolist()
    return texts


def retrieval_and_model(model: Any) -> dict[str, Drafter]:
    return {"ngram": NgramDrafter(), "small_model": SmallModelDrafter(model, model.vocab_size)}


# A later drafter, stopping rule or acceptance rule joins all contract checks with one line here; rules known to
# `config.py` are taken from there, and one without its line fails at collection.
DRAFTERS: dict[str, Callable[[Any], Drafter]] = {
    "small_model": lambda model: SmallModelDrafter(model, model.vocab_size),
    "ngram": lambda model: NgramDrafter(),
    "suffix": lambda model: SuffixDrafter(rollouts(model)),
    "recycling": lambda model: RecyclingDrafter(),
    "datastore": lambda model: DatastoreDrafter(Datastore.of(rollouts(model))),
    "lookahead": lambda model: LookaheadDrafter(model),
    "fallback": lambda model: CombinedDrafter(retrieval_and_model(model), "fallback"),
    "merge": lambda model: CombinedDrafter(retrieval_and_model(model), "merge"),
}
OF_THE_TARGET = {"lookahead"}  # made of the target itself, not of something that drafts like it
KNOBS: dict[str, dict[str, Any]] = {"lookahead": {"lookahead_window": 4, "lookahead_ngram": 4}}  # of short texts
STOPPING: dict[str, dict[str, Any]] = {
    "static": {},
    "confidence": {"stop_threshold": 0.5},
    "entropy": {"stop_threshold": 0.9},
    "cumulative": {"stop_threshold": 0.02},
    "adaptive": {"stop_threshold": 0.5},
    "heuristic": {"draft_length_start": 1},
    "cost_aware": {},
}
ACCEPTING: dict[str, dict[str, Any]] = {  # every lossless rule, and what else it can do
    "exact": {},
    "rejection": {},
    "block": {},
    "coupled": {},
    "multi_candidate": {},
    "multi_candidate_replaced": {"accept_rule": "multi_candidate", "with_replacement": True},
    "traversal": {},
    "traversal_replaced": {"accept_rule": "traversal", "with_replacement": True},
}
SHAPES: dict[str, dict[str, Any]] = {
    "chain": {},
    "static": {"tree_paths": ((0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 1, 0), (0, 0, 0, 0))},
    "optimal": {"tree_paths": ((0,), (1,), (2,), (0, 0), (1, 0), (0, 0, 1))},
    "beam": {"tree_width": 2, "tree_nodes": 7},
    "best_first": {"tree_width": 3, "tree_nodes": 6},
    "trie": {"tree_width": 3, "tree_nodes": 6},
}
NO_PROBS_NEEDED = {"static", "heuristic"}


def draft_plan(config: SpecConfig, sampling: SamplingParams, seed: int = 0, capacity: int = 1000) -> DraftPlan:
    """What a drafter is started with."""
    return DraftPlan(config, sampling, seed, capacity, Stopping(config), KVCache(capacity))


@dataclass(frozen=True)
class Case:
    """One drafter and shape under one stopping and one acceptance rule."""

    drafter: str
    shape: str
    stop_rule: str
    accept_rule: str

    def __str__(self) -> str:
        return f"{self.drafter}-{self.shape}-{self.stop_rule}-{self.accept_rule}"

    def config(self, draft_length: int) -> SpecConfig:
        rules = {"stop_rule": self.stop_rule, **STOPPING[self.stop_rule], **self.acceptance}
        shape = {"tree_shape": self.shape, **SHAPES[self.shape]}
        if "tree_paths" in shape:
            shape["tree_paths"] = tuple(path for path in shape["tree_paths"] if len(path) <= draft_length)
        knobs = KNOBS.get(self.drafter, {})
        return SpecConfig(drafter=self.drafter, draft_length=draft_length, **rules, **shape, **knobs)

    @property
    def acceptance(self) -> dict[str, Any]:
        return {"accept_rule": self.accept_rule, **ACCEPTING[self.accept_rule]}

    def make_drafter(self, small: Any, target: Any) -> Drafter:
        return DRAFTERS[self.drafter](target if self.drafter in OF_THE_TARGET else small)

    @property
    def can_run(self) -> bool:
        drafter = self.make_drafter(TableLM(make_table(0)), TableLM(make_table(0)))
        fits = self.stop_rule in TREE_SHAPES[self.shape].stop_rules and self.shape in drafter.shapes
        rule = self.acceptance["accept_rule"]
        serves = self.shape in ACCEPT_RULES[rule].shapes
        if "with_replacement" in self.acceptance:  # elsewhere it is the same as without
            serves = self.shape != "chain" and draws_children(rule, self.shape)
        return fits and serves and (drafter.has_probs or self.stop_rule in NO_PROBS_NEEDED)


# Acceptance rules that have a say in what is drafted, and one that has not.
DRAFTING = ("exact", "coupled", "multi_candidate", "multi_candidate_replaced")
assert {name for name, facts in ACCEPT_RULES.items() if facts.is_lossless} <= set(ACCEPTING)
CASES = [case for case in (Case(*names) for names in product(DRAFTERS, SHAPES, STOP_RULES, ACCEPTING)) if case.can_run]


def names_of(case: Case) -> set[tuple[str, ...]]:
    """Every name in a case."""
    return {(f"{key}={value}",) for key, value in vars(case).items()}


def pairs_of(case: Case) -> set[tuple[str, ...]]:
    """Every pair of names that meet in a case."""
    return {(*one, *other) for one in names_of(case) for other in names_of(case) if one < other}


def covering(cases: Sequence[Case], facts_of: Callable[[Case], set[tuple[str, ...]]]) -> set[Case]:
    """A small part of the table that shows every fact of it; the rest is for `make test-all`."""
    missing, kept = set[tuple[str, ...]]().union(*map(facts_of, cases)), set[Case]()
    while missing:
        best = max(cases, key=lambda case: len(facts_of(case) & missing))
        kept.add(best)
        missing -= facts_of(best)
    return kept


# What a test may ask for: the whole table, the part in which one of the rules has no say, what a drafter with
# probabilities can do (whole, and where the stopping rule has no say), and the simplest case of each drafter.
TABLES = {
    "case": CASES,
    "drafting": [case for case in CASES if case.accept_rule in DRAFTING],
    "accepting": [case for case in CASES if case.stop_rule == STOP_RULES[0]],
    "modelled": [case for case in CASES if case.drafter == "small_model"],
    "shaped": [case for case in CASES if (case.drafter, case.stop_rule) == ("small_model", STOP_RULES[0])],
    "simplest": [next(case for case in CASES if case.drafter == drafter) for drafter in DRAFTERS],
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test over the table it asks for."""
    for name, cases in TABLES.items():
        if name in metafunc.fixturenames:
            quick = covering(cases, pairs_of)
            rows = [pytest.param(case, id=str(case), marks=[pytest.mark.slow] * (case not in quick)) for case in cases]
            metafunc.parametrize(name, rows)


# What differs between architectures is the target's side, so one of them sees every pair every day, those that people
# run most every name, and the others a few cases. Tests of a distribution cost thousands of outputs: every name.
PAIRED_WORLD, NAMED_WORLDS = "llama", ("qwen3", "gpt2", "gpt_neox", "pocket", "compiled", "compiled_pocket")
NAMED = {case for cases in TABLES.values() for case in covering(cases, names_of)}
OTHERS_RUN = {
    Case("small_model", "chain", "static", "exact"),
    Case("small_model", "chain", "static", "rejection"),
    Case("small_model", "static", "static", "exact"),
    Case("small_model", "best_first", "static", "exact"),
}


@pytest.hookimpl(tryfirst=True)  # before those marked slow are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the full table on less frequent architectures to `make test-all`."""
    for item in items:
        params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        world = params.get("world", PAIRED_WORLD)
        case = params.get("case", params.get("drafting", params.get("accepting")))
        is_distribution = item.path.name == "test_distribution.py" and case is not None
        quick = NAMED if world in NAMED_WORLDS or is_distribution else OTHERS_RUN
        if (world != PAIRED_WORLD or is_distribution) and case not in quick:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def compiled_model() -> Callable[..., CausalLM]:
    """(model) -> it, by pieces of which only the operations are recorded; attention is compiled."""

    def make(model: Any) -> CausalLM:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("autospec.engine.lean.compiled.compiled_piece", recorded)
            made = CausalLM(model, "compiled", compiles=True)
        assert isinstance(made._forward, CompiledLean)
        return made

    return make


@pytest.fixture(scope="session")
def make_plan() -> Callable[..., DraftPlan]:
    return draft_plan


@pytest.fixture(scope="session")
def table() -> Callable[..., Tensor]:
    """(seed, vocab_size=3) -> random next-token probabilities."""
    return make_table


@pytest.fixture(scope="session")
def table_model() -> type[TableLM]:
    return TableLM


@pytest.fixture(scope="session")
def exact_joint() -> Callable[..., dict[tuple[int, ...], float]]:
    return joint


@pytest.fixture(scope="session")
def chi_square() -> Callable[..., float]:
    return p_value
