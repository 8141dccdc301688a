from __future__ import annotations

import itertools
import json
import math
import statistics
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from scipy import stats

from autospec import comparison
from autospec.comparison import (
    Bound,
    Estimate,
    bootstrap_interval,
    noise_floor,
    one_sided,
    p_value,
    paired,
    speedup,
)
from autospec.errors import ConfigError, MeasurementError


def _ratios(*means: float) -> dict[str, list[float]]:
    return {f"p{number}": [mean] for number, mean in enumerate(means)}


# Logs 0 and log 4: mean log 2, deviation log(4) / sqrt(2), standard error log 2. With one degree of freedom t is
# 12.7062, so the interval is 2 to the power of 1 -+ 12.7062, and P(|t| > 1) is one half.
def test_two_prompts_by_hand() -> None:
    estimate = speedup(_ratios(0.0, math.log(4.0)))
    assert estimate.value == pytest.approx(2.0)
    assert estimate.low == pytest.approx(2.0 ** (1 - 12.7062047), rel=1e-6)
    assert estimate.high == pytest.approx(2.0 ** (1 + 12.7062047), rel=1e-6)
    assert estimate.num_prompts == 2
    assert p_value(_ratios(0.0, math.log(4.0))) == pytest.approx(0.5)


# Mean 2, standard error 1 / sqrt(3), t with two degrees of freedom 4.30265; p = 1 - t / sqrt(t^2 + 2) at t = sqrt(12).
def test_three_prompts_by_hand() -> None:
    ratios = _ratios(1.0, 2.0, 3.0)
    assert speedup(ratios).low == pytest.approx(math.exp(2.0 - 4.30265273 / math.sqrt(3.0)))
    assert p_value(ratios) == pytest.approx(1.0 - math.sqrt(12.0 / 14.0))


def test_repeats_of_a_prompt_are_averaged_and_are_no_further_evidence() -> None:
    repeated = {"a": [0.1, 0.3], "b": [0.5] * 7}
    assert speedup(repeated) == speedup({"a": [0.2], "b": [0.5]})


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
@pytest.mark.parametrize("num_prompts", [2, 5, 48])
def test_interval_and_p_value_agree_with_scipy(confidence: float, num_prompts: int) -> None:
    sample = np.random.default_rng(num_prompts).normal(0.2, 0.4, num_prompts)
    test = stats.ttest_1samp(sample, 0.0)
    expected = test.confidence_interval(confidence)
    estimate = speedup(_ratios(*sample), confidence)
    assert math.log(estimate.low) == pytest.approx(expected.low)
    assert math.log(estimate.high) == pytest.approx(expected.high)
    assert p_value(_ratios(*sample)) == pytest.approx(test.pvalue)


@pytest.mark.parametrize("estimator", [speedup, bootstrap_interval])
def test_one_prompt_says_nothing_about_others(estimator: Any) -> None:
    estimate = estimator(_ratios(math.log(3.0)))
    assert estimate == Estimate(pytest.approx(3.0), 0.0, math.inf, 1)
    assert comparison.verdict(estimate) == "cannot be told apart"
    assert p_value(_ratios(5.0)) == 1.0


@pytest.mark.parametrize("estimator", [speedup, bootstrap_interval])
@pytest.mark.parametrize(
    ("log_ratio", "p", "expected"), [(0.5, 0.0, "faster"), (-0.5, 0.0, "slower"), (0.0, 1.0, "c")]
)
def test_prompts_that_agree_exactly_leave_no_width(estimator: Any, log_ratio: float, p: float, expected: str) -> None:
    ratios = _ratios(*[log_ratio] * 4)
    estimate = estimator(ratios)
    assert estimate.low == estimate.value == estimate.high == pytest.approx(math.exp(log_ratio))
    assert comparison.verdict(estimate).startswith(expected)
    assert p_value(ratios) == p


@pytest.mark.parametrize("ratios", [{}, {"a": []}, {"a": [0.1], "b": [math.nan]}, {"a": [math.inf]}, {"a": [-800.0]}])
@pytest.mark.parametrize("function", [speedup, p_value, bootstrap_interval, noise_floor])
def test_what_cannot_be_compared_is_refused(function: Any, ratios: dict[str, list[float]]) -> None:
    with pytest.raises(MeasurementError):
        function(ratios)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, math.nan])
@pytest.mark.parametrize("function", [speedup, bootstrap_interval])
def test_impossible_confidence_is_refused(function: Any, confidence: float) -> None:
    with pytest.raises(ConfigError, match="confidence"):
        function(_ratios(0.1, 0.2), confidence)


# The true ratio is e^0.3; 95 of 100 intervals must hold it. 1500 trials: a binomial error of 0.6 points.
def test_t_interval_covers_the_truth_as_often_as_it_says() -> None:
    samples = np.random.default_rng(1).normal(0.3, 0.5, (1500, 6))
    estimates = [speedup(_ratios(*sample)) for sample in samples.tolist()]
    covered = statistics.fmean(estimate.low <= math.exp(0.3) <= estimate.high for estimate in estimates)
    assert covered == pytest.approx(0.95, abs=0.018)


def test_bootstrap_covers_the_truth_of_a_skewed_distribution() -> None:
    samples = np.random.default_rng(2).gamma(2.0, 0.5, (300, 16))
    estimates = [bootstrap_interval(_ratios(*sample), num_resamples=1000) for sample in samples.tolist()]
    covered = statistics.fmean(estimate.low <= math.e <= estimate.high for estimate in estimates)
    assert covered == pytest.approx(0.95, abs=0.035)


# All 4^4 resamples of four prompts, each equally likely: the interval's ends must lie where the exact ones do.
def test_bootstrap_agrees_with_all_resamples_of_four_prompts() -> None:
    sample = [0.0, 1.0, 3.0, 6.0]
    scores = []
    for draw in itertools.product(sample, repeat=4):
        shift, deviation = statistics.fmean(draw) - 2.5, statistics.stdev(draw)
        scores.append(shift / (deviation / 2.0) if deviation else math.copysign(math.inf, shift))
    scores.sort()
    error = statistics.stdev(sample) / 2.0
    estimate = bootstrap_interval(_ratios(*sample), 0.8, num_resamples=20000)
    assert (2.5 - math.log(estimate.high)) / error == pytest.approx(scores[int(0.1 * 256)])
    assert (2.5 - math.log(estimate.low)) / error == pytest.approx(scores[int(0.9 * 256)])


def test_bootstrap_of_three_prompts_knows_that_it_knows_nothing() -> None:
    estimate = bootstrap_interval(_ratios(0.1, 0.2, 0.4))
    assert (estimate.low, estimate.high) == (0.0, math.inf)


def test_bootstrap_is_seeded() -> None:
    ratios = _ratios(*np.random.default_rng(3).normal(0.1, 0.2, 12))
    assert bootstrap_interval(ratios, seed=4) == bootstrap_interval(ratios, seed=4)
    assert bootstrap_interval(ratios, seed=4) != bootstrap_interval(ratios, seed=5)


def test_bootstrap_and_t_agree_on_normal_data() -> None:
    ratios = _ratios(*np.random.default_rng(5).normal(0.4, 0.2, 60))
    student, bootstrap = speedup(ratios), bootstrap_interval(ratios)
    assert math.log(bootstrap.low) == pytest.approx(math.log(student.low), abs=0.01)
    assert math.log(bootstrap.high) == pytest.approx(math.log(student.high), abs=0.01)


# Differences of the logs: 0.1, 0.3, 0.5.
def test_paired_comparison_by_hand() -> None:
    first = {"a": [0.3, 0.5], "b": [0.6], "c": [1.0]}
    second = {"c": [0.5], "b": [0.3], "a": [0.3]}
    assert paired(first, second).value == pytest.approx(math.exp(0.3))
    expected = speedup(_ratios(0.1, 0.3, 0.5))
    assert paired(first, second).low == pytest.approx(expected.low)
    assert paired(second, first).value == pytest.approx(math.exp(-0.3))


def test_pairing_sees_a_difference_that_prompts_hide() -> None:
    hard_and_easy = np.random.default_rng(6).normal(0.5, 1.0, 24)
    noise = np.random.default_rng(7).normal(0.1, 0.05, 24)
    first, second = _ratios(*(hard_and_easy + noise)), _ratios(*hard_and_easy)
    assert speedup(first).low < speedup(second).value
    assert comparison.verdict(paired(first, second)) == "faster"


def test_paired_comparison_needs_the_same_prompts() -> None:
    with pytest.raises(MeasurementError, match="b"):
        paired({"a": [0.1], "b": [0.2]}, {"a": [0.1]})


# Sorted: 0.005 x 4 = 0.02, 0.01 x 3 = 0.03, 0.03 x 2 = 0.06, 0.04 x 1 = 0.04 raised to 0.06.
@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1.01, 1.5, "faster"),
        (0.5, 0.99, "slower"),
        (0.9, 1.1, "cannot be told apart"),
        (1.0, 1.5, "cannot be told apart"),
        (0.5, 1.0, "cannot be told apart"),
    ],
)
def test_verdict_follows_the_interval(low: float, high: float, expected: str) -> None:
    assert comparison.verdict(Estimate((low + high) / 2, low, high, 8)) == expected


# Deviations from 0: 0.01, 0.02, 0.02, 0.05; their median 0.02 over 0.6745 over sqrt(2).
def test_noise_floor_by_hand() -> None:
    assert noise_floor({"a": [0.02, -0.02], "b": [0.05, -0.01]}) == pytest.approx(0.0209672, rel=1e-5)


def test_noise_floor_is_the_variation_of_one_timing() -> None:
    rng = np.random.default_rng(10)
    first, second = rng.normal(0.0, 0.08, (2, 500, 4))
    ratios = {str(number): row.tolist() for number, row in enumerate(first - second)}
    assert noise_floor(ratios) == pytest.approx(0.08, rel=0.06)


def test_noise_floor_is_not_decided_by_a_few_stalls() -> None:
    calm = {str(number): [0.01 * (-1) ** number, 0.012] for number in range(10)}
    assert noise_floor({**calm, "stalled": [3.0, -3.0]}) < 0.013


@pytest.mark.parametrize(
    ("noise", "expected"),
    [(0.0, "none"), (0.10, "none"), (0.11, "warn"), (0.20, "warn"), (0.21, "add repeats")],
)
def test_noise_levels_of_the_design(noise: float, expected: str) -> None:
    assert (comparison.NOISE_WARNING, comparison.NOISE_REPEATS) == (0.10, 0.20)
    assert comparison.noise_action(noise) == expected


@pytest.mark.parametrize("estimate", [Estimate(1.5, 1.2, 1.9, 24), Estimate(2.0, 0.0, math.inf, 1)])
def test_estimate_round_trips_through_strict_json(estimate: Estimate) -> None:
    text = json.dumps(estimate.to_json(), allow_nan=False)
    assert Estimate.from_json(json.loads(text)) == estimate


def test_unbounded_estimate_is_null_in_json() -> None:
    assert Estimate(2.0, 0.0, math.inf, 1).to_json() == {"value": 2.0, "low": 0.0, "high": None, "num_prompts": 1}


@pytest.mark.parametrize(
    "values",
    [
        None,
        [1.5, 1.2, 1.9, 24],
        {"value": 1.5, "low": 1.2, "high": 1.9},
        {"value": 1.5, "low": 1.2, "high": 1.9, "num_prompts": 24, "p": 0.1},
        {"value": "1.5", "low": 1.2, "high": 1.9, "num_prompts": 24},
        {"value": None, "low": 1.2, "high": 1.9, "num_prompts": 24},
        {"value": 1.5, "low": 1.9, "high": 1.2, "num_prompts": 24},
        {"value": math.nan, "low": 1.2, "high": 1.9, "num_prompts": 24},
        {"value": 1.5, "low": math.nan, "high": 1.9, "num_prompts": 24},
        {"value": 1.5, "low": -1.0, "high": 1.9, "num_prompts": 24},
        {"value": 1.5, "low": 1.2, "high": 1.9, "num_prompts": 24.0},
        {"value": 1.5, "low": 1.2, "high": 1.9, "num_prompts": True},
    ],
)
def test_what_is_no_estimate_is_refused(values: Any) -> None:
    with pytest.raises(ConfigError):
        Estimate.from_json(values)


def test_importing_comparison_is_light() -> None:
    program = "import sys, autospec.comparison; print([n for n in ('scipy', 'numpy', 'torch') if n in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_one_sided_bound_by_hand():
    # Means 1, 2, 3: deviation 1, error 1 / sqrt(3), t of 2 degrees of freedom at 95 %, one-sided: 2.9199856.
    values = {"a": [0.5, 1.5], "b": [2.0], "c": [3.0]}
    half = 2.9199855804 / math.sqrt(3)
    assert one_sided(values, upper=True) == Bound(2.0, pytest.approx(2.0 + half), 3)
    assert one_sided(values, upper=False) == Bound(2.0, pytest.approx(2.0 - half), 3)
    assert one_sided(values, upper=True, confidence=0.5) == Bound(2.0, pytest.approx(2.0), 3)


def test_one_prompt_bounds_nothing_and_equal_prompts_are_their_own_bound():
    assert one_sided({"a": [1.0]}, upper=True) == Bound(1.0, math.inf, 1)
    assert one_sided({"a": [1.0]}, upper=False) == Bound(1.0, -math.inf, 1)
    assert one_sided({"a": [1.0], "b": [1.0]}, upper=True) == Bound(1.0, 1.0, 2)


@pytest.mark.parametrize("upper", [True, False])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_bound_on_the_size_of_a_mean_is_the_same_either_way(upper, sign):
    bound = one_sided({"a": [sign * 0.1], "b": [sign * 0.3]}, upper=upper).either_way
    assert bound == Bound(pytest.approx(sign * 0.2), pytest.approx(0.2 + 6.313751515 * 0.1), 2)
