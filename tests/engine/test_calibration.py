"""Chances of acceptance from weighted sums, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from autospec.config import SpecConfig
from autospec.engine.calibration import AcceptanceCalibration
from autospec.engine.costs import CostCurve
from autospec.engine.termination import Stopping
from autospec.errors import ConfigError


def test_the_chance_is_the_logistic_of_the_sum() -> None:
    made = AcceptanceCalibration(intercept=1.0, log_prob=2.0, entropy=-1.0, gap=0.5, position=-0.25, match_length=0.1)
    # 1 - 2 - 0.5 + 1 - 0.5 + 0.3
    assert float(made.probs(-1.0, 0.5, 2.0, 2, 3)) == pytest.approx(1 / (1 + math.exp(0.7)))
    assert made.probs([-1.0, -1.0], 0.5, [[2.0], [2.0]], 2, 3).shape == (2, 2)


def test_a_feature_without_weight_may_be_missing_and_infinite_ones_are_cut() -> None:
    made = AcceptanceCalibration(intercept=0.0, log_prob=0.1, gap=0.1)
    assert float(made.probs(-math.inf, math.nan, math.inf, math.nan)) == 0.5
    assert np.isnan(made.probs(math.nan, 0.0, 0.0, 1))


@pytest.mark.parametrize("values", [{}, {"intercept": 1.0}, {**AcceptanceCalibration(0.0).to_json(), "gap": "1"}, 3])
def test_anything_but_its_numbers_is_refused(values: object) -> None:
    with pytest.raises(ConfigError, match="exactly the numbers"):
        AcceptanceCalibration.from_json(values)  # type: ignore[arg-type]


def test_numbers_must_be_finite() -> None:
    with pytest.raises(ConfigError, match="must be finite"):
        AcceptanceCalibration(math.nan)


def test_the_cost_aware_rule_takes_the_calibrated_chance_for_the_probability() -> None:
    # The drafter says 0.7; the target takes such tokens at even odds, and from the third place on never.
    row = torch.tensor([0.7, 0.3])
    log_prob, gap = math.log(0.7), math.log(0.7 / 0.3)
    costs = CostCurve(target=1.0, target_per_token=0.05, draft=0.2)
    plain = Stopping(SpecConfig("draft", 8, stop_rule="cost_aware"), costs)
    plain.begin()
    assert [plain.ends(row, 0) for _ in range(3)] == [False, False, True]
    # Expected 1.5 after 1.25: a second pays above 1.2 * 0.25 = 0.3, and counts with 0.5 * 0.5, so there is none.
    even = AcceptanceCalibration(intercept=-log_prob - gap, log_prob=1.0, gap=1.0)
    known = Stopping(SpecConfig("draft", 8, stop_rule="cost_aware"), CostCurve(1.0, 0.05, 0.2, acceptance=even))
    known.begin()
    assert known.ends(row, 0)
    # Where tokens are cheaper, 0.25 beats 1.5 / 1.15 * 0.15 = 0.196; behind two, 0.125 not 1.75 / 1.3 * 0.15 = 0.2.
    cheap = Stopping(SpecConfig("draft", 8, stop_rule="cost_aware"), CostCurve(1.0, 0.05, 0.1, acceptance=even))
    cheap.begin()
    assert [cheap.ends(row, 0) for _ in range(2)] == [False, True]
    later = AcceptanceCalibration(intercept=60.0, position=-30.0)
    placed = Stopping(SpecConfig("draft", 8, stop_rule="cost_aware"), CostCurve(1.0, 0.05, 0.2, acceptance=later))
    placed.begin()
    # The second counts at even odds, after which 2.5 are expected in 1.5: a third would have to beat 0.42.
    assert [placed.ends(row, 0) for _ in range(2)] == [False, True]
