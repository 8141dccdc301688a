from __future__ import annotations

from types import SimpleNamespace

import pytest

from autospec.config import SpecConfig
from autospec.tuning.pool import Leaderboard, Pool
from autospec.tuning.pruning import is_decided, is_hopeless

BEST, OTHER, SPECIALIST = SpecConfig("draft", 4), SpecConfig("draft", 8), SpecConfig("ngram", 10)


@pytest.fixture
def board(fakes: SimpleNamespace) -> Leaderboard:
    """Eight prompts of two categories in turn; BEST has log speedup 0.5 on all of them."""
    board = Leaderboard(Pool(), fakes.make_workload(per_category=4).tune)
    put(board, BEST, [0.5] * 8)
    board.enter(BEST)
    return board


def put(board: Leaderboard, config: SpecConfig, values: list[float]) -> None:
    for prompt, value in zip(board.prompts, values, strict=False):
        board.pool._ratios[config][prompt.prompt_id].append(value)


def test_a_clearly_slower_configuration_is_decided_at_the_fourth_prompt(board: Leaderboard):
    put(board, OTHER, [0.3, 0.32, 0.28])
    assert not is_decided(board, OTHER, 0.01)
    put(board, OTHER, [])
    board.pool._ratios[OTHER][board.prompts[3].prompt_id].append(0.31)
    assert is_decided(board, OTHER, 0.01)


def test_what_noise_could_explain_is_not_decided(board: Leaderboard):
    put(board, OTHER, [0.45, 0.45, 0.45, 0.45])
    # the bound is mean + 2.353 x (2 x noise / sqrt(4)): -0.05 + 2.353 x noise
    assert is_decided(board, OTHER, 0.020)
    assert not is_decided(board, OTHER, 0.022)


def test_an_uneven_deficit_is_not_decided(board: Leaderboard):
    # differences -0.4, 0.1, -0.4, 0.1: mean -0.15, t bound above 0
    put(board, OTHER, [0.1, 0.6, 0.1, 0.6])
    assert not is_decided(board, OTHER, 0.01)


def test_against_nothing_else_the_baseline_is_the_best(fakes: SimpleNamespace):
    board = Leaderboard(Pool(), fakes.make_workload(per_category=4).tune)
    put(board, OTHER, [-0.2, -0.21, -0.19, -0.2])
    assert is_decided(board, OTHER, 0.01)


def test_the_best_is_never_decided_against_itself(board: Leaderboard):
    assert not is_decided(board, BEST, 0.0)


def test_a_specialist_is_not_hopeless(board: Leaderboard):
    put(board, SPECIALIST, [0.9, -0.5, 0.9, -0.5, 0.9, -0.5])
    assert not is_hopeless(board, SPECIALIST, 0.01)
    put(board, OTHER, [0.3, -0.5, 0.3, -0.5])
    assert is_hopeless(board, OTHER, 0.01)


def test_a_category_seen_once_gives_no_verdict(board: Leaderboard):
    put(board, OTHER, [0.0, 0.0, 0.0])
    assert not is_hopeless(board, OTHER, 0.01)


def test_within_timing_noise_of_the_best_is_within_reach(board: Leaderboard):
    # two prompts a category: two standard errors are 2 x 2 x noise / sqrt(2)
    put(board, OTHER, [0.48] * 4)
    assert not is_hopeless(board, OTHER, 0.01)
    assert is_hopeless(board, OTHER, 0.005)
