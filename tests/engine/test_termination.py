"""Stopping rules by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from autospec.config import SpecConfig
from autospec.engine.calibration import AcceptanceCalibration
from autospec.engine.costs import CostCurve
from autospec.engine.termination import (
    Stopping,
    adapted_threshold,
    heuristic_length,
    next_worths,
    stops_by_confidence,
    stops_by_cost,
    stops_by_entropy,
    stops_by_path,
)
from autospec.rules import STOP_RULES


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


def test_svip_stops_above_the_root_of_the_entropy_and_adaedl_below_its_bound() -> None:
    entropies = np.array([0.0, 0.25, 1.0])  # roots 0, 0.5, 1
    assert stops_by_entropy(entropies, 0.5).tolist() == [False, False, True]
    # 1 - sqrt(0.36 * entropy): 1, 0.7, 0.4
    assert stops_by_entropy(entropies, 0.5, "adaedl", 0.36).tolist() == [False, False, True]
    assert stops_by_entropy(entropies, 0.71, "adaedl", 0.36).tolist() == [False, True, True]


def test_the_path_rule_compares_the_whole_path() -> None:
    assert stops_by_path([[0.5, 0.2]], [[0.3, 0.2]]).tolist() == [[False, False]]
    assert stops_by_path(0.19, 0.2)


def test_the_next_token_is_as_likely_as_the_last_where_chances_are_right() -> None:
    own = CostCurve(1.0, 0.05, 0.2)
    assert next_worths([0.8, 0.4], [0.8, 0.5], own).tolist() == [0.8, 0.4]  # the path's own, a bound
    known = replace(own, acceptance=AcceptanceCalibration(0.0))
    assert next_worths([0.8, 0.4], [0.8, 0.5], known).tolist() == pytest.approx([0.64, 0.2])


def test_a_token_is_drafted_while_it_pays() -> None:
    # A target forward takes 1, every draft token 0.25 more. Nothing drafted: rate 1 / 1, so a token pays above 0.25.
    costs = CostCurve(target=1.0, target_per_token=0.05, draft=0.2)
    assert costs.marginal == 0.25
    assert costs.step(2) == 1.5
    assert not stops_by_cost(0.26, 0, 1.0, costs)
    assert stops_by_cost(0.25, 0, 1.0, costs)
    # One drafted with probability 0.8: rate 1.8 / 1.25 = 1.44, so the next pays above 0.36.
    assert not stops_by_cost(0.37, 1, 1.8, costs)
    assert stops_by_cost([0.36, 0.35], [1, 1], [1.8, 1.8], costs).tolist() == [True, True]


def test_the_adaptive_threshold_rises_below_its_goal_and_falls_above() -> None:
    # 3 of 4 accepted: running 0.5 * 1 + 0.5 * 0.75 = 0.875 < 0.9, so 0.9 * 0.5 + 0.1 * 0.51 = 0.501.
    threshold, running = adapted_threshold((0.5, 1.0), 4, 3, goal=0.9, cap=8)
    assert (float(threshold), float(running)) == pytest.approx((0.501, 0.875))
    # 4 of 4: running 1, above: 0.9 * 0.5 + 0.1 * 0.49 = 0.499; unless the draft was as long as it may be.
    assert float(adapted_threshold((0.5, 1.0), 4, 4, goal=0.9, cap=8)[0]) == pytest.approx(0.499)
    assert float(adapted_threshold((0.5, 1.0), 4, 4, goal=0.9, cap=4)[0]) == pytest.approx(0.5)
    # Nothing drafted teaches nothing, and the threshold stays a probability.
    assert [float(part) for part in adapted_threshold((0.5, 0.3), 0, 0, goal=0.9, cap=4)] == [0.5, 0.3]
    assert float(adapted_threshold((1.0, 0.0), 4, 0, goal=0.9, cap=4)[0]) == 1.0
    both = adapted_threshold(([0.5, 0.5], [1.0, 1.0]), [4, 0], [3, 0], goal=0.9, cap=8)
    assert both[0].tolist() == pytest.approx([0.501, 0.5])


def test_the_adaptive_rule_moves_with_every_step() -> None:
    stopping = Stopping(SpecConfig("draft", 8, stop_rule="adaptive", stop_threshold=0.5))
    row = torch.tensor([0.5005, 0.4995])
    stopping.begin()
    assert not stopping.ends(row, 0)
    stopping.observe(4, 3)  # the threshold is 0.501 now
    stopping.begin()
    assert stopping.ends(row, 0)


def test_the_cost_aware_rule_ends_a_chain_by_the_cost_curve_alone() -> None:
    costs = CostCurve(target=1.0, target_per_token=0.05, draft=0.2)
    stopping = Stopping(SpecConfig("draft", 8, stop_rule="cost_aware"), costs)
    row = torch.tensor([0.7, 0.3])
    stopping.begin()
    # Expected 1.7 after 1.25: a second pays above 1.36 * 0.25 = 0.34. Then 0.49: 2.19 / 1.5 -> 0.365. Then 0.343:
    # 2.533 / 1.75 -> 0.362, so the third is the last.
    assert [stopping.ends(row, 0) for _ in range(3)] == [False, False, True]


def test_only_rules_that_look_at_probabilities_ask_for_them() -> None:
    reading = {rule for rule in STOP_RULES if Stopping(SpecConfig("draft", 4, stop_rule=rule)).reads_rows}
    assert reading == {"confidence", "entropy", "cumulative", "adaptive", "cost_aware"}
