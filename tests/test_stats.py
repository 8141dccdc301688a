from __future__ import annotations

import json

import pytest

from autospec.stats import StepStats


# A chain of 4 of which 2 are kept reaches positions 0, 1 and 2; one of 3 kept whole reaches 0, 1 and 2; one of 2 of
# which none is kept reaches 0 only; a step that drafts nothing reaches none.
def test_step_stats_by_hand() -> None:
    stats = StepStats()
    for num_drafted, num_accepted in ((4, 2), (3, 3), (2, 0), (0, 0)):
        stats.add_step(num_drafted, num_accepted, min(num_accepted + 1, num_drafted))
    assert (stats.num_steps, stats.num_drafted, stats.num_accepted) == (4, 9, 5)
    assert stats.position_tested == [3, 2, 2]
    assert stats.position_accepted == [2, 2, 1]
    assert stats.position_acceptance == pytest.approx((2 / 3, 1.0, 0.5))
    assert stats.acceptance_rate == pytest.approx(5 / 9)
    assert stats.tokens_per_step == pytest.approx(9 / 4)


def test_stats_of_no_step() -> None:
    stats = StepStats()
    assert (stats.tokens_per_step, stats.acceptance_rate, stats.position_acceptance) == (1.0, 0.0, ())


def test_plain_steps_emit_one_token_each() -> None:
    stats = StepStats()
    for _ in range(5):
        stats.add_step(0, 0, 0)
    assert stats.tokens_per_step == 1.0


def test_merged_stats_equal_stats_counted_in_one_go() -> None:
    first, second, together = StepStats(), StepStats(), StepStats()
    for part, steps in ((first, [(1, 1)]), (second, [(4, 2), (2, 0)])):
        for step in steps:
            part.add_step(*step, min(step[1] + 1, step[0]))
            together.add_step(*step, min(step[1] + 1, step[0]))
    first.total_seconds, second.total_seconds, together.total_seconds = 1.5, 2.0, 3.5
    first.num_new_tokens, second.num_new_tokens, together.num_new_tokens = 3, 5, 8
    shorter_last = StepStats.from_json(second.to_json())
    shorter_last.merge(first)
    first.merge(second)
    assert first == together
    assert shorter_last == together


def test_merging_leaves_the_other_alone() -> None:
    first, second = StepStats(), StepStats()
    second.add_step(2, 1, 2)
    first.merge(second)
    first.add_step(2, 2, 2)
    assert second.position_tested == [1, 1]


def test_stats_round_trip_through_json_text() -> None:
    stats = StepStats(num_new_tokens=7, draft_seconds=0.25)
    stats.add_step(3, 1, 2)
    assert StepStats.from_json(json.loads(json.dumps(stats.to_json()))) == stats


def test_merged_stats_hold_the_gaps_of_both() -> None:
    first, second = StepStats(gap_seconds=[0.1]), StepStats(gap_seconds=[0.2, 0.3])
    first.merge(second)
    assert (first.gap_seconds, second.gap_seconds) == ([0.1, 0.2, 0.3], [0.2, 0.3])
