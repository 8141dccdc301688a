from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest

from autospec.config import SpecConfig
from autospec.tuning.combining import Beliefs, combined
from autospec.tuning.finalists import Chosen, Finalists, choose
from autospec.tuning.pool import Pool

FIRST, SECOND, THIRD = (SpecConfig("ngram", length) for length in (4, 6, 8))
PAIR = (FIRST, SECOND)


def test_two_that_were_believed_alike_keep_half_of_their_difference() -> None:
    # both 0.3 above what was believed; prediction and measurement are as sure as each other
    beliefs = Beliefs(PAIR, np.zeros(2), np.eye(2) * 0.01)
    assert beliefs.updated(np.array([0.4, 0.2]), np.full(2, 0.01)) == pytest.approx([0.35, 0.25])
    # three times as sure of the measurements: weight 3 / 4
    assert beliefs.updated(np.array([0.4, 0.2]), np.full(2, 0.01 / 3)) == pytest.approx([0.375, 0.225])


def test_what_is_off_for_both_says_nothing_of_their_difference() -> None:
    beliefs = Beliefs(PAIR, np.array([0.1, 0.0]), np.full((2, 2), 0.01))
    assert beliefs.updated(np.array([0.2, 0.4]), np.full(2, 0.01)) == pytest.approx([0.35, 0.25])


def test_what_is_measured_better_counts_more_in_what_all_have_in_common() -> None:
    # known exactly beforehand to be alike: the mean of the two, one with four times the weight
    beliefs = Beliefs(PAIR, np.zeros(2), np.zeros((2, 2)))
    assert beliefs.updated(np.array([0.5, 0.0]), np.array([0.01, 0.04])) == pytest.approx([0.4, 0.4])


def measured(prompts: Sequence[object], values: dict[SpecConfig, list[float]]) -> Pool:
    pool = Pool()
    for config, own in values.items():
        for prompt, value in zip(prompts, own, strict=True):
            pool._ratios[config][prompt.prompt_id].append(value)  # type: ignore[attr-defined]
    return pool


@pytest.fixture
def prompts(fakes: SimpleNamespace) -> Sequence[object]:
    return fakes.make_workload(("one",), 8).tune[:8]


NOISE = np.array([0.05, -0.05, 0.04, -0.04, 0.05, -0.05, 0.04, -0.04])


def test_a_lucky_lead_over_what_is_predicted_better_is_not_followed(prompts: Sequence[object]) -> None:
    lucky = {FIRST: list(0.50 + NOISE), SECOND: list(0.51 - NOISE)}
    pool, finalists = measured(prompts, lucky), Finalists(PAIR, {})
    assert choose(finalists, pool, prompts, ()) == Chosen(SECOND)  # type: ignore[arg-type]
    beliefs = Beliefs(PAIR, np.array([0.45, 0.42]), np.eye(2) * 1e-4)
    assert choose(finalists, pool, prompts, (), beliefs) == Chosen(FIRST)  # type: ignore[arg-type]
    found = combined(beliefs, pool, PAIR, prompts)  # type: ignore[arg-type]
    assert -0.03 < found[SECOND] - found[FIRST] < 0.0
    assert sum(found.values()) == pytest.approx(1.01, abs=1e-6)


def test_a_lead_far_beyond_noise_is_followed_whatever_was_predicted(prompts: Sequence[object]) -> None:
    clear = {FIRST: list(0.30 + NOISE / 10), SECOND: list(0.60 - NOISE / 10)}
    beliefs = Beliefs(PAIR, np.array([0.45, 0.42]), np.eye(2) * 1e-4)
    chosen = choose(Finalists(PAIR, {}), measured(prompts, clear), prompts, (), beliefs)  # type: ignore[arg-type]
    assert chosen == Chosen(SECOND)


def test_what_nobody_predicted_has_its_mean(prompts: Sequence[object]) -> None:
    values = {FIRST: list(0.50 + NOISE), SECOND: list(0.51 - NOISE), THIRD: [0.7] * 8}
    pool = measured(prompts, values)
    beliefs = Beliefs(PAIR, np.array([0.45, 0.42]), np.eye(2) * 1e-4)
    assert combined(beliefs, pool, (*PAIR, THIRD), prompts)[THIRD] == pytest.approx(0.7)  # type: ignore[arg-type]
    alone = combined(beliefs, pool, (FIRST, THIRD), prompts)  # type: ignore[arg-type]
    assert alone == pytest.approx({FIRST: 0.5, THIRD: 0.7})
    assert combined(Beliefs(), Pool(), PAIR, prompts) == {}  # type: ignore[arg-type]
