"""What each objective makes of measurements, and whole studies that look for latency or for a front."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autospec.config import SpecConfig
from autospec.errors import ConfigError
from autospec.policy import Policy
from autospec.records import Measurement, OutputQuality, StepStats
from autospec.tuning.events import OVER_MEMORY, Event, TrialDone, TrialReport, Warned
from autospec.tuning.finalists import Chosen, pick_finalists, spread_over
from autospec.tuning.goals import GOALS
from autospec.tuning.journal import open_study
from autospec.tuning.pareto import pareto_configs
from autospec.tuning.pool import Leaderboard, Pool
from autospec.tuning.quality import LossLimit
from autospec.tuning.result import TuningResult
from autospec.tuning.run import run_task
from autospec.tuning.settings import OBJECTIVES
from autospec.yardsticks import DECISIVE, LATENCY, SPEED

LATENCY_GOAL, FRONT = GOALS["p95_inter_token_latency"], GOALS["pareto"]
DRAFT, NGRAM = SpecConfig("draft", 6), SpecConfig("ngram", 4)


def measured(config: SpecConfig, prompt_id: str, speed: float, gap: float = 0.1, size: int = 0) -> Measurement:
    """Ten tokens against ten in a second, one every 0.1 s; 24 MB of them for the target."""
    return Measurement(
        config, prompt_id, "code", "search", 1, 0, 1.0 / speed, 1.0, 10, 10, 0, 0,
        StepStats(gap_seconds=[gap] * 5), True, baseline_gap_seconds=(0.1,) * 9,
        footprint_bytes=size, baseline_footprint_bytes=24, peak_memory_bytes=500,
    )  # fmt: skip


def lossy(one: Measurement, loss: float) -> Measurement:
    config = replace(one.config, accept_rule="lenient", accept_threshold=0.5)
    return replace(one, config=config, quality=OutputQuality(-1.0 - loss, -1.0, 0.9, 1.0))


def test_every_objective_has_a_goal_that_what_decides_fits() -> None:
    assert tuple(GOALS) == OBJECTIVES
    assert {name: goal.yardstick for name, goal in GOALS.items()} == DECISIVE


def test_values_of_a_trial() -> None:
    both = [measured(DRAFT, "a", 2.0, size=27), measured(DRAFT, "b", 2.0, size=28)]
    assert LATENCY_GOAL.values(0.3, both) == (0.3,)
    assert FRONT.values(0.3, both) == (0.3, 0.0, 28.0)
    assert FRONT.values(0.3, [lossy(one, -0.02) for one in both]) == (0.3, pytest.approx(0.02), 28.0)
    assert len(FRONT.values(0.0, both)) == len(FRONT.directions)
    assert (LATENCY_GOAL.prunes, FRONT.prunes) == (True, False)


def test_memory_is_the_footprint_only_where_it_is_weighed() -> None:
    both = [measured(DRAFT, "a", 2.0, size=27), measured(DRAFT, "b", 2.0, size=28)]
    assert FRONT.memory_bytes(both) == 28
    assert LATENCY_GOAL.memory_bytes(both) == 500


# Speed 3 for 28, 2 for 27, 1.5 for 28 (beaten by both), 1.2 for 24 (beats off, which takes 24 at 1), 0.8 for 24.
def test_a_front_leaves_out_what_another_beats_in_speed_and_memory() -> None:
    figures = {1: (3.0, 28), 2: (2.0, 27), 3: (1.5, 28), 4: (1.2, 24), 5: (0.8, 24)}
    configs = {length: SpecConfig("draft", length) for length in figures}
    seen = [
        measured(configs[length], prompt, speed, size=memory)
        for length, (speed, memory) in figures.items()
        for prompt in ("a", "b")
    ]
    assert FRONT.front(configs.values(), seen) == (configs[1], configs[2], configs[4])
    allowed = [configs[length] for length in (2, 3, 5)]  # the fastest breaks a limit: what it beats comes back
    assert FRONT.front(allowed, seen) == (configs[2],)
    assert LATENCY_GOAL.front(configs.values(), seen) == ()
    assert FRONT.front((), seen) == FRONT.front(configs.values(), []) == ()


def test_a_slower_configuration_stays_where_it_loses_less() -> None:
    seen = [one for prompt in ("a", "b") for one in (
        lossy(measured(DRAFT, prompt, 3.0, size=27), 0.1), measured(DRAFT, prompt, 2.0, size=27),
        lossy(measured(NGRAM, prompt, 1.5, size=27), 0.05),
    )]  # fmt: skip
    configs = {one.config for one in seen}
    assert pareto_configs(configs, seen, FRONT.axes) == (seen[0].config, DRAFT)


def test_finalists_are_spread_over_a_front() -> None:
    configs = [SpecConfig("draft", length) for length in range(1, 8)]
    assert spread_over(configs, 3) == (configs[0], configs[3], configs[6])
    assert spread_over(configs, 1) == (configs[0],)
    assert spread_over(configs[:2], 3) == tuple(configs[:2])
    assert spread_over((), 3) == ()


def test_a_front_goes_on_beside_the_best(fakes: SimpleNamespace) -> None:
    prompts = fakes.make_workload(("one",), 2).tune
    figures = {1: 3.0, 2: 2.9, 3: 2.8, 4: 1.1}
    pool = Pool(
        measured(SpecConfig("draft", n), one.prompt_id, speed) for n, speed in figures.items() for one in prompts
    )
    board = Leaderboard(pool, prompts)
    for length in figures:
        board.enter(SpecConfig("draft", length))
    front = [SpecConfig("draft", 1), SpecConfig("draft", 4)]
    assert pick_finalists(board, 2, front).overall == tuple(SpecConfig("draft", n) for n in (1, 2, 4))


def test_what_is_measured_beside_the_chosen_is_never_used() -> None:
    chosen = Chosen(DRAFT, {}, beside=(NGRAM, DRAFT))
    assert chosen.configs == (DRAFT, NGRAM)
    assert Chosen.from_json(chosen.to_json()) == chosen
    assert chosen.without([NGRAM]).beside == (DRAFT,)
    assert chosen.of_category("code") == DRAFT
    kept, _ = LossLimit(None).kept(chosen, [])
    assert kept.beside == chosen.beside


WAITS = {"draft": 0.010, "ngram": 0.0035}


def reports_of(events: Sequence[Event]) -> list[TrialReport]:
    return [event.report for event in events if isinstance(event, TrialDone)]


def speeds(config: SpecConfig, category: str) -> float:
    """`draft` is the fastest, `ngram` takes no memory of its own and still pays."""
    return 2.0 * math.exp(-0.02 * (config.draft_length - 6) ** 2) if config.drafter == "draft" else 1.3


def stored(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def test_the_shortest_latency_is_found_although_it_is_not_the_fastest(fakes: SimpleNamespace, tmp_path: Path) -> None:
    """`ngram` waits less than plain decoding, the less the shorter its drafts; `draft` is twice as fast and waits."""
    events: list[Event] = []
    runner = fakes.FakeRunner(gaps=WAITS, speed=speeds)
    settings = {"objective": "p95_inter_token_latency", "trials": 20, "patience": 0}
    result = run_task(fakes.make_task(tmp_path, runner, on_event=events.append, **settings))
    config = result.policy.choose()
    assert config.drafter == "ngram"
    assert config.draft_length <= 4
    waits, speed = result.by(LATENCY).ratio, result.by(SPEED).ratio
    assert waits.value == pytest.approx(5.0 / (3.5 * (1 + 0.01 * config.draft_length)), rel=0.02)
    assert waits.low > 1.0
    assert waits == result.confirmation.ratio
    assert speed.value == pytest.approx(1.3, rel=0.05)
    assert result.latency.baseline_seconds == pytest.approx(0.005, rel=0.03)
    assert result.latency.seconds == pytest.approx(0.005 / waits.value, rel=0.03)
    given_up = [one.speedup for one in reports_of(events) if one.state == "pruned"]
    assert any(one is not None and one.value > 1.8 for one in given_up)  # fast, and pruned for how long it waits


def test_a_result_by_latency_shows_both(fakes: SimpleNamespace, tmp_path: Path) -> None:
    runner = fakes.FakeRunner(gaps=WAITS, speed=speeds)
    result = run_task(fakes.make_task(tmp_path, runner, objective="p95_inter_token_latency", trials=8))
    values = stored(tmp_path)
    assert values["objective"] == "p95_inter_token_latency"
    assert values["p95_inter_token_latency"]["ratio"] == result.confirmation.ratio.to_json()
    assert set(values["p95_inter_token_latency"]["categories"]) == set(values["categories"]) == {"code", "prose"}
    assert values["speedup"]["value"] == pytest.approx(1.3, rel=0.05)
    assert values["overall_speedup"]["num_prompts"] == values["speedup"]["num_prompts"] == 24
    assert set(values["bootstrap"]) == {"p95_latency_ratio", "categories", "overall_p95_latency_ratio"}
    claim = values["claims"]["overall configuration"]
    assert claim["value"] == pytest.approx(values["p95_inter_token_latency"]["overall"]["value"])
    evidence = Policy.from_json(json.loads((tmp_path / "policy.json").read_text())).rows[0].evidence
    assert evidence is not None
    assert evidence.objective == "p95_inter_token_latency"
    assert evidence.p95_latency_ratio == result.confirmation.overall.ratio
    assert evidence.speedup.value == pytest.approx(1.3, rel=0.05)


def test_off_is_the_answer_where_all_speculation_waits_longer(fakes: SimpleNamespace, tmp_path: Path) -> None:
    runner = fakes.FakeRunner(gaps={**WAITS, "ngram": 0.0055}, speed=speeds)
    result = run_task(fakes.make_task(tmp_path, runner, objective="p95_inter_token_latency", trials=10))
    assert result.policy.choose().is_off
    assert [one.ratio.value for one in result.comparisons] == [1.0, 1.0]
    assert result.latency.seconds == result.latency.baseline_seconds > 0.0
    assert stored(tmp_path)["p95_inter_token_latency"]["categories"]["code"]["value"] == 1.0


def test_a_study_of_speed_shows_latency_beside_it(fakes: SimpleNamespace, tmp_path: Path) -> None:
    runner = fakes.FakeRunner(gaps={**WAITS, "ngram": 0.0055}, speed=speeds)
    result = run_task(fakes.make_task(tmp_path, runner, trials=10))
    assert result.policy.choose().drafter == "draft"
    length = result.policy.choose().draft_length
    assert result.by(LATENCY).ratio.value == pytest.approx(0.5 / (1 + 0.01 * length), rel=0.02)
    evidence = result.policy.rows[0].evidence
    assert evidence is not None
    assert (evidence.objective, evidence.speedup) == ("tokens_per_second", result.confirmation.overall.ratio)
    assert evidence.p95_latency_ratio is not None
    assert evidence.p95_latency_ratio.value < 0.6


def test_a_front_is_measured_to_the_end_and_its_fastest_is_the_policy(fakes: SimpleNamespace, tmp_path: Path) -> None:
    events: list[Event] = []
    runner = fakes.FakeRunner(speed=speeds)
    result = run_task(fakes.make_task(tmp_path, runner, objective="pareto", trials=16, on_event=events.append))
    assert {one.state for one in reports_of(events)} == {"complete"}
    assert result.policy.choose().drafter == "draft"
    assert abs(result.policy.choose().draft_length - 6) <= 1
    fronts = {stage: [row for row in result.pareto if row.stage == stage] for stage in ("tune", "held-out")}
    for rows in fronts.values():
        assert [row.config.drafter for row in rows] == ["draft", "ngram"]  # off takes as much as `ngram` and is slower
        assert [row.memory_bytes for row in rows] == [27, 24]
        assert [round(row.speedup.value, 1) for row in rows] == [2.0, 1.3]
    assert fronts["held-out"][0].config == result.policy.choose()
    confirmed = {one.config for one in result.measurements if one.stage == "confirm"}
    assert fronts["held-out"][1].config in confirmed
    assert set(result.confirmation.claims) == {
        "overall configuration", "overall configuration in code", "overall configuration in prose",
    }  # fmt: skip
    written = [(row["stage"], row["memory_bytes"], row["loss"], row["allowed"]) for row in stored(tmp_path)["pareto"]]
    assert written == [(stage, size, 0.0, True) for stage in fronts for size in (27, 24)]


def test_optuna_is_told_all_three_values(fakes: SimpleNamespace, tmp_path: Path) -> None:
    run_task(fakes.make_task(tmp_path, fakes.FakeRunner(speed=speeds), objective="pareto", trials=6))
    study = open_study(tmp_path / "study.journal", FRONT.directions)
    told = [trial for trial in study.get_trials(deepcopy=False) if trial.values]
    assert len(told) == 7
    assert all(not trial.intermediate_values for trial in told)
    for trial in told[1:]:
        assert trial.values[1:] == [0.0, {"draft": 27.0, "ngram": 24.0}[trial.params["drafter"]]]
    assert told[0].values == [pytest.approx(0.0, abs=0.05), 0.0, 24.0]


def test_the_fastest_that_keeps_the_memory_is_chosen(fakes: SimpleNamespace, tmp_path: Path) -> None:
    events: list[Event] = []
    runner = fakes.FakeRunner(speed=speeds)
    settings = {"objective": "pareto", "trials": 12, "max_memory_bytes": 25}
    result = run_task(fakes.make_task(tmp_path, runner, on_event=events.append, **settings))
    assert result.policy.choose().drafter == "ngram"
    over = [one for one in reports_of(events) if one.config.drafter == "draft"]
    assert over
    assert all(one.reason == f"{OVER_MEMORY} (27 bytes, limit 25 bytes)" for one in over)
    tune = [(row.config.drafter, row.is_allowed) for row in result.pareto if row.stage == "tune"]
    assert tune == [("draft", False), ("ngram", True)]


def test_plain_decoding_over_the_memory_is_said(fakes: SimpleNamespace, tmp_path: Path) -> None:
    events: list[Event] = []
    runner = fakes.FakeRunner(speed=speeds)
    settings = {"objective": "pareto", "trials": 3, "max_memory_bytes": 20}
    result = run_task(fakes.make_task(tmp_path, runner, on_event=events.append, **settings))
    assert result.policy.choose().is_off
    (said,) = [one.message for one in events if isinstance(one, Warned) and "plain decoding alone" in one.message]
    assert "24 bytes" in said
    assert "weights and caches of what a configuration runs" in said


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_sampler_takes_three_values_past_its_startup(fakes: SimpleNamespace, tmp_path: Path, sampler: str) -> None:
    runner = fakes.FakeRunner(speed=speeds)
    settings = {"objective": "pareto", "trials": 10, "patience": 0, "sampler": sampler}
    result = run_task(fakes.make_task(tmp_path, runner, **settings))
    assert result.num_live_trials == 11
    assert result.policy.choose().drafter == "draft"


@pytest.mark.parametrize("objective", ["p95_inter_token_latency", "pareto"])
def test_a_run_cut_short_anywhere_goes_the_same_way(fakes: SimpleNamespace, tmp_path: Path, objective: str) -> None:
    small = {"objective": objective, "trials": 6, "prompts_per_trial": 4, "finalists": 2, "finalist_prompts": 4}

    def task(folder: Path, hook: Any = lambda count: None) -> Any:
        runner = fakes.FakeRunner(gaps=WAITS, speed=speeds, hook=hook)
        return fakes.make_task(folder, runner, **small, workload=fakes.make_workload(per_category=4)), runner

    whole, runner = task(tmp_path / "whole")
    expected = run_task(whole).to_json()
    del expected["wall_seconds"]
    for stop_at in range(3, len(runner.calls), 7):

        def stop(count: int, at: int = stop_at) -> None:
            if count == at:
                raise KeyboardInterrupt

        folder = tmp_path / str(stop_at)
        first, before = task(folder, stop)
        assert not run_task(first).finished
        second, after = task(folder)
        found = run_task(second).to_json()
        del found["wall_seconds"]
        assert [*before.calls, *after.calls] == runner.calls
        assert found == expected


def test_the_objective_is_part_of_what_a_run_is(fakes: SimpleNamespace, tmp_path: Path) -> None:
    identities = [fakes.make_task(tmp_path, objective=name).identity() for name in OBJECTIVES]
    assert [one["settings"]["objective"] for one in identities] == list(OBJECTIVES)


def test_latency_needs_a_second_token(fakes: SimpleNamespace, tmp_path: Path) -> None:
    workload = replace(fakes.make_workload(), max_new_tokens=1)
    fakes.make_task(tmp_path, workload=workload)
    with pytest.raises(ConfigError, match=r"`study\.objective=p95_inter_token_latency` needs `max_new_tokens >= 2`"):
        fakes.make_task(tmp_path, workload=workload, objective="p95_inter_token_latency")


def test_an_interrupted_study_by_latency_says_what_it_knows(fakes: SimpleNamespace, tmp_path: Path) -> None:
    def stop(count: int) -> None:
        if count == 45:
            raise KeyboardInterrupt

    runner = fakes.FakeRunner(gaps=WAITS, speed=speeds, hook=stop)
    result: TuningResult = run_task(fakes.make_task(tmp_path, runner, objective="p95_inter_token_latency"))
    assert not result.finished
    assert result.policy.choose().drafter == "ngram"
    assert result.by(LATENCY).ratio.value > 1.2
    assert result.by(SPEED).ratio.value == pytest.approx(1.3, rel=0.05)
    assert result.by(SPEED).overall == result.by(SPEED).ratio
