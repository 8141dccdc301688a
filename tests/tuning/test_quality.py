"""Lossy rules in a planted world, where what a configuration loses is as known as how fast it is."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autospec.config import SpecConfig
from autospec.errors import ConfigError
from autospec.policy import Policy
from autospec.records import Measurement, OutputQuality, Prompt, StepStats
from autospec.tuning.events import OVER_LOSS, TrialDone, Warned
from autospec.tuning.finalists import Chosen
from autospec.tuning.knobs import Choices, Knob, Range
from autospec.tuning.log import read_measurements
from autospec.tuning.pareto import pareto_set
from autospec.tuning.quality import UNKNOWN_EXCESS, LossLimit
from autospec.tuning.result import TuningResult
from autospec.tuning.run import run_task
from autospec.tuning.settings import QualitySettings
from autospec.tuning.space import SearchSpace

OFF, EXACT = SpecConfig(), SpecConfig("draft", 4)
HARMLESS = SpecConfig("draft", 4, accept_rule="margin", accept_threshold=0.9)
RUINOUS = SpecConfig("draft", 4, accept_rule="margin", accept_threshold=0.1)
SPEEDS = {EXACT: 1.5, HARMLESS: 1.8, RUINOUS: 2.5}
LIMIT = LossLimit(0.05)
Loss = Callable[[SpecConfig, Prompt], float]


def measured(config: SpecConfig, losses: dict[str, float], stage: str = "confirm", seconds: float = 0.5) -> Any:
    """Measurements on prompts named by category and number; the baseline takes 1 s for the same 10 tokens."""
    return [
        Measurement(
            config, name, name[:-1], stage, -1, 0, seconds, 1.0, 10, 10, 0.0, 0.0, StepStats(), None,
            quality=OutputQuality(-1.0 - loss, -1.0, 0.9, 1.0),
        )
        for name, loss in losses.items()
    ]  # fmt: skip


def test_the_bound_decides_and_not_the_mean() -> None:
    # Mean 0.04, deviation 0.01 x sqrt(2) of 2 prompts: bound 0.04 + 6.3138 x 0.01.
    two = measured(HARMLESS, {"a1": 0.03, "a2": 0.05})
    assert LIMIT.excess(HARMLESS, two) == pytest.approx(0.04 + 6.313751515 * 0.01 - 0.05)
    assert LossLimit(0.2).excess(HARMLESS, two) < 0.0
    assert "loses 0.040 nats per token on 2 prompts, at most 0.103; limit 0.05" in LIMIT.reason(HARMLESS, two)


def test_text_that_is_likelier_than_the_target_s_own_departs_from_it_as_well() -> None:
    likelier = measured(RUINOUS, {"a1": -0.4, "a2": -0.4})
    assert LIMIT.excess(RUINOUS, likelier) == pytest.approx(0.4 - 0.05)


def test_one_prompt_or_none_says_nothing_of_others() -> None:
    assert LIMIT.excess(HARMLESS, measured(HARMLESS, {"a1": 0.0})) == UNKNOWN_EXCESS
    assert LIMIT.excess(HARMLESS, []) == UNKNOWN_EXCESS
    assert LossLimit(None).excess(HARMLESS, measured(HARMLESS, {"a1": 0.0, "a2": 0.0})) == UNKNOWN_EXCESS


def test_lossless_rules_keep_every_limit() -> None:
    assert LossLimit(0.0).excess(EXACT, []) == LossLimit(None).excess(OFF, []) == 0.0


def test_exactly_nothing_lost_keeps_a_limit_of_nothing() -> None:
    assert LossLimit(0.0).excess(HARMLESS, measured(HARMLESS, {"a1": 0.0, "a2": 0.0})) == 0.0


def test_held_out_prompts_replace_the_overall_configuration_and_drop_a_category_s_own() -> None:
    chosen = Chosen(RUINOUS, {"a": HARMLESS, "b": RUINOUS}, fallback=EXACT)
    seen = measured(RUINOUS, {"a1": 0.5, "a2": 0.5, "b1": 0.0, "b2": 0.0})
    seen += measured(HARMLESS, {"a1": 0.2, "a2": 0.2, "b1": 0.0, "b2": 0.0})
    kept, notes = LIMIT.kept(chosen, seen)
    assert kept == Chosen(EXACT, {"b": RUINOUS}, EXACT)
    assert len(notes) == 2
    assert "takes its place" in notes[0]
    assert "of a, which falls back" in notes[1]


def test_what_was_chosen_survives_its_way_through_the_log() -> None:
    chosen = Chosen(RUINOUS, {"a": HARMLESS}, fallback=EXACT)
    assert Chosen.from_json(json.loads(json.dumps(chosen.to_json()))) == chosen
    assert chosen.without([RUINOUS]) == Chosen(EXACT, {"a": HARMLESS}, EXACT)
    assert chosen.without([RUINOUS, EXACT]) == Chosen(OFF, {"a": HARMLESS}, OFF)


def test_the_pareto_set_leaves_out_what_another_beats_in_both() -> None:
    slow = SpecConfig("draft", 2, accept_rule="margin", accept_threshold=0.5)
    partial = SpecConfig("draft", 3)
    seen = measured(RUINOUS, {"a1": 0.4, "a2": 0.6}, seconds=0.25) + measured(HARMLESS, {"a1": 0.0, "a2": -0.01})
    seen += measured(slow, {"a1": 0.1, "a2": 0.1}, seconds=0.8) + measured(partial, {"a1": 0.0}, seconds=0.1)
    seen += measured(EXACT, {"a1": 0.0, "a2": 0.0}, "search", seconds=0.9)
    rows = [(row.stage, row.config, row.is_allowed) for row in pareto_set(seen, LIMIT)]
    assert rows == [
        ("tune", EXACT, True),
        ("held-out", RUINOUS, False),
        ("held-out", HARMLESS, True),
        ("held-out", OFF, True),
    ]
    fastest = pareto_set(seen, LIMIT)[1].to_json()
    assert fastest["speedup"]["value"] == pytest.approx(4.0)
    assert (fastest["loss"], fastest["num_prompts"]) == (pytest.approx(0.5), 2)
    assert fastest["loss_bound"] == pytest.approx(0.5 + 6.313751515 * 0.1)
    assert fastest["agreement"]["value"] == pytest.approx(0.9)


def test_where_nothing_lossless_is_faster_off_is_in_the_set() -> None:
    rows = pareto_set(measured(EXACT, {"a1": 0.0, "a2": 0.0}, seconds=2.0), LIMIT)
    assert [row.config for row in rows] == [OFF]


# Whole studies


def space() -> SearchSpace:
    return SearchSpace(
        [
            Knob("drafter", Choices(("draft",))),
            Knob("draft_length", Range(4, 4, 1, False, True)),
            Knob("accept_rule", Choices(("exact", "margin"))),
            Knob("accept_threshold", Choices((0.1, 0.9))),
        ]
    )


def planted(fakes: SimpleNamespace, loss: Loss) -> Any:
    """A runner of planted speeds and losses."""

    class LossyRunner(fakes.FakeRunner):  # type: ignore[name-defined,misc]
        def measure(self, config: SpecConfig, prompt: Prompt, **where: Any) -> Measurement:
            one: Measurement = super().measure(config, prompt, **where)
            if config.accept_rule == "exact":
                return one
            own = loss(config, prompt) + 0.002 * math.sin(len(self.calls))
            return replace(one, identical=None, quality=OutputQuality(-1.0 - own, -1.0, 0.9, 1.0))

    return LossyRunner(speed=lambda config, category: SPEEDS[config])


def study(
    fakes: SimpleNamespace, folder: Path, loss: Loss, events: list[Any], limit: float = 0.05, **settings: Any
) -> TuningResult:
    task = fakes.make_task(
        folder,
        planted(fakes, loss),
        space=space(),
        on_event=events.append,
        trials=6,
        quality=QualitySettings(limit),
        **settings,
    )
    return run_task(task)


def constant(config: SpecConfig, prompt: Prompt) -> float:
    return 0.5 if config == RUINOUS else 0.01


def test_the_fastest_that_keeps_the_limit_is_chosen(fakes: SimpleNamespace, tmp_path: Path) -> None:
    events: list[Any] = []
    result = study(fakes, tmp_path, constant, events)
    assert result.confirmation.overall.config == HARMLESS
    reports = {one.report.config: one.report for one in events if isinstance(one, TrialDone)}
    assert reports[RUINOUS].reason.startswith(OVER_LOSS)
    assert reports[HARMLESS].reason == reports[EXACT].reason == ""
    stored = json.loads((tmp_path / "result.json").read_text())
    assert [SpecConfig.from_json(row["config"]) for row in stored["pareto"] if row["stage"] == "tune"] == [
        RUINOUS, HARMLESS, EXACT,
    ]  # fmt: skip
    assert [row["allowed"] for row in stored["pareto"] if row["stage"] == "tune"] == [False, True, True]
    evidence = Policy.from_json(json.loads((tmp_path / "policy.json").read_text())).rows[0].evidence
    assert evidence is not None
    assert evidence.quality.loss is not None
    assert evidence.quality.loss.value == pytest.approx(0.01, abs=0.002)
    assert evidence.quality.loss.value < evidence.quality.loss.bound < 0.05


def test_what_loses_too_much_on_held_out_prompts_falls_back_to_the_best_lossless_one(
    fakes: SimpleNamespace, tmp_path: Path
) -> None:
    events: list[Any] = []
    result = study(fakes, tmp_path, lambda config, prompt: 0.3 * prompt.prompt_id.startswith("held_out"), events)
    assert result.confirmation.overall.config == EXACT
    assert {row.config for row in result.policy.rows} == {EXACT}
    notes = [one.message for one in events if isinstance(one, Warned)]
    assert any("on held-out prompts; draft x4 exact takes its place" in note for note in notes)


def test_what_loses_too_much_in_the_final_choice_is_left_out(fakes: SimpleNamespace, tmp_path: Path) -> None:
    searched = {one.prompt_id for one in fakes.make_workload().tune[:8]}
    events: list[Any] = []
    result = study(fakes, tmp_path, lambda config, prompt: 0.3 * (prompt.prompt_id not in searched), events)
    assert result.confirmation.overall.config == EXACT
    confirmed = {one.config for one in result.measurements if one.stage == "confirm"}
    assert confirmed == {EXACT}
    assert any("in the final choice, and left out" in one.message for one in events if isinstance(one, Warned))


def test_a_front_holds_what_loses_too_much_and_the_policy_keeps_the_limit(
    fakes: SimpleNamespace, tmp_path: Path
) -> None:
    """All three take the same memory, so that the front is of speed and loss."""
    result = study(fakes, tmp_path, constant, [], objective="pareto")
    assert result.confirmation.overall.config == HARMLESS
    rows = {stage: [row for row in result.pareto if row.stage == stage] for stage in ("tune", "held-out")}
    assert [row.config for row in rows["tune"]] == [RUINOUS, HARMLESS, EXACT, OFF]
    assert [row.is_allowed for row in rows["tune"]] == [False, True, True, True]
    assert [row.config for row in rows["held-out"]] == [HARMLESS, EXACT, OFF]  # only what is allowed goes on
    assert {row.memory_bytes for row in rows["tune"]} == {24, 27}


def test_a_resumed_run_measures_no_quality_again_and_ends_the_same(fakes: SimpleNamespace, tmp_path: Path) -> None:
    first = study(fakes, tmp_path, constant, [])
    log = (tmp_path / "measurements.jsonl").read_bytes()

    def never(config: SpecConfig, prompt: Prompt) -> float:
        raise AssertionError("measured again")

    again = study(fakes, tmp_path, never, [])
    assert (tmp_path / "measurements.jsonl").read_bytes() == log
    assert again.to_json()["pareto"] == first.to_json()["pareto"]
    assert [one.quality for one in read_measurements(tmp_path / "measurements.jsonl")] == [
        one.quality for one in first.measurements
    ]


def test_without_a_named_loss_a_lossy_space_is_refused(fakes: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"quality.max_loss=NATS says how much .* but \['margin'\] are lossy"):
        fakes.make_task(tmp_path, space=space())


@pytest.mark.parametrize("limit", [-1.0, math.nan, math.inf])
def test_a_loss_must_be_a_count_of_nats(limit: float) -> None:
    with pytest.raises(ConfigError, match="`max_loss >= 0` must hold"):
        QualitySettings(limit)


def test_a_scorer_alone_judges_nothing() -> None:
    with pytest.raises(ConfigError, match="`max_loss` must be named with it"):
        QualitySettings(scorer="exact")
