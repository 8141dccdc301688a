"""Cost curves: the line, measured points between which is interpolated, and nothing beyond them."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from autospec.engine.calibration import AcceptanceCalibration
from autospec.engine.costs import CONSTANT_COSTS, CostCurve
from autospec.errors import ConfigError, MeasurementError


def test_without_points_a_target_forward_costs_a_line() -> None:
    costs = CostCurve(target=1.0, target_per_token=0.5, draft=0.25)
    assert costs.verify([0, 1, 4]).tolist() == [1.0, 1.5, 3.0]
    assert costs.step(4) == 4.0
    assert costs.marginal == 0.75


def test_points_are_returned_exactly_and_interpolated_between() -> None:
    costs = CostCurve(1.0, 0.5, 0.25, target_points=((1, 2.0), (5, 2.0), (9, 6.0)))
    assert costs.verify(np.array([[0, 4], [6, 8]])).tolist() == [[2.0, 2.0], [4.0, 6.0]]
    assert costs.step(6) == 5.5


def test_beyond_the_points_nothing_is_known() -> None:
    costs = CostCurve(1.0, 0.5, 0.25, target_points=((1, 2.0), (5, 2.0)))
    with pytest.raises(MeasurementError, match="were measured up to 5 tokens, but 6 were asked for"):
        costs.verify([1, 5])


@pytest.mark.parametrize("points", [((2, 1.0), (3, 1.0)), ((1, 1.0), (5, 2.0), (3, 1.0)), ((1, 1.0), (1, 2.0))])
def test_points_begin_at_one_token_and_go_up(points: tuple[tuple[int, float], ...]) -> None:
    with pytest.raises(AssertionError):
        CostCurve(1.0, 0.5, 0.25, target_points=points)


CURVE = CostCurve(2.0, 0.1, 0.5, ((1, 2.0), (4, 2.5)), AcceptanceCalibration(0.5, log_prob=1.5))


def test_costs_survive_the_round_trip() -> None:
    for curve in (CURVE, CONSTANT_COSTS):
        assert CostCurve.from_json(json.loads(json.dumps(curve.to_json()))) == curve


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": -1.0}, "numbers of at least 0"),
        ({"draft": "0.5"}, "numbers of at least 0"),
        ({"target": math.inf}, "numbers of at least 0"),
        ({"colour": 1}, "must hold exactly"),
        ({"target_points": [[1, 2.0, 3.0]]}, "pairs of tokens and seconds"),
        ({"target_points": [[2, 2.0]]}, "must begin with 1 token"),
        ({"target_points": [[1, 2.0], [1, 3.0]]}, "must begin with 1 token and ascend"),
        ({"acceptance": {"intercept": 1.0}}, "must hold exactly the numbers"),
    ],
)
def test_what_cannot_be_costs_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CostCurve.from_json({**CURVE.to_json(), **changes})
