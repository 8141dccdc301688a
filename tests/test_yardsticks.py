from __future__ import annotations

import math

import pytest

from autospec.config import SpecConfig
from autospec.records import Measurement, StepStats
from autospec.yardsticks import LATENCY, SPEED, YARDSTICKS


def measured(prompt_id: str, seconds: float, gap: float) -> Measurement:
    """Ten tokens, against ten in one second with gaps of 0.1 s."""
    stats = StepStats(gap_seconds=[gap] * 4)
    config = SpecConfig("draft", 4)
    return Measurement(
        config, prompt_id, "code", "search", 1, 0, seconds, 1.0, 10, 10, 0, 0, stats, True, baseline_gap_seconds=(0.1,)
    )


def test_speed_and_latency_of_the_same_measurement() -> None:
    one = measured("a", 0.5, 0.2)
    assert SPEED.log_ratio(one) == pytest.approx(math.log(2))
    assert LATENCY.log_ratio(one) == pytest.approx(math.log(0.5))


def test_an_estimate_is_a_geometric_mean_over_prompts() -> None:
    both = [measured("a", 0.5, 0.2), measured("b", 0.125, 0.05)]
    speed, latency = SPEED.estimate(both), LATENCY.estimate(both)
    assert speed is not None
    assert latency is not None
    assert (speed.value, speed.num_prompts) == (pytest.approx(4.0), 2)
    assert latency.value == pytest.approx(1.0)
    assert SPEED.estimate([]) is None


def test_no_two_have_the_same_name() -> None:
    assert len({one.name for one in YARDSTICKS}) == len(YARDSTICKS)
