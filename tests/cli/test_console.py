from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from autospec.cli.console import Terminal, minutes, ratio, table
from autospec.cli.narration import Narrator, plan_lines, trial_line
from autospec.cli.summary import summary_lines
from autospec.comparison import Estimate
from autospec.config import SpecConfig
from autospec.cost_model import AcceptanceModel
from autospec.cost_model.acceptance import ClassifierScore
from autospec.engine.calibration import AcceptanceCalibration
from autospec.records import Measurement, Prompt
from autospec.tuning import StudyPlan, TrialReport, TuningResult
from autospec.tuning.calibrating import Calibrated
from autospec.tuning.events import Guided, Measured, NoiseMeasured, PhaseStarted, PlanMade, TrialDone, Warned
from autospec.tuning.log import Failure
from autospec.tuning.pareto import ParetoRow
from autospec.tuning.predicted import Predicted
from autospec.tuning.result import TokenIdentity
from autospec.yardsticks import LATENCY

DRAFT4 = SpecConfig(drafter="draft", draft_length=4)


@pytest.fixture
def report(measurement: Callable[..., Measurement], prompts: tuple[Prompt, ...]) -> TrialReport:
    return TrialReport(
        number=4,
        config=DRAFT4,
        state="pruned",
        params={},
        measurements=[measurement(DRAFT4, prompt, 1.5, "search") for prompt in prompts],
        estimates={"speedup": Estimate(1.5, 1.4, 1.61, 6), "p95_latency_ratio": Estimate(0.8, 0.7, 0.9, 6)},
        repeat=0,
        reason="decided after 6 prompts",
        best_config=SpecConfig(drafter="ngram", draft_length=8),
        best_ratio=1.75,
        num_trials=3,
    )


def _told(events: list[object], is_terminal: bool = False) -> str:
    file = io.StringIO()
    with Terminal(Console(file=file, force_terminal=is_terminal, width=60, soft_wrap=True)) as terminal:
        narrator = Narrator(terminal)
        for event in events:
            narrator(event)  # type: ignore[arg-type]
    return file.getvalue()


def test_the_plan_names_models_device_space_trials_and_the_arithmetic(plan: StudyPlan) -> None:
    text = "\n".join(plan_lines(plan))
    for part in (
        "pocket/target",
        "draft = pocket/draft, ngram",
        "cpu, float32: A Processor, 2 cores, 2 threads",
        "pocket (code, talk), greedy, 48 new tokens",
        "1,234 configurations",
        "objective   tokens_per_second",
        "up to 30, sampler tpe, seed 0",
        "0.50 s for a prompt with its baseline x 12 prompts = 6.0 s a trial at most",
        "search 3.0 min at most (30 trials and the baseline's: 3.1 min)",
        "choice on 24 prompts, confirmation on 48: 1.5 min",
        "estimated 4.5 minutes, budget 5 minutes",
    ):
        assert part in text
    assert "resumed" not in text


def test_a_plan_says_that_models_are_compiled(plan: StudyPlan) -> None:
    assert "compiled" not in "\n".join(plan_lines(plan))
    assert "  device      cpu, float32, compiled: A Processor" in "\n".join(plan_lines(replace(plan, compile=True)))


def test_a_resumed_plan_says_what_is_there_already(plan: StudyPlan) -> None:
    text = "\n".join(plan_lines(replace(plan, num_logged=17, space_size=None, search_seconds=math.inf)))
    assert "17 measurements are in the log already" in text
    assert "more than can be counted" in text
    assert "no limit at most" in text


def test_a_trial_is_one_line(report: TrialReport) -> None:
    line = trial_line(report, 30)
    assert line.split("  ")[0].strip() == "" or line.strip().startswith("3/30")
    for part in (
        "3/30",
        "draft x4 exact",
        "15.0 tok/s",
        "1.50x [1.40, 1.61]",
        "pruned (decided after 6 prompts)",
        "best 1.75x ngram x8 n1-3 exact",
    ):
        assert part in line
    assert "\n" not in line


def test_a_trial_over_memory_is_not_called_complete(report: TrialReport) -> None:
    over = replace(report, state="complete", reason="over memory (2.10 GB, limit 2.00 GB)")
    assert "  over memory (2.10 GB, limit 2.00 GB)  best" in trial_line(over, 30)
    both = replace(report, reason="decided after 6 prompts; over memory (2.10 GB, limit 2.00 GB)")
    assert "pruned (decided after 6 prompts; over memory (2.10 GB, limit 2.00 GB))" in trial_line(both, 30)


def test_the_baselines_own_trial_and_repeats_are_marked(report: TrialReport) -> None:
    baseline = replace(report, number=0, config=SpecConfig(), best_config=SpecConfig(), reason="", state="complete")
    assert trial_line(baseline, 30).strip().startswith("baseline")
    assert trial_line(baseline, 30).endswith("best off")
    assert "draft x4 exact (again, 2)" in trial_line(replace(report, repeat=1), 30)
    assert trial_line(replace(report, estimates={}), 30).split("tok/s")[1].split()[0] == "-"


def test_a_study_is_told_in_plain_lines_where_there_is_no_terminal(
    plan: StudyPlan, report: TrialReport, measurement: Callable[..., Measurement], prompts: tuple[Prompt, ...]
) -> None:
    events = [
        PlanMade(plan),
        PhaseStarted("search", 10),
        Measured(measurement(DRAFT4, prompts[0], 1.5)),
        NoiseMeasured(0.0213),
        TrialDone(report),
        Warned("something"),
        PhaseStarted("finalist", 4, (DRAFT4,)),
        PhaseStarted("confirm", 0),
    ]
    text = _told(events)
    assert "\x1b" not in text
    lines = text.splitlines()
    assert "noise of one timing (baseline against itself): 2.1%" in lines
    assert trial_line(report, 30) in lines
    assert "warning: something" in lines
    assert "  draft x4 exact" in lines
    assert lines[-1] == "  nothing: no configuration is left"


def test_what_is_predicted_says_which_steps_are_expected() -> None:
    drawn = replace(DRAFT4, accept_rule="block")
    lines = _told([Guided(1200, 1000, ((drawn, 1.5), (DRAFT4, 1.25)), 0.012, 300, (drawn,))]).splitlines()
    assert lines == [
        "priced 1,000 of 1,200 configurations, 300 of them by expected steps; 200 others only measuring can tell; "
        "noise of a profiled step 1.2%",
        "  predicted 1.50x  draft x4 block (expected)",
        "  predicted 1.25x  draft x4 exact",
    ]
    (first, *_) = _told([Guided(1200, 1000, (), 0.012, num_left=200)]).splitlines()
    assert first == (
        "priced 1,000 of 1,200 configurations; 200 were left, because recording their drafts takes too long; "
        "noise of a profiled step 1.2%"
    )
    (first, *_) = _told([Guided(10, 10, (), 0.012)]).splitlines()
    assert first == "priced 10 of 10 configurations; noise of a profiled step 1.2%"


def test_a_terminal_gets_a_progress_bar(plan: StudyPlan) -> None:
    text = _told([PlanMade(plan), PhaseStarted("search", 10)], is_terminal=True)
    assert "\x1b[" in text
    assert "0/10" in text


def test_nothing_to_confirm_is_no_progress_bar() -> None:
    text = _told([PhaseStarted("search", 10), PhaseStarted("confirm", 0)], is_terminal=True)
    assert "0/10" in text
    assert "0/0" not in text
    assert "nothing: no configuration is left" in text


def test_text_in_brackets_is_printed_as_it_is() -> None:
    file = io.StringIO()
    with Terminal(Console(file=file)) as terminal:
        terminal.line("[red]1.5x[/red] [1.4, 1.6] " + "x" * 200)
    assert file.getvalue() == "[red]1.5x[/red] [1.4, 1.6] " + "x" * 200 + "\n"


def test_the_summary_shows_figures_by_category_and_what_the_policy_holds(result: TuningResult, tmp_path: Path) -> None:
    lines = list(summary_lines(result, tmp_path))
    (talk,) = [line for line in lines if line.startswith("  talk ") and "tok" not in line and "[" in line]
    assert talk.split()[:4] == ["talk", "3", "10.0", "40.0"]
    assert "faster" in talk
    text = "\n".join(lines)
    assert "result, on held-out prompts" in text
    assert "on talk, ngram x8 n1-3 exact is 1.50x [1.20, 1.90] of code's draft x4 exact: faster" in text
    assert "the policy holds\n  all              draft x4 exact\n  talk             ngram x8 n1-3 exact\n" in text
    assert "6 of 6 outputs" in text
    assert "noise of one timing 2.1%; 9 trials" in text
    assert lines[-1] == f"policy: {tmp_path / 'policy.json'}"


def test_the_summary_shows_what_did_not_decide_beside_what_did(result: TuningResult, tmp_path: Path) -> None:
    text = "\n".join(summary_lines(result, tmp_path))
    assert "looked for: tokens_per_second" in text
    assert "p95 inter-token latency: 4.00 -> 5.00 ms, by prompt 0.80x [0.70, 0.90]" in text
    assert "did not decide" not in text
    assert "memory" not in text
    other = replace(result, objective="p95_inter_token_latency")
    text = "\n".join(summary_lines(other, tmp_path))
    assert "looked for: p95_inter_token_latency" in text
    assert re.search(r"p95 latency ratio +verdict", text)
    assert "speedup, which did not decide: 2.83x [2.50, 3.20]" in text


def test_the_summary_of_a_front_shows_every_member(result: TuningResult, tmp_path: Path) -> None:
    rows = (
        ParetoRow("held-out", DRAFT4, Estimate(1.9, 1.7, 2.1, 6), None, True, 26_600_000),
        ParetoRow("held-out", SpecConfig(), Estimate(1.0, 1.0, 1.0, 6), None, True, 24_400_000),
    )
    lines = list(summary_lines(replace(result, objective="pareto", pareto=rows), tmp_path))
    start = lines.index(
        "speed, quality and memory: what nothing else beats in all of them (figures of tune prompts flatter)"
    )
    assert lines[start + 3].split() == [
        "held-out",
        "6",
        "1.90x",
        "[1.70,",
        "2.10]",
        "none",
        "26.6",
        "MB",
        "yes",
        "draft",
        "x4",
        "exact",
    ]
    assert lines[start + 4].split()[5:8] == ["none", "24.4", "MB"]


def test_a_trial_that_speed_does_not_decide_shows_both(report: TrialReport) -> None:
    line = trial_line(replace(report, yardstick=LATENCY), 30)
    assert "1.50x [1.40, 1.61]" in line
    assert "p95 latency ratio 0.80x [0.70, 0.90]" in line
    assert "p95" not in trial_line(report, 30)


def test_the_summary_of_off_says_so(off_result: TuningResult, tmp_path: Path) -> None:
    text = "\n".join(summary_lines(off_result, tmp_path))
    assert "speculation off: no configuration beat plain decoding" in text
    assert "as plain decoding" in text
    assert "faster" not in text


def test_the_summary_of_off_says_what_failed(off_result: TuningResult, tmp_path: Path) -> None:
    late = Failure(DRAFT4, "p9", "confirm", -1, "MeasurementError: out of memory")
    text = "\n".join(summary_lines(replace(off_result, failures=(late,)), tmp_path))
    assert "no configuration beat" not in text
    assert "speculation off: failed after the search: draft x4 exact; see below" in text
    assert "  draft x4 exact failed in the confirmation, on prompt 'p9': MeasurementError: out of memory" in text
    early = replace(late, stage="search", trial=3)
    text = "\n".join(summary_lines(replace(off_result, failures=(early,)), tmp_path))
    assert "no configuration beat" not in text
    assert "speculation off: 1 configurations failed, see below; none of the others beat plain decoding" in text
    assert "failed in the search, on prompt 'p9'" in text


def test_the_summary_tells_of_divergence(result: TuningResult, tmp_path: Path) -> None:
    identity = TokenIdentity(40, 400, 1, 3, median_gap=0.012, largest_gap=0.25)
    text = "\n".join(summary_lines(replace(result, identity=identity), tmp_path))
    assert "diverge from plain decoding's: 10.0%" in text
    assert "median 1.2e-02, largest 2.5e-01" in text
    text = "\n".join(summary_lines(replace(result, identity=TokenIdentity(40, 400, 0, 0)), tmp_path))
    assert "diverge" not in text


def test_the_summary_of_an_interrupted_run_claims_nothing_held_out(result: TuningResult, tmp_path: Path) -> None:
    text = "\n".join(summary_lines(replace(result, finished=False), tmp_path))
    assert "tune prompts of the search, not confirmed" in text


def test_columns_are_aligned() -> None:
    assert table([["a", "number"], ["long", "1"], ["x", "22"]], right=(1,)) == [
        "a     number",
        "----  ------",
        "long       1",
        "x         22",
    ]


def test_ratios_and_times_in_words() -> None:
    assert ratio(Estimate(1.5, 1.25, 1.75, 3)) == "1.50x [1.25, 1.75]"
    assert ratio(Estimate(1.5, 0.0, math.inf, 1)) == "1.50x [0.00, inf]"
    assert ratio(Estimate(1.5, 0.0, 1e9, 1)) == "1.50x [0.00, >100]"
    assert ratio(None) == "-"
    assert (minutes(3.14), minutes(90), minutes(math.inf)) == ("3.1 s", "1.5 min", "no limit")


def test_the_summary_says_how_good_chances_of_acceptance_are(result: TuningResult, tmp_path: Path) -> None:
    scores = [ClassifierScore(loss, 0.1, 0.0, None) for loss in (0.4, 0.5, 0.6)]
    model = AcceptanceModel(AcceptanceCalibration(0.0), 100, 6, *scores)
    known = (Calibrated("draft", model), Calibrated("early_exit", None, "too little"))
    predicted = Predicted(10, 10, 0, None, 0.01, (), (), known)
    lines = [line for line in summary_lines(replace(result, predicted=predicted), tmp_path) if "chances" in line]
    assert lines == [
        "chances of acceptance of draft, which stop_rule cost_aware reads: log loss 0.400 on prompts left out, "
        "0.600 of their constant rate"
    ]
