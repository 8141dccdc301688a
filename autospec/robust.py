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
_ROUNDS = 60


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
    """Fit row plus column to values, robustly; the columns' effects have a mean of 0.

    A column of n values gets n / (n + v) of its effect, as a drawn one would where its variance is 1 / v of a value's
    noise. What v is, is told by how much columns differ, and it is at most 1: of a single row nobody knows what is
    noise, so half of what its columns differ by is taken for it.

    Args:
        row_of: [values] row of each, from 0 on and none left out.
        column_of: [values] column of each.
        values: At least one.
    """
    columns, place_of = np.unique(column_of, return_inverse=True)
    fit = _Fit(row_of, place_of, values, int(row_of.max()) + 1, len(columns))
    free = len(values) - fit.num_rows - len(columns) + 1
    if free < 1:
        return fit.run(1.0)
    scale, effects = fit.run(0.0).scale, fit.columns
    variance = float((effects**2).mean()) - scale**2 * len(columns) / len(values)
    return fit.run(1.0 if variance <= scale**2 else scale**2 / variance)


class _Fit:
    """Rows and columns by turns, each step with what is far off cut."""

    def __init__(self, row_of: Ints, column_of: Ints, values: Floats, num_rows: int, num_columns: int) -> None:
        self.num_rows, self._row_of, self._column_of, self._values = num_rows, row_of, column_of, values
        self._in_row = np.bincount(row_of, minlength=num_rows)
        self._in_column = np.bincount(column_of, minlength=num_columns)
        self.columns = np.zeros(num_columns)

    def run(self, prior: float) -> Table:
        """Fit; `prior` values of 0 are added to every column."""
        values, row_of, column_of = self._values, self._row_of, self._column_of
        rows = np.array([np.median(values[row_of == row]) for row in range(self.num_rows)])
        left, in_column = values - rows[row_of], self._in_column
        columns = np.array([np.median(left[column_of == column]) for column in range(len(in_column))])
        columns *= in_column / (in_column + prior)
        degrees = max(len(values) - self.num_rows - float((in_column / (in_column + prior)).sum()) + 1.0, 1.0)
        inflation, scale = float(np.sqrt(len(values) / degrees)), 0.0
        for _ in range(_ROUNDS):
            left = values - rows[row_of] - columns[column_of]
            scale = deviation(left) * inflation
            reach = _BEND * scale if scale > 0.0 else np.inf
            cut = np.bincount(column_of, np.clip(left, -reach, reach), len(columns))
            columns = (columns * in_column + cut) / (in_column + prior)
            middle = columns.mean()
            columns, rows = columns - middle, rows + middle
            left = values - rows[row_of] - columns[column_of]
            rows = rows + np.bincount(row_of, np.clip(left, -reach, reach), self.num_rows) / self._in_row
        self.columns = columns
        return Table(rows, scale, degrees)
