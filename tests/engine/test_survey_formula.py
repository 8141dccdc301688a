"""Tokens per step through the whole engine against the closed form of Leviathan et al. (arXiv 2211.17192, eq. 1)."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from autospec.config import SpecConfig
from autospec.engine.decoder import SpeculativeDecoder
from autospec.engine.drafters import DraftPlan, Needs, Trail
from autospec.engine.tree import TokenTree, chain

VOCAB = 4


class CoinDrafter:
    """Knows a target that counts, and is right at every position with one independent probability."""

    source, has_probs, shapes, needs = "coin", False, ("chain",), Needs()

    def __init__(self, rate: float, num_positions: int) -> None:
        coins = random.Random(3)
        self._right = [coins.random() < rate for _ in range(num_positions)]

    def start(self, prompt_ids: Sequence[int], plan: DraftPlan) -> None:
        self._length = len(prompt_ids)

    def propose(self, max_length: int) -> TokenTree:
        # The token of position p is p modulo the vocabulary; a wrong one is its successor.
        places = range(self._length, self._length + max_length)
        ids = [(p if self._right[p] else p + 1) % VOCAB for p in places]
        return chain(torch.tensor(ids, dtype=torch.int64))

    def commit(self, token_ids: Sequence[int], trail: Trail | None = None) -> None:
        self._length += len(token_ids)


@pytest.mark.parametrize(("rate", "length"), [(0.5, 3), (0.8, 4)])
def test_tokens_per_step_follow_the_survey_formula(table_model: Any, rate: float, length: int) -> None:
    rows = torch.zeros((VOCAB,) * 3, dtype=torch.float64)
    for token in range(VOCAB):
        rows[:, token, (token + 1) % VOCAB] = 1.0
    target = table_model(rows)
    target.context_length = target.usable_length = 3000
    decoder = SpeculativeDecoder(target, {"coin": CoinDrafter(rate, 3000)})
    stats = decoder.generate([[0, 1]], config=SpecConfig("coin", length), max_new_tokens=2000)[0].stats
    expected = (1 - rate ** (length + 1)) / (1 - rate)
    # k tokens with probability rate^(k-1) (1 - rate), and length + 1 with all the rest.
    second = sum(k * k * rate ** (k - 1) * (1 - rate) for k in range(1, length + 1)) + (length + 1) ** 2 * rate**length
    error = math.sqrt((second - expected**2) / stats.num_steps)
    assert abs(stats.tokens_per_step - expected) < 3.5 * error
