"""Cost curves: the line, measured points between which is interpolated, and nothing beyond them."""

from __future__ import annotations

import numpy as np
import pytest

from autospec.engine.costs import CostCurve
from autospec.errors import MeasurementError


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
