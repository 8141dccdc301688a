"""Means that a stall of the machine does not decide: Huber's, and rows and columns of a table taken apart.

Timings have heavy tails: on one machine the log ratios of one prompt, repeated, had a standard deviation of 0.077, but
of 0.038 by their median absolute deviation. The mean is then far from the best estimate. Knows no engine and no file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_BEND = 1.345  # Huber (1964)
EFFICIENCY = 0.95  # of such a location, where errors are normal after all: its variance is that much larger
_MAD_TO_SD = 1.4826
_ROUNDS = 30
# A column is taken to differ from others by about as much as one timing from the next, so that a few values do not
# make its effect: n values count n / (n + 1).
_COLUMN_PRIOR = 1.0


def deviation(values: Floats) -> float:
    """Return the median absolute deviation from 0, scaled to a normal's standard deviation; 0 for no values."""
    return float(_MAD_TO_SD * np.median(np.abs(values))) if len(values) else 0.0


def location(values: Floats, scale: float) -> float:
    """Return Huber's location: a mean in which what is far off counts as if it were 1.345 scales away.

    Args:
        values: At least one.
        scale: Standard deviation of one value; 0 gives the mean, as nothing is known to be far off.
    """
    if scale <= 0.0:
        return float(values.mean())
    center, reach = float(np.median(values)), _BEND * scale
    for _ in range(_ROUNDS):
        center += float(np.clip(values - center, -reach, reach).mean())
    return center


@dataclass(frozen=True, slots=True)
class Table:
    """What a table of rows and columns says.

    Args:
        rows: [rows] location of each row, with what its columns are known to be off taken out.
        scale: Standard deviation of one value, by the median of what is left.
        degrees: Of freedom, on which the scale rests.
    """

    rows: Floats
    scale: float
    degrees: float


def take_apart(row_of: Ints, column_of: Ints, values: Floats) -> Table:
    """Fit row plus column to values, by turns, robustly.

    Args:
        row_of: [values] row of each, from 0 on and none left out.
        column_of: [values] column of each.
        values: At least one.
    """
    num_rows, columns = int(row_of.max()) + 1, np.unique(column_of)
    in_row = [np.flatnonzero(row_of == row) for row in range(num_rows)]
    in_column = [np.flatnonzero(column_of == column) for column in columns]
    rows, offsets = np.array([np.median(values[own]) for own in in_row]), np.zeros(len(values))
    shares = [len(own) / (len(own) + _COLUMN_PRIOR) for own in in_column]
    degrees = max(len(values) - num_rows - sum(shares) + 1.0, 1.0)
    scale = 0.0
    for _ in range(_ROUNDS):
        left = values - rows[row_of]
        scale = deviation(left - offsets) * float(np.sqrt(len(values) / degrees))
        effects = [share * location(left[own], scale) for own, share in zip(in_column, shares, strict=True)]
        middle = float(np.mean(effects))
        for own, effect in zip(in_column, effects, strict=True):
            offsets[own] = effect - middle
        rows = np.array([location(values[own] - offsets[own], scale) for own in in_row])
    return Table(rows, scale, degrees)
