"""The whole study against planted speeds: what it finds, what it leaves alone and what it survives."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from autospec.config import SpecConfig
from autospec.errors import BaselineError, ConfigError, MeasurementError
from autospec.policy import Policy
from autospec.records import Measurement, Prompt
from autospec.tuning.defaults import engine_defaults
from autospec.tuning.events import (
    Event,
    Measured,
    NoiseMeasured,
    PhaseStarted,
    PlanMade,
    StudyPlan,
    TrialDone,
    TrialReport,
    Warned,
)
from autospec.tuning.journal import open_study
from autospec.tuning.knobs import Choices, Condition, Constraint, Knob, Range
from autospec.tuning.log import read_measurements
from autospec.tuning.result import TuningResult
from autospec.tuning.run import run_task
from autospec.tuning.space import SearchSpace


def specialists(config: SpecConfig, category: str) -> float:
    """`ngram`, the longer the better, wins on code; `draft` at length 5 wins on prose."""
    if config.drafter == "ngram":
        return 1.8 + 0.05 * config.draft_length if category == "code" else 0.6
    return 1.6 * math.exp(-0.01 * (config.draft_length - 5) ** 2)


def tiny_space(*lengths: int, drafters: tuple[str, ...] = ("draft",)) -> SearchSpace:
    return SearchSpace([Knob("drafter", Choices(drafters)), Knob("draft_length", Choices(lengths))])


class Listener:
    """Keeps all events and everything a tracker is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.told: list[str] = []
        self.files: list[str] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def start(self, plan: StudyPlan) -> None:
        self.told.append("start")

    def log_trial(self, report: TrialReport) -> None:
        self.told.append(f"trial {report.number}")

    def finish(self, result: TuningResult, files: list[Path]) -> None:
        self.told.append("finish")
        assert all(path.is_file() for path in files)

    def interrupt(self, result: TuningResult, files: list[Path]) -> None:
        self.told.append("interrupt")
        self.files = [path.name for path in files]
        assert not result.finished
        assert all(path.is_file() for path in files)

    @property
    def reports(self) -> list[TrialReport]:
        return [event.report for event in self.events if isinstance(event, TrialDone)]


@pytest.fixture
def listener() -> Listener:
    return Listener()


def test_finds_the_planted_best(tmp_path: Path, fakes: SimpleNamespace):
    result = run_task(fakes.make_task(tmp_path, trials=25))
    config = result.policy.choose()
    assert config.drafter == "draft"
    assert 5 <= config.draft_length <= 7
    assert result.speedup.low > 1.8
    assert result.speedup.low < 2.0 < result.speedup.high * 1.1
    assert result.finished
    assert result.throughput.ratio == pytest.approx(result.speedup.value, rel=0.05)


@pytest.mark.parametrize("seed", range(6))
def test_off_when_nothing_pays(tmp_path: Path, fakes: SimpleNamespace, seed: int):
    runner = fakes.FakeRunner(speed=lambda config, category: 0.97, noise=0.05, prompt_spread=0.03)
    result = run_task(fakes.make_task(tmp_path, runner, trials=6, seed=seed))
    assert result.policy.choose().is_off
    assert result.policy.choose(category="code").is_off
    assert result.speedup.value == result.speedup.low == 1.0
    assert result.throughput.ratio == 1.0


def test_categories_get_different_configurations(tmp_path: Path, fakes: SimpleNamespace):
    runner = fakes.FakeRunner(speed=specialists)
    result = run_task(fakes.make_task(tmp_path, runner, trials=25))
    assert result.policy.choose(category="code").drafter == "ngram"
    assert result.policy.choose(category="prose").drafter == "draft"
    checks = {(check.category, check.other_category): check.ratio for check in result.confirmation.cross_checks}
    assert checks["code", "prose"].low > 1.0
    assert checks["prose", "code"].low > 1.0
    assert result.speedup.value > result.confirmation.overall.ratio.value


def test_the_best_of_a_category_is_searched_further(tmp_path: Path, fakes: SimpleNamespace):
    """Nobody's default is longer than 10 tokens; the best on code is 16."""
    runner = fakes.FakeRunner(speed=specialists)
    result = run_task(fakes.make_task(tmp_path, runner, trials=30))
    assert result.policy.choose(category="code").draft_length > 10


def test_trial_zero_is_the_baseline_against_itself_and_gives_the_noise(
    tmp_path: Path, fakes: SimpleNamespace, listener: Listener
):
    run_task(fakes.make_task(tmp_path, fakes.FakeRunner(noise=0.03), on_event=listener))
    first = listener.reports[0]
    assert first.number == 0
    assert first.config.is_off
    assert len(first.measurements) == 8
    noise = next(event.noise_floor for event in listener.events if isinstance(event, NoiseMeasured))
    assert 0.01 < noise < 0.07


def test_engine_defaults_come_before_the_sampler(tmp_path: Path, fakes: SimpleNamespace, listener: Listener):
    run_task(fakes.make_task(tmp_path, on_event=listener))
    assert [report.config for report in listener.reports[1:5]] == [
        SpecConfig("draft", 4),
        SpecConfig("draft", 5, stop_rule="confidence", stop_threshold=0.4),
        SpecConfig("ngram", 10, ngram_min=1, ngram_max=3),
        SpecConfig("ngram", 3, ngram_min=1, ngram_max=3),
    ]


def test_under_sampling_rejection_is_a_default_too():
    assert SpecConfig("draft", 5, accept_rule="rejection") in engine_defaults({"draft": True}, is_greedy=False)
    assert len(engine_defaults({"draft": True}, is_greedy=True)) == 2


def test_pruned_configurations_are_never_finalists(tmp_path: Path, fakes: SimpleNamespace, listener: Listener):
    run_task(fakes.make_task(tmp_path, trials=20, finalists=9, on_event=listener))
    complete = {report.config for report in listener.reports if report.state == "complete"}
    pruned = {report.config for report in listener.reports if report.state == "pruned"} - complete
    finalists = next(
        event.configs for event in listener.events if isinstance(event, PhaseStarted) and event.phase == "finalist"
    )
    assert len(pruned) > 5
    assert finalists
    assert not pruned & set(finalists)


def test_a_pruned_trial_says_when_it_was_decided(tmp_path: Path, fakes: SimpleNamespace, listener: Listener):
    run_task(fakes.make_task(tmp_path, on_event=listener))
    report = next(report for report in listener.reports if report.state == "pruned")
    assert 4 <= len(report.measurements) < 8
    assert report.reason == f"decided after {len(report.measurements)} of 8 prompts"


def test_a_duplicate_becomes_a_repeat_that_pools(tmp_path: Path, fakes: SimpleNamespace, listener: Listener):
    task = fakes.make_task(tmp_path, space=tiny_space(4, 6), trials=50, max_repeats=3, patience=0, on_event=listener)
    result = run_task(task)
    assert result.stop_reason == "space exhausted"
    repeats = Counter(report.config for report in listener.reports if not report.config.is_off)
    assert set(repeats) == {SpecConfig("draft", 4), SpecConfig("draft", 6)}
    assert max(repeats.values()) > 1
    assert max(repeats.values()) <= 3
    again = next(report for report in listener.reports if report.repeat == 1)
    first = next(report for report in listener.reports if report.config == again.config)
    pooled = [one.log_speedup for one in (*first.measurements, *again.measurements)]
    assert again.speedup is not None
    if len(again.measurements) == len(first.measurements) == 8:
        assert math.log(again.speedup.value) == pytest.approx(sum(pooled) / 16)
    found = [one for one in read_measurements(tmp_path / "measurements.jsonl") if one.stage == "search"]
    assert len({one.key for one in found}) == len(found)


def test_a_sampler_that_repeats_itself_costs_few_proposals(tmp_path: Path, fakes: SimpleNamespace):
    """Sixty configurations are all tried, though the sampler would go on proposing the best."""
    space = tiny_space(*range(1, 61))
    result = run_task(fakes.make_task(tmp_path, space=space, trials=60, max_repeats=1, patience=0))
    trials = open_study(tmp_path / "study.journal").get_trials(deepcopy=False)
    assert result.stop_reason == "trials"
    assert len(trials) <= 3 * 60


def test_the_value_told_of_a_repeat_is_the_pooled_one(tmp_path: Path, fakes: SimpleNamespace, listener: Listener):
    run_task(fakes.make_task(tmp_path, space=tiny_space(6), trials=9, max_repeats=3, on_event=listener))
    trials = open_study(tmp_path / "study.journal").get_trials(deepcopy=False)
    told = [trial.value for trial in trials if trial.state == TrialState.COMPLETE and trial.number]
    found = [one for one in read_measurements(tmp_path / "measurements.jsonl") if one.stage == "search"]
    values = [one.log_speedup for one in found if not one.config.is_off]
    assert len(told) == 3
    assert told == pytest.approx([sum(values[: 8 * count]) / (8 * count) for count in (1, 2, 3)])
    assert [report.repeat for report in listener.reports[1:]] == [0, 1, 2]


def test_a_configuration_that_fails_is_recorded_and_not_tried_again(
    tmp_path: Path, fakes: SimpleNamespace, listener: Listener
):
    runner = fakes.FakeRunner(failures={"ngram": MeasurementError("out of memory")})
    result = run_task(fakes.make_task(tmp_path, runner, trials=30, max_failures=30, on_event=listener))
    failed = [report for report in listener.reports if report.state == "failed"]
    assert {report.reason for report in failed} == {"MeasurementError: out of memory"}
    assert len({report.config for report in failed}) == len(failed) >= 2
    counts = Counter(key[0] for key in runner.calls)
    assert all(counts[report.config.config_hash] == 1 for report in failed)
    study = open_study(tmp_path / "study.journal")
    told = [trial for trial in study.get_trials(deepcopy=False) if trial.constraints.get("failed", 0.0) > 0.0]
    assert {trial.state for trial in told} == {TrialState.PRUNED}
    assert result.policy.choose().drafter == "draft"


def test_failures_are_capped(tmp_path: Path, fakes: SimpleNamespace, listener: Listener):
    runner = fakes.FakeRunner(failures={"ngram": ConfigError("not known"), "draft": MeasurementError("broken")})
    result = run_task(fakes.make_task(tmp_path, runner, trials=30, max_failures=3, on_event=listener))
    assert result.stop_reason == "3 configurations failed"
    assert result.policy.choose().is_off
    assert len([report for report in listener.reports if report.state == "failed"]) == 3


def test_a_baseline_that_fails_ends_the_run(tmp_path: Path, fakes: SimpleNamespace):
    runner = fakes.FakeRunner(failures={"": MeasurementError("no memory for the target")})
    with pytest.raises(MeasurementError, match="no memory for the target"):
        run_task(fakes.make_task(tmp_path, runner))


def test_memory_is_a_constraint(tmp_path: Path, fakes: SimpleNamespace):
    """A draft of n tokens takes 1000 n bytes; 6 would be fastest."""
    result = run_task(fakes.make_task(tmp_path, trials=20, max_memory_bytes=4000))
    assert result.policy.choose() == SpecConfig("draft", 4) or result.policy.choose().draft_length <= 4
    assert result.policy.choose().draft_length >= 3


def test_a_trial_over_memory_says_so(tmp_path: Path, fakes: SimpleNamespace, listener: Listener):
    run_task(fakes.make_task(tmp_path, trials=20, max_memory_bytes=4000, on_event=listener))
    over = [report for report in listener.reports if report.config.draft_length > 4]
    assert over
    for report in over:
        rule = f"over memory ({1000 * report.config.draft_length:,} bytes, limit 4,000 bytes)"
        assert report.reason.endswith(rule)
        assert report.reason.startswith("over memory" if report.state == "complete" else "decided after")
    assert "complete" in {report.state for report in over}
    assert not any("over memory" in report.reason for report in listener.reports if report not in over)
    assert not any(isinstance(event, Warned) for event in listener.events)


def test_a_limit_that_the_baseline_alone_breaks_is_warned_of_first(
    tmp_path: Path, fakes: SimpleNamespace, listener: Listener
):
    run_task(fakes.make_task(tmp_path, trials=3, max_memory_bytes=999, on_event=listener))
    kinds = [type(event) for event in listener.events]
    assert kinds.index(Warned) < kinds.index(TrialDone)
    (warned,) = [event for event in listener.events if isinstance(event, Warned)]
    assert "plain decoding alone takes 1,000 bytes, over `study.max_memory_bytes` of 999 bytes" in warned.message


@pytest.mark.parametrize("stage", ["finalist", "confirm"])
def test_what_fails_after_the_search_is_told_and_in_the_result(
    tmp_path: Path, fakes: SimpleNamespace, listener: Listener, stage: str
):
    runner = fakes.FakeRunner()
    measure = runner.measure

    def failing(config: SpecConfig, prompt: Prompt, **asked: Any) -> Measurement:
        if asked["stage"] == stage:
            raise MeasurementError("out of memory")
        return measure(config, prompt, **asked)  # type: ignore[no-any-return]

    runner.measure = failing
    result = run_task(fakes.make_task(tmp_path, runner, on_event=listener))
    assert result.policy.choose().is_off
    written = json.loads((tmp_path / "result.json").read_text())["failures"]
    assert written
    assert {one["stage"] for one in written} == {stage}
    assert set(written[0]) == {"config", "stage", "prompt_id", "reason"}
    assert [one["config"] for one in written] == [one.config.to_json() for one in result.failures]
    told = [event.message for event in listener.events if isinstance(event, Warned)]
    assert len(told) == len(written)
    assert all("failed in the " in message and "out of memory" in message for message in told)
    assert all("failed in the search" not in message for message in told)
    again = Listener()
    run_task(fakes.make_task(tmp_path, fakes.FakeRunner(), on_event=again))
    assert [event.message for event in again.events if isinstance(event, Warned)] == told


def test_a_baseline_that_fails_on_a_held_out_prompt_ends_the_run(tmp_path: Path, fakes: SimpleNamespace):
    runner = fakes.FakeRunner()
    measure = runner.measure

    def failing(config: SpecConfig, prompt: Prompt, **asked: Any) -> Measurement:
        if asked["stage"] == "confirm":
            raise BaselineError("prompt 'x': out of memory")
        return measure(config, prompt, **asked)  # type: ignore[no-any-return]

    runner.measure = failing
    with pytest.raises(BaselineError, match="prompt 'x'"):
        run_task(fakes.make_task(tmp_path, runner))
    again = run_task(fakes.make_task(tmp_path))
    assert again.failures == ()
    assert not again.policy.choose().is_off


def test_more_excuses_than_ties_explain_are_warned_of(tmp_path: Path, fakes: SimpleNamespace, listener: Listener):
    runner = fakes.FakeRunner()
    measure = runner.measure

    def excused(config: SpecConfig, prompt: Prompt, **asked: Any) -> Measurement:
        one = measure(config, prompt, **asked)
        first = prompt.prompt_id.endswith("-code-0") and not config.is_off
        return replace(one, num_excused=1, difference_index=3, difference_gap=5e-5) if first else one

    runner.measure = excused
    result = run_task(fakes.make_task(tmp_path, runner, trials=4, on_event=listener))
    assert 0 < result.identity.num_excused * 10_000 > result.identity.num_tokens
    (warned,) = [event for event in listener.events if isinstance(event, Warned)]
    assert "at most 1 token in 10,000 may differ by a tie of the target, but" in warned.message


def test_suggestions_that_break_a_constraint_cost_nothing(tmp_path: Path, fakes: SimpleNamespace, listener: Listener):
    space = SearchSpace(
        [Knob("drafter", Choices(("draft", "ngram"))), Knob("draft_length", Range(1, 16, 1, False, True))],
        [Constraint("drafter == 'draft' or draft_length == 3")],
    )
    run_task(fakes.make_task(tmp_path, space=space, trials=15, patience=0, on_event=listener))
    assert len(listener.reports) == 16
    assert all(report.config.drafter != "ngram" or report.config.draft_length == 3 for report in listener.reports)


def test_stops_when_it_has_converged(tmp_path: Path, fakes: SimpleNamespace):
    runner = fakes.FakeRunner(speed=lambda config, category: 1.5)
    result = run_task(fakes.make_task(tmp_path, runner, trials=40, patience=5))
    assert result.stop_reason == "converged: no better for 5 trials"
    assert 6 <= result.num_live_trials <= 12


def test_stops_when_the_time_is_over(tmp_path: Path, fakes: SimpleNamespace):
    """24 held-out and 8 tune prompts at half a second each leave little of a minute for the search."""
    runner = fakes.FakeRunner()
    result = run_task(fakes.make_task(tmp_path, runner, trials=500, minutes=1.0, patience=0))
    assert result.stop_reason == "minutes"
    assert result.wall_seconds["search"] == pytest.approx(60 * 0.55, abs=5)
    assert sum(result.wall_seconds.values()) < 60
    assert result.num_live_trials > 5


def test_a_noisy_baseline_warns_and_is_repeated(tmp_path: Path, fakes: SimpleNamespace, listener: Listener):
    run_task(fakes.make_task(tmp_path, fakes.FakeRunner(noise=0.3), trials=4, on_event=listener))
    assert any(isinstance(event, Warned) and "varies by" in event.message for event in listener.events)
    found = read_measurements(tmp_path / "measurements.jsonl")
    assert {one.repeat for one in found if one.stage == "finalist"} == {0, 1, 2}


def test_a_noisy_baseline_is_refused_under_strict(tmp_path: Path, fakes: SimpleNamespace):
    with pytest.raises(MeasurementError, match="strict measurement"):
        run_task(fakes.make_task(tmp_path, fakes.FakeRunner(noise=0.3), strict=True))


def test_held_out_prompts_are_used_once_and_only_in_the_end(tmp_path: Path, fakes: SimpleNamespace):
    run_task(fakes.make_task(tmp_path, fakes.FakeRunner(speed=specialists), trials=20))
    found = read_measurements(tmp_path / "measurements.jsonl")
    assert all(one.prompt_id.startswith("held_out") == (one.stage == "confirm") for one in found)
    assert {one.repeat for one in found if one.stage == "confirm"} == {0}
    stages = [one.stage for one in found]
    assert stages == sorted(stages, key=["search", "finalist", "confirm"].index)


def test_finalists_see_prompts_that_the_search_did_not(tmp_path: Path, fakes: SimpleNamespace):
    run_task(fakes.make_task(tmp_path))
    found = read_measurements(tmp_path / "measurements.jsonl")
    searched = {one.prompt_id for one in found if one.stage == "search"}
    assert not searched & {one.prompt_id for one in found if one.stage == "finalist"}


def test_the_plan_comes_first_and_the_tracker_hears_every_trial(
    tmp_path: Path, fakes: SimpleNamespace, listener: Listener
):
    task = fakes.make_task(tmp_path, trials=3, on_event=listener, tracker=listener)
    run_task(task)
    plan = listener.events[0]
    assert isinstance(plan, PlanMade)
    assert plan.plan.seconds_per_prompt == pytest.approx(0.5, rel=0.1)
    assert plan.plan.seconds_per_trial == pytest.approx(4.0, rel=0.1)
    assert plan.plan.decoding == "greedy"
    assert listener.told == ["start", *(f"trial {report.number}" for report in listener.reports), "finish"]
    assert len([event for event in listener.events if isinstance(event, Measured)]) == len(
        read_measurements(tmp_path / "measurements.jsonl")
    )


def test_the_same_seed_goes_the_same_way(tmp_path: Path, fakes: SimpleNamespace):
    first = run_task(fakes.make_task(tmp_path / "a", trials=14))
    second = run_task(fakes.make_task(tmp_path / "b", trials=14))
    other = run_task(fakes.make_task(tmp_path / "c", trials=14, seed=1))
    assert first.measurements == second.measurements
    assert first.measurements != other.measurements


def test_a_gaussian_process_can_search_too(tmp_path: Path, fakes: SimpleNamespace, listener: Listener):
    runner = fakes.FakeRunner(speed=lambda config, category: 1.2 + 0.05 * config.draft_length)
    space = SearchSpace([Knob("drafter", Choices(("draft",))), Knob("draft_length", Range(1, 16, 1, False, True))])
    task = fakes.make_task(tmp_path, runner, space=space, trials=14, sampler="gp", patience=0, on_event=listener)
    run_task(task)
    assert max(report.config.draft_length for report in listener.reports) == 16


def test_under_sampling_the_acceptance_rule_is_searched(tmp_path: Path, fakes: SimpleNamespace, listener: Listener):
    workload = fakes.sampled(fakes.make_workload())
    run_task(fakes.make_task(tmp_path, workload=workload, trials=10, on_event=listener))
    assert len({report.config.accept_rule for report in listener.reports}) > 1
    plan = listener.events[0]
    assert isinstance(plan, PlanMade)
    assert plan.plan.decoding == "temperature 0.8, top-p 0.95"


def interrupted_at(fakes: SimpleNamespace, count: int) -> Any:
    def hook(done: int) -> None:
        if done == count:
            raise KeyboardInterrupt

    return fakes.FakeRunner(hook=hook)


@pytest.mark.parametrize("count", [0, 5, 30, 75])
def test_ctrl_c_saves_the_best_so_far_and_the_run_goes_on(tmp_path: Path, fakes: SimpleNamespace, count: int):
    result = run_task(fakes.make_task(tmp_path, interrupted_at(fakes, count)))
    assert result.stop_reason == "interrupted"
    assert not result.finished
    assert len(result.measurements) == count
    assert result.policy.choose().is_off == (count <= 5)
    assert json.loads((tmp_path / "result.json").read_text())["finished"] is False
    again = run_task(fakes.make_task(tmp_path))
    assert again.finished
    assert again.measurements[:count] == result.measurements
    assert again.measurements == run_task(fakes.make_task(tmp_path / "whole")).measurements


@pytest.mark.parametrize("count", [0, 30])
def test_ctrl_c_is_told_to_the_tracker_with_the_files_there_are(
    tmp_path: Path, fakes: SimpleNamespace, listener: Listener, count: int
):
    run_task(fakes.make_task(tmp_path, interrupted_at(fakes, count), tracker=listener))
    assert listener.told[0] == "start"
    assert listener.told[-1] == "interrupt"
    assert "finish" not in listener.told
    assert listener.files == ["policy.json", "result.json", "measurements.jsonl", "study.journal"]


def test_ctrl_c_in_the_warm_up_is_told_with_fewer_files(tmp_path: Path, fakes: SimpleNamespace, listener: Listener):
    runner = fakes.FakeRunner()

    def interrupted(*asked: Any, **more: Any) -> Measurement:
        raise KeyboardInterrupt

    runner.measure = interrupted
    run_task(fakes.make_task(tmp_path, runner, tracker=listener))
    assert listener.told == ["interrupt"]
    assert listener.files == ["policy.json", "result.json", "measurements.jsonl"]


def test_ctrl_c_while_the_tracker_ends_leaves_the_confirmed_files(
    tmp_path: Path, fakes: SimpleNamespace, listener: Listener, monkeypatch: pytest.MonkeyPatch
):
    def hang(result: TuningResult, files: list[Path]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(listener, "finish", hang)
    with pytest.raises(KeyboardInterrupt):
        run_task(fakes.make_task(tmp_path, tracker=listener))
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["finished"] is True
    assert written["speedup"]["num_prompts"] == 24
    assert "interrupt" not in listener.told
    policy = Policy.from_json(json.loads((tmp_path / "policy.json").read_text()))
    assert not policy.choose().is_off


def test_a_space_that_has_nothing_for_this_decoding_is_refused(tmp_path: Path, fakes: SimpleNamespace):
    space = SearchSpace(
        [
            Knob("accept_rule", Choices(("exact",)), (Condition("decoding", ("sampling",)),)),
            Knob("drafter", Choices(("draft",)), (Condition("decoding", ("sampling",)),)),
            Knob("draft_length", Choices((4,))),
        ],
    )
    with pytest.raises(ConfigError, match="under greedy decoding"):
        fakes.make_task(tmp_path, space=space)
    assert fakes.make_task(tmp_path, space=space, workload=fakes.sampled(fakes.make_workload()))


def test_a_workload_without_held_out_prompts_is_refused(tmp_path: Path, fakes: SimpleNamespace):
    whole = fakes.make_workload()
    workload = type(whole)(name="half", tune=whole.tune, held_out=())
    with pytest.raises(ConfigError, match="'half' has 24 and 0"):
        fakes.make_task(tmp_path, workload=workload)


def test_a_space_that_the_decoder_cannot_run_is_refused(tmp_path: Path, fakes: SimpleNamespace):
    with pytest.raises(ConfigError, match="drafters of the decoder"):
        fakes.make_task(tmp_path, space=tiny_space(4, drafters=("drafft",)))


def test_a_folder_that_cannot_be_made_is_a_config_error(tmp_path: Path, fakes: SimpleNamespace):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can be made"):
        run_task(fakes.make_task(tmp_path / "file" / "below"))


def test_one_category_and_few_prompts_work(tmp_path: Path, fakes: SimpleNamespace):
    workload = fakes.make_workload(("only",), 3)
    result = run_task(fakes.make_task(tmp_path, workload=workload, trials=5))
    assert result.policy.choose().drafter == "draft"
    assert list(result.categories) == ["only"]


def test_the_study_is_an_ordinary_optuna_study(tmp_path: Path, fakes: SimpleNamespace):
    run_task(fakes.make_task(tmp_path, trials=5))
    study = open_study(tmp_path / "study.journal")
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    assert study.trials[0].params == {}
    assert study.best_trial.params["drafter"] == "draft"
    assert set(study.trials[1].intermediate_values) == set(range(8))
