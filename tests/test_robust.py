from __future__ import annotations

import numpy as np
import pytest

from autospec.robust import deviation, location, take_apart


def test_what_is_far_off_counts_as_if_it_were_near() -> None:
    # the sum of what is left, cut at 1.345, is 0: -3 c + 1.345 = 0
    assert location(np.array([0.0, 0.0, 0.0, 10.0]), 1.0) == pytest.approx(1.345 / 3)
    assert location(np.array([0.0, 0.0, 0.0, 10.0]), 100.0) == pytest.approx(2.5)
    assert location(np.array([1.0, 4.0]), 0.0) == 2.5


def test_the_deviation_is_a_normals() -> None:
    drawn = np.random.default_rng(0).normal(scale=3.0, size=20_000)
    assert deviation(drawn) == pytest.approx(3.0, rel=0.03)
    assert deviation(np.array([-2.0, 1.0, 2.0])) == pytest.approx(2 * 1.4826)
    assert deviation(np.zeros(0)) == 0.0


def table(rows: list[float], columns: list[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    row_of, column_of = np.divmod(np.arange(len(rows) * len(columns)), len(columns))
    return row_of, column_of, np.array(rows)[row_of] + np.array(columns)[column_of]


def test_rows_and_columns_are_taken_apart() -> None:
    row_of, column_of, values = table([0.5, 0.1, -0.3], [0.4, -0.4, 0.2, -0.2])
    found = take_apart(row_of, column_of, values)
    assert found.rows == pytest.approx([0.5, 0.1, -0.3])
    assert found.degrees == pytest.approx(12 - 3 - 4 + 1)  # columns that differ by more than noise are not shrunk


def test_a_column_that_one_row_lacks_does_not_move_it() -> None:
    row_of, column_of, values = table([0.0] * 9, [1.0, 0.0, -1.0])
    kept = np.arange(len(values)) != 0  # the first row has not seen the column that is 1.0 higher
    found = take_apart(row_of[kept], column_of[kept], values[kept])
    assert abs(found.rows[0]) < 0.1  # its mean is -0.5
    assert abs(found.rows[1]) < 0.1


def test_a_stall_moves_a_row_by_little_and_noise_is_told_without_it() -> None:
    row_of, column_of, values = table([0.2, 0.0, 0.0, 0.0], [0.3, -0.3] * 6)
    noise = np.random.default_rng(1).normal(scale=0.02, size=len(values))
    stalled = values + noise
    stalled[3] += 3.0
    found = take_apart(row_of, column_of, stalled)
    assert found.rows[0] - found.rows[1:].mean() == pytest.approx(0.2, abs=0.03)
    assert stalled[:12].mean() - stalled[12:].mean() > 0.4
    assert found.scale == pytest.approx(0.02, rel=0.5)
    assert abs(found.rows - take_apart(row_of, column_of, values + noise).rows).max() < 0.02


def test_of_a_single_row_half_of_what_columns_differ_by_is_noise() -> None:
    found = take_apart(np.zeros(3, dtype=np.int64), np.arange(3), np.array([0.2, 0.3, 0.1]))
    assert found.rows == pytest.approx([0.2])
    # halves of 0.1, and 3 values for 3 - 1 - 3 / 2 + 1 degrees of freedom
    assert found.degrees == pytest.approx(1.5)
    assert found.scale == pytest.approx(0.05 * 1.4826 * 2**0.5, rel=0.01)
