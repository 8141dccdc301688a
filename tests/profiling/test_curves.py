from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autospec.errors import MeasurementError
from autospec.profiling.curves import Surface, Timing, slope

TABLE = {(1, 100, 1): 2.0, (1, 100, 3): 4.0, (1, 300, 1): 3.0, (1, 300, 3): 9.0, (1, 300, 5): 11.0}


def surface() -> Surface:
    return Surface("forwards", ("rows", "context", "tokens"), TABLE.items())


def test_measured_points_are_returned_exactly() -> None:
    made = surface()
    assert {place: made.at(*place) for place in TABLE} == TABLE


def test_values_between_points_lie_on_straight_lines() -> None:
    # tokens 2 is 3 at context 100 and 6 at 300; context 150 is a quarter of the way
    assert surface().at(1, 100, 2) == 3.0
    assert surface().at(1, 150, 2) == pytest.approx(3.75)
    assert surface().at(1, 300, 4) == 10.0


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ((1, 100, 4), "forwards were measured for tokens 1 to 3 at rows 1, context 100, but 4 was asked for"),
        ((1, 50, 1), "forwards were measured for context 100 to 300 at rows 1, but 50 was asked for"),
        ((2, 100, 1), "forwards were measured for rows 1 only, but 2 was asked for"),
        ((1, 200, 5), "tokens 1 to 3 at rows 1, context 100"),
    ],
)
def test_what_lies_beyond_the_points_is_refused(place: tuple[int, ...], message: str) -> None:
    with pytest.raises(MeasurementError, match=message):
        surface().at(*place)
    assert not surface().knows(*place)


def test_a_surface_without_points_says_so() -> None:
    with pytest.raises(MeasurementError, match="forwards were not measured"):
        Surface("forwards", ("rows",), ()).at(1)


@given(st.lists(st.floats(0.0, 10.0), min_size=2, max_size=8), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_values_grow_where_the_points_do(steps: list[float], first: float, second: float) -> None:
    heights = [sum(steps[: index + 1]) for index in range(len(steps))]
    made = Surface("forwards", ("tokens",), [((float(3 * index),), value) for index, value in enumerate(heights)])
    low, high = sorted(3 * (len(steps) - 1) * share for share in (first, second))
    tolerance = 1e-9 * (1.0 + heights[-1])
    assert heights[0] - tolerance <= made.at(low) <= made.at(high) + tolerance <= heights[-1] + 2 * tolerance


def test_a_timing_is_the_median_with_its_robust_spread() -> None:
    # deviations from 3 are 2, 1, 0, 1, 97, so their median is 1
    assert Timing.of([1.0, 2.0, 3.0, 4.0, 100.0]) == Timing(3.0, pytest.approx(1.4826 / 3), 5)
    assert Timing.of([-1.0, 0.0, 1.0], is_difference=True) == Timing(0.0, pytest.approx(1.4826), 3)


def test_the_slope_is_that_of_the_least_squares_line() -> None:
    # means 1 and 2; (1 * 2 + 0 + 1 * 1) / 2
    assert slope({0.0: 0.0, 1.0: 3.0, 2.0: 3.0}) == pytest.approx(1.5)
    assert slope({4.0: 7.0}) == 0.0
