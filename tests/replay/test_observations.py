"""Acceptance by rank and token by token, against numbers worked out by hand and against what a replay counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from autospec.config import SamplingParams, SpecConfig
from autospec.errors import ReplayError, ReplayMiss
from autospec.replay import Simulator, Trace, TracePrompt, acceptance_rows, rank_acceptance
from autospec.replay.forest import DraftForest, Rows
from autospec.replay.observations import match_lengths


def hand_made() -> Trace:
    """One prompt, 1 2, and the output 9 8 5 8: the drafter's second candidate, its first, and none of them."""
    probs = np.array([[0.6, 0.4], [0.9, 0.1], [0.7, 0.3]], dtype=np.float32)
    rows = Rows(
        np.array([[7, 8], [5, 6], [4, 3]], dtype=np.int32),
        np.log(probs),
        np.array([0.1, 0.2, 0.3], dtype=np.float32),
    )
    text = np.array([1, 2, 9, 8, 5, 8], dtype=np.int32)
    forest = DraftForest.of_positions(rows, np.full(3, 99, dtype=np.int32))
    forest.join_text(np.array([8, 5, 8], dtype=np.int32), np.array([True, True, False]))
    top = np.zeros((len(text), 2), dtype=np.int32)
    prompts = (TracePrompt("a", "x", 0, 2, 4),)
    return Trace("t", SamplingParams(), prompts, text, top, top.astype(np.float32), (0,), {"d": "m"}, {"d": forest})


def test_ranks_are_counted_at_every_position() -> None:
    np.testing.assert_allclose(rank_acceptance(hand_made(), "d"), [1 / 3, 1 / 3])


def test_positions_beyond_the_drafters_room_do_not_count() -> None:
    # At the last of the three positions it drafts nothing.
    trace = hand_made()
    trace.forests["d"].caps[2] = 0
    np.testing.assert_allclose(rank_acceptance(trace, "d"), [1 / 2, 1 / 2])


def test_rows_hold_what_the_chains_show() -> None:
    rows = acceptance_rows(hand_made(), "d")
    # Three tokens are to be written behind the first position, so a draft of two can be used; then of one. Behind 7,
    # which the target does not write, nothing was recorded.
    assert rows.position.tolist() == [1, 1]
    np.testing.assert_allclose(rows.log_prob, np.log([0.6, 0.9]), rtol=1e-6)
    np.testing.assert_allclose(rows.gap, np.log([0.6 / 0.4, 9.0]), rtol=1e-6)
    np.testing.assert_allclose(rows.entropy, [0.1, 0.2], rtol=1e-6)
    assert rows.is_accepted.tolist() == [False, True]
    assert rows.is_reached.all()
    assert np.isnan(rows.match_length).all()


@pytest.mark.parametrize("drafter", ["draft", "ngram", "suffix"])
def test_rows_count_what_a_replay_accepts(trace: Trace, drafter: str) -> None:
    rows = acceptance_rows(trace, drafter)
    replay = Simulator(trace).replay(SpecConfig(drafter, 8 if drafter == "draft" else 16))
    first = trace.num_positions if drafter == "draft" else 0
    assert rows.num_rows > first
    # A step stands at some of the positions; there the rows of the chain are the step's tokens.
    num_positions = int((rows.position == 1).sum())
    assert rows.is_accepted.sum() >= replay.accepted.sum()
    assert num_positions >= len(replay.nodes[replay.nodes > 0])
    assert not np.any(rows.is_accepted & ~rows.is_reached)
    assert np.isfinite(rows.log_prob).all() == (drafter == "draft")


def test_first_tokens_are_accepted_as_often_as_the_first_rank(trace: Trace) -> None:
    rows, ranks = acceptance_rows(trace, "draft"), rank_acceptance(trace, "draft")
    firsts = rows.is_accepted[rows.position == 1]
    # The last position of an output has no room for a draft, so the rows lack it.
    assert abs(firsts.sum() - ranks[0] * trace.num_positions) <= len(trace.prompts)
    assert ranks.shape == (trace.forests["draft"].width,)
    assert 0.3 < ranks[0] < ranks.sum() <= 1.0


def test_a_match_is_the_longest_ending_that_occurred_before() -> None:
    # Behind 1 2 9 nothing has occurred before; behind 8, 5 neither.
    assert match_lengths(hand_made()).tolist() == [0, 0, 0]
    text = np.array([3, 1, 3, 1, 3, 2], dtype=np.int32)
    # Behind 3 1 3: 3 occurred. Behind 3 1 3 1: 3 1 did. Behind 3 1 3 1 3: 3 1 3, which overlaps itself.
    assert match_lengths(replace(hand_made(), text=text)).tolist() == [1, 2, 3]


def test_the_default_exit_is_a_half_of_the_layers_whatever_was_recorded_first(trace: Trace) -> None:
    assert trace.key_of("early_exit") == "early_exit@6"  # of 12 layers; 2 was recorded before
    assert trace.key_of("early_exit", 2) == "early_exit@2"
    assert rank_acceptance(trace, "early_exit@2")[0] < rank_acceptance(trace, "early_exit")[0]
    with pytest.raises(ReplayMiss, match="`exit_layer` of 'early_exit' must be one that was recorded"):
        trace.key_of("early_exit", 4)


@pytest.mark.parametrize("ask", [rank_acceptance, acceptance_rows])
def test_a_drafter_that_was_not_recorded_is_refused(ask: object) -> None:
    assert callable(ask)
    with pytest.raises(ReplayError, match="must be recorded"):
        ask(hand_made(), "other")
