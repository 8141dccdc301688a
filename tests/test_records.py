from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest

from autospec.config import SamplingParams, SpecConfig
from autospec.errors import ConfigError
from autospec.records import Measurement, OutputQuality, Prompt, StepStats, Workload, p95


def _measurement(**changes: Any) -> Measurement:
    values: dict[str, Any] = {
        "config": SpecConfig(drafter="draft", draft_length=4),
        "prompt_id": "p1",
        "category": "docs",
        "stage": "search",
        "trial": 3,
        "repeat": 1,
        "seconds": 2.0,
        "baseline_seconds": 6.0,
        "num_tokens": 10,
        "baseline_num_tokens": 20,
        "prefill_seconds": 0.2,
        "baseline_prefill_seconds": 0.3,
        "stats": StepStats(num_steps=2, num_drafted=8, num_accepted=3),
        "identical": True,
    }
    return Measurement(**{**values, **changes})


def _workload(**changes: Any) -> Workload:
    values: dict[str, Any] = {
        "name": "sample",
        "tune": (Prompt("a", "docs", text="one"), Prompt("b", "edit", messages=(("user", "two"),))),
        "held_out": (Prompt("c", "docs", text="three"),),
    }
    return Workload(**{**values, **changes})


@pytest.mark.parametrize("identical", [True, False, None])
def test_measurement_round_trips_through_json_text(identical: bool | None) -> None:
    measurement = _measurement(identical=identical, num_excused=1, peak_memory_bytes=4096)
    assert Measurement.from_json(json.loads(json.dumps(measurement.to_json()))) == measurement


def test_measurement_key_is_what_makes_it_repeated() -> None:
    measurement = _measurement()
    assert measurement.key == (measurement.config.config_hash, "p1", "search", 1)
    assert _measurement(trial=9, seconds=1.0).key == measurement.key
    assert _measurement(repeat=2).key != measurement.key
    assert _measurement(stage="confirm").key != measurement.key


def test_measurement_with_another_hash_is_refused() -> None:
    values = _measurement().to_json()
    values["config"]["draft_length"] = 5
    with pytest.raises(ConfigError, match="hash"):
        Measurement.from_json(values)


# Baseline: 6 s for 20 tokens = 0.3 s a token. Configuration: 2 s for 10 tokens = 0.2 s a token.
def test_log_speedup_by_hand() -> None:
    assert _measurement().log_speedup == pytest.approx(math.log(1.5))


# Baseline: 5.7 s for 19 tokens = 0.3 s a token. Configuration: 1.8 s for 9 tokens = 0.2 s a token.
def test_log_decode_speedup_by_hand() -> None:
    assert _measurement().log_decode_speedup == pytest.approx(math.log(1.5))
    longer_prefill = _measurement(prefill_seconds=1.1)
    assert longer_prefill.log_decode_speedup == pytest.approx(math.log(3.0))
    assert longer_prefill.log_speedup == pytest.approx(math.log(1.5))


@pytest.mark.parametrize("side", ["num_tokens", "baseline_num_tokens"])
def test_decode_speedup_claims_nothing_where_nothing_was_decoded(side: str) -> None:
    assert _measurement(**{side: 1}, seconds=0.2, prefill_seconds=0.2).log_decode_speedup == 0.0


def test_content_hash_is_pinned() -> None:
    assert _workload().content_hash == "790862c6250d4a74"


@pytest.mark.parametrize(
    "changes",
    [
        {"tune": (Prompt("a", "docs", text="one"),)},
        {"tune": (Prompt("b", "edit", messages=(("user", "two"),)), Prompt("a", "docs", text="one"))},
        {"held_out": (Prompt("c", "docs", text="Three"),)},
        {"held_out": (Prompt("c", "docs", messages=(("user", "three"),)),)},
        {"sampling": SamplingParams(temperature=0.8)},
        {"max_new_tokens": 49},
    ],
)
def test_content_hash_follows_prompts_split_and_settings(changes: dict[str, Any]) -> None:
    assert _workload(**changes).content_hash != _workload().content_hash


def test_content_hash_does_not_follow_the_name() -> None:
    assert _workload(name="other").content_hash == _workload().content_hash


def test_categories_are_those_of_both_parts_sorted() -> None:
    assert _workload(held_out=(Prompt("c", "aside", text="x"),)).categories == ("aside", "docs", "edit")


def test_prompts_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Prompt("a", "docs").text = "other"  # type: ignore[misc]


def test_quality_goes_to_json_and_back_and_an_older_log_has_none() -> None:
    measurement = _measurement(quality=OutputQuality(-1.25, -1.0, 0.9, 1.0, 0.5, 1.0))
    values = json.loads(json.dumps(measurement.to_json()))
    assert Measurement.from_json(values) == measurement
    assert measurement.quality is not None
    assert measurement.quality.loss == 0.25
    del values["quality"]
    assert Measurement.from_json(values).quality is None


def test_a_measurement_of_an_older_log_has_no_difference() -> None:
    values = _measurement(identical=False, difference_index=3, difference_gap=0.25).to_json()
    assert Measurement.from_json(values).difference_gap == 0.25
    del values["difference_index"], values["difference_gap"]
    assert Measurement.from_json(values) == _measurement(identical=False)


def test_a_measurement_of_an_older_log_is_one_output() -> None:
    values = _measurement(identical=False).to_json()
    del values["num_outputs"], values["num_different"]
    read = Measurement.from_json(values)
    assert (read.num_outputs, read.num_unlike) == (1, 1)
    assert (_measurement(identical=None).num_unlike, _measurement(identical=True).num_unlike) == (0, 0)


# Of 0 .. 20, place 0.95 * 20 = 19; of 1 .. 10, place 8.55, between 9 and 10.
def test_the_95th_percentile_by_hand() -> None:
    assert p95(list(range(20, -1, -1))) == pytest.approx(19.0)
    assert p95(list(range(1, 11))) == pytest.approx(9.55)
    assert p95([3.0]) == 3.0


def test_the_95th_percentile_is_that_of_numpy() -> None:
    rng = np.random.default_rng(0)
    for size in range(1, 60):
        values = rng.lognormal(size=size).tolist()
        assert p95(values) == pytest.approx(float(np.percentile(values, 95)), rel=1e-12)


# The baseline's gaps are 0.1 s but for one of 0.3 among 21, above the 95th percentile; under the configuration 0.2.
def test_log_latency_ratio_by_hand() -> None:
    one = _measurement(stats=StepStats(gap_seconds=[0.2] * 21), baseline_gap_seconds=(0.3, *[0.1] * 20))
    assert one.has_gaps
    assert one.log_latency_ratio == pytest.approx(math.log(0.5))
    assert Measurement.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_a_log_from_before_gaps_were_kept_still_loads_and_claims_nothing() -> None:
    values = _measurement(footprint_bytes=7).to_json()
    for name in ("baseline_gap_seconds", "footprint_bytes"):
        del values[name]
    del values["stats"]["gap_seconds"]
    one = Measurement.from_json(values)
    assert (one.has_gaps, one.log_latency_ratio, one.footprint_bytes) == (False, 0.0, 0)
