"""Stopping rules by hand."""

from __future__ import annotations

import numpy as np

from autospec.config import SpecConfig
from autospec.engine.termination import Stopping, heuristic_length, stops_by_confidence


def test_confidence_stops_below_the_threshold_only() -> None:
    assert not stops_by_confidence(0.4, 0.4)
    assert stops_by_confidence(0.3999, 0.4)
    assert not stops_by_confidence(0.0, 0.0)  # a threshold of 0 never stops
    assert stops_by_confidence(0.9999, 1.0)


def test_confidence_works_over_leading_dimensions() -> None:
    probs = np.array([[0.1, 0.5], [0.9, 0.4]])
    assert stops_by_confidence(probs, 0.5).tolist() == [[True, False], [False, True]]


def test_heuristic_grows_by_two_and_shrinks_by_one() -> None:
    assert heuristic_length(4, 4, 4, cap=16) == 6
    assert heuristic_length(4, 4, 3, cap=16) == 3
    assert heuristic_length(4, 4, 0, cap=16) == 3
    assert heuristic_length(4, 2, 2, cap=16) == 6  # a shorter draft that was accepted whole


def test_heuristic_stays_between_one_and_the_cap() -> None:
    assert heuristic_length(1, 1, 0, cap=16) == 1
    assert heuristic_length(15, 15, 15, cap=16) == 16
    assert heuristic_length(16, 16, 16, cap=16) == 16
    assert heuristic_length(1, 1, 1, cap=1) == 1


def test_heuristic_learns_nothing_from_an_empty_draft() -> None:
    assert heuristic_length(5, 0, 0, cap=16) == 5


def test_heuristic_works_over_leading_dimensions() -> None:
    lengths = heuristic_length([[4, 4], [1, 9]], [[4, 4], [1, 0]], [[4, 1], [0, 0]], cap=8)
    assert lengths.tolist() == [[6, 3], [1, 9]]
    assert lengths.dtype == np.int64


def test_draft_length_follows_the_heuristic_from_its_start() -> None:
    length = Stopping(SpecConfig("draft", 8, stop_rule="heuristic", draft_length_start=3))
    seen = [length.limit]
    for num_drafted, num_accepted in ((3, 3), (5, 5), (7, 7), (8, 2), (0, 0), (7, 0)):
        length.observe(num_drafted, num_accepted)
        seen.append(length.limit)
    assert seen == [3, 5, 7, 8, 7, 7, 6]


def test_draft_length_starts_no_longer_than_its_cap() -> None:
    assert Stopping(SpecConfig("draft", 2, stop_rule="heuristic", draft_length_start=5)).limit == 2


def test_other_rules_leave_the_draft_length_alone() -> None:
    for rule in ("static", "confidence"):
        length = Stopping(SpecConfig("draft", 5, stop_rule=rule, draft_length_start=2))
        length.observe(5, 0)
        assert length.limit == 5
