"""The measures of error, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from autospec.cost_model.errors import mape, rank_correlation, regret
from autospec.cost_model.residual import Residual


def test_a_percentage_error_is_of_the_ratio() -> None:
    assert mape([math.log(1.1), math.log(0.8)]) == pytest.approx(0.15)


def test_regret_is_what_the_first_choice_loses_of_the_best() -> None:
    measured = np.log([2.0, 1.5, 1.0])
    assert regret(np.array([0.1, 0.9, 0.5]), measured) == pytest.approx(0.25)
    assert regret(np.array([0.9, 0.1, 0.5]), measured) == 0.0


def test_ranks_are_compared_from_three_on() -> None:
    # one of three pairs is the other way round: 1 - 6 * 2 / (3 * 8)
    assert rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0])) == pytest.approx(0.5)
    assert rank_correlation(np.array([1.0, 2.0]), np.array([1.0, 3.0])) is None
    assert rank_correlation(np.array([1.0, 1.0, 1.0]), np.array([1.0, 3.0, 2.0])) is None


def test_a_correction_believes_a_measurement_as_far_as_its_noise_allows() -> None:
    # prior variance 0.01 for all, 0.0064 for what is alike and 0.000025 for one; noise 0.0064 of one measurement
    made = Residual().fit(np.zeros((1, 2)), np.array([0.1]), np.array([1]))
    near, far = made.predict(np.array([[0.0, 0.0], [50.0, 0.0]]))[0]
    assert near == pytest.approx(0.1 * 0.0164 / 0.022825)
    assert far == pytest.approx(0.1 * 0.01 / 0.022825)
    often = Residual().fit(np.zeros((1, 2)), np.array([0.1]), np.array([64]))
    assert often.predict(np.zeros((1, 2)))[0][0] == pytest.approx(0.1 * 0.0164 / 0.016525)


def test_what_was_measured_is_believed_more_than_what_is_like_it() -> None:
    # besides the 0.0164 that it shares with what is alike, 0.000025 are its own
    made = Residual().fit(np.zeros((1, 2)), np.array([0.1]), np.array([64]))
    shifts, spreads = made.predict(np.zeros((2, 2)), np.array([0, -1]))
    assert shifts == pytest.approx([0.1 * 0.016425 / 0.016525, 0.1 * 0.0164 / 0.016525])
    assert spreads**2 == pytest.approx([0.016425 - 0.016425**2 / 0.016525, 0.016425 - 0.0164**2 / 0.016525])
    means, covariance = made.joint(np.zeros((2, 2)), np.array([0, -1]))
    assert means == pytest.approx(shifts)
    assert np.diag(covariance) == pytest.approx(spreads**2)
    assert covariance[0, 1] == pytest.approx(0.0164 - 0.016425 * 0.0164 / 0.016525)


def test_alike_configurations_that_differ_by_far_more_than_noise_are_believed() -> None:
    # noise 0.0001 each: that one is 0.1 above and the other 0.1 below is likeliest where 0.0064 are a single one's own
    made = Residual().fit(np.zeros((2, 2)), np.array([0.1, -0.1]), np.array([64, 64]))
    shifts, _ = made.predict(np.zeros((2, 2)), np.array([0, 1]))
    assert shifts == pytest.approx([0.1 * 0.0064 / 0.0065, -0.1 * 0.0064 / 0.0065])
    # a difference that noise explains is not: 0.000025 of a single one's own beside 0.0001 of noise
    made = Residual().fit(np.zeros((2, 2)), np.array([0.01, -0.01]), np.array([64, 64]))
    assert made.predict(np.zeros((2, 2)), np.array([0, 1]))[0] == pytest.approx([0.002, -0.002])
