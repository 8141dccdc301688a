"""The table of drafters and rules that every contract check runs over, and table models.

A table model is a causal language model of a few tokens whose next-token probabilities are written down.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from autospec.config import ACCEPT_RULES, STOP_RULES, SamplingParams, SpecConfig
from autospec.engine.cache import KVCache
from autospec.engine.drafters import Drafter, NgramDrafter, SmallModelDrafter

VOCAB = 3
ORDER = 2  # a row depends on the last two tokens


class TableLM:
    """What the engine asks of a `CausalLM`. Its keys are the tokens themselves, so it reads its text from the cache.

    Args:
        probs: [vocab, vocab, vocab] the next-token row behind each pair of tokens.
    """

    revision, device, dtype = None, torch.device("cpu"), torch.float32

    def __init__(self, probs: Tensor, name: str = "table", context_length: int = 1000) -> None:
        self.logits, self.name, self.vocab_size = probs.log().float(), name, probs.shape[-1]
        self.context_length = self.usable_length = context_length
        self.eos_token_ids: frozenset[int] = frozenset()
        self.fed: list[list[int]] = []  # the tokens of every forward

    def check_length(self, num_tokens: int) -> None:
        assert num_tokens <= self.context_length

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
                text = [*past, *(new[: last + 1] if tree_mask is None else input_ids[row, tree_mask[last]].tolist())]
                places.append(text[-2] * self.vocab_size + text[-1])
        cache.advance(num_new)
        logits = self.logits.view(-1, self.vocab_size)[torch.tensor(places)]
        return logits.view(len(cache.lengths), len(asked), -1)


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


# A later drafter, stopping rule or acceptance rule joins all contract checks with one line here; rules known to
# `config.py` are taken from there, and one without its line fails at collection.
DRAFTERS: dict[str, Callable[[Any], Drafter]] = {
    "small_model": lambda model: SmallModelDrafter(model, model.vocab_size),
    "ngram": lambda model: NgramDrafter(),
}
STOPPING: dict[str, dict[str, Any]] = {
    "static": {},
    "confidence": {"stop_threshold": 0.5},
    "heuristic": {"draft_length_start": 1},
}
NEEDS_PROBS = {"confidence"}


@dataclass(frozen=True)
class Case:
    """One drafter under one stopping and one acceptance rule."""

    drafter: str
    stop_rule: str
    accept_rule: str

    def __str__(self) -> str:
        return f"{self.drafter}-{self.stop_rule}-{self.accept_rule}"

    def config(self, draft_length: int) -> SpecConfig:
        rules = {"stop_rule": self.stop_rule, "accept_rule": self.accept_rule, **STOPPING[self.stop_rule]}
        return SpecConfig(drafter=self.drafter, draft_length=draft_length, **rules)

    def make_drafter(self, model: Any) -> Drafter:
        return DRAFTERS[self.drafter](model)

    @property
    def can_run(self) -> bool:
        has_probs = self.make_drafter(TableLM(make_table(0))).has_probs
        return has_probs or self.stop_rule not in NEEDS_PROBS


CASES = [case for case in (Case(*names) for names in product(DRAFTERS, STOP_RULES, ACCEPT_RULES)) if case.can_run]


# What a test may ask for: the whole table, or the part in which one of the rules has no say.
TABLES = {
    "case": CASES,
    "drafting": [case for case in CASES if case.accept_rule == ACCEPT_RULES[0]],
    "accepting": [case for case in CASES if case.stop_rule == STOP_RULES[0]],
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test over the table it asks for."""
    for name, cases in TABLES.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, cases, ids=str)


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
