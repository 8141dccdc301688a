"""Measured values at the crossings of several axes, and straight lines between them.

A measured point is returned exactly, what lies beyond the points is refused. Knows no models and reads no clock.
"""

from __future__ import annotations

import statistics
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autospec.errors import MeasurementError

_MAD_TO_SD = 1.4826  # of a normal distribution


@dataclass(frozen=True, slots=True)
class Timing:
    """What several timings of one thing say.

    Args:
        seconds: Their median. A difference of two timings may be negative.
        spread: Robust coefficient of variation of one timing: the median absolute deviation, scaled to a normal's
            standard deviation, over the median; of a difference, in seconds, because its median may be 0.
        num_samples: How many there were.
    """

    seconds: float
    spread: float
    num_samples: int

    @classmethod
    def of(cls, samples: Sequence[float], is_difference: bool = False) -> Timing:
        """Summarise timings.

        Args:
            samples: At least one.
            is_difference: They are differences: the spread is in seconds.
        """
        median = statistics.median(samples)
        deviation = _MAD_TO_SD * statistics.median(abs(one - median) for one in samples)
        if not is_difference:
            deviation = deviation / median if median > 0.0 else 0.0
        return cls(median, deviation, len(samples))


class Surface:
    """Values at points of several axes, of which not all crossings need be measured.

    The first axis is looked at first: of the two nearest values on it that were measured, each gives its own line,
    plane and so on over the rest, and what was asked for lies straight between what these say. So a value between
    points never leaves the range of the points around it, and a point is returned as it was measured.

    Args:
        what: What the values are, for messages.
        axes: Names of the axes, for messages.
        points: Places, one number for each axis, and their values.
    """

    def __init__(self, what: str, axes: Sequence[str], points: Iterable[tuple[tuple[float, ...], float]]) -> None:
        self._what, self._axes = what, tuple(axes)
        self._tree: dict[float, Any] = {}
        for place, value in points:
            assert len(place) == len(self._axes), (place, self._axes)
            node = self._tree
            for coordinate in place[:-1]:
                node = node.setdefault(coordinate, {})
            assert place[-1] not in node, (what, place)
            node[place[-1]] = value

    def at(self, *place: float) -> float:
        """Return the value at a place.

        Raises:
            MeasurementError: Nothing was measured there or around it.
        """
        assert len(place) == len(self._axes), (place, self._axes)
        return self._value(self._tree, place, ())

    def knows(self, *place: float) -> bool:
        """Tell whether there is a value at a place."""
        try:
            self.at(*place)
        except MeasurementError:
            return False
        return True

    def _value(self, node: Any, place: Sequence[float], fixed: tuple[float, ...]) -> float:
        if not place:
            return float(node)
        asked, rest = place[0], place[1:]
        if asked in node:
            return self._value(node[asked], rest, (*fixed, asked))
        known = sorted(node)
        above = bisect_left(known, asked)
        if above in (0, len(known)):
            raise MeasurementError(self._refusal(known, asked, fixed))
        low, high = known[above - 1], known[above]
        first, second = (self._value(node[one], rest, (*fixed, one)) for one in (low, high))
        share: float = (asked - low) / (high - low)
        return first + (second - first) * share

    def _refusal(self, known: Sequence[float], asked: float, fixed: Sequence[float]) -> str:
        axis = self._axes[len(fixed)]
        if not known:
            return f"{self._what} were not measured"
        reach = f"{known[0]:g} to {known[-1]:g}" if len(known) > 1 else f"{known[0]:g} only"
        pairs = [f"{name} {value:g}" for name, value in zip(self._axes, fixed, strict=False)]
        where = f" at {', '.join(pairs)}" if pairs else ""
        return f"{self._what} were measured for {axis} {reach}{where}, but {asked:g} was asked for"


def slope(points: Mapping[float, float]) -> float:
    """Return the slope of the least-squares line through points, 0 for a single one."""
    mean_place, mean_value = statistics.fmean(points), statistics.fmean(points.values())
    square = sum((place - mean_place) ** 2 for place in points)
    if square == 0.0:
        return 0.0
    return sum((place - mean_place) * (value - mean_value) for place, value in points.items()) / square
