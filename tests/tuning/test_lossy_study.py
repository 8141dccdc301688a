"""Real small studies on the embedded models: a rule that accepts everything is rejected, a harmless one is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from autospec import pocket
from autospec.config import SpecConfig
from autospec.engine.decoder import SpeculativeDecoder
from autospec.records import Workload
from autospec.tuning.entry import tune
from autospec.tuning.events import OVER_LOSS, Event, TrialDone, TrialReport
from autospec.tuning.knobs import Choices, Knob, Range
from autospec.tuning.objective import Objective
from autospec.tuning.quality import LossLimit
from autospec.tuning.settings import QualitySettings, StudySettings
from autospec.tuning.space import SearchSpace
from autospec.workloads import WorkloadSource, load_workload

# Greedily a lenient rule keeps what has at least this share of the probability of the target's first choice.
ANYTHING, HARMLESS = 1e-12, 1.0
SETTINGS = StudySettings(
    trials=2,
    minutes=0.0,
    prompts_per_trial=6,
    finalists=1,
    finalist_prompts=3,
    quality=QualitySettings(max_loss=0.05),
)


@pytest.fixture(autouse=True)
def _no_trial_ends_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """After one prompt nothing bounds a loss, and a machine's speed would decide whether a trial ends there."""
    monkeypatch.setattr(Objective, "_is_over", lambda *_: False)


@pytest.fixture(scope="module")
def decoder() -> SpeculativeDecoder:
    return SpeculativeDecoder.from_pretrained(pocket.target_path(), {"draft": pocket.draft_path()})


@pytest.fixture(scope="module")
def workload() -> Workload:
    return load_workload(WorkloadSource(pocket.workload_path(), max_prompts_per_category=2, max_new_tokens=12))


def reports_of(
    decoder: SpeculativeDecoder, workload: Workload, threshold: float, folder: Path
) -> tuple[list[TrialReport], SpecConfig]:
    """What the trials of one configuration were told, and what was chosen."""
    space = SearchSpace(
        [
            Knob("drafter", Choices(("draft",))),
            Knob("draft_length", Range(6, 6, 1, False, True)),
            Knob("accept_rule", Choices(("lenient",))),
            Knob("accept_threshold", Choices((threshold,))),
        ]
    )
    reports: list[TrialReport] = []

    def on_event(event: Event) -> None:
        if isinstance(event, TrialDone):
            reports.append(event.report)

    result = tune(decoder, workload, space, output_dir=folder, settings=SETTINGS, on_event=on_event)
    return reports[1:], result.confirmation.overall.config


def test_a_rule_that_accepts_everything_is_rejected(
    decoder: SpeculativeDecoder, workload: Workload, tmp_path: Path
) -> None:
    reports, chosen = reports_of(decoder, workload, ANYTHING, tmp_path)
    assert chosen.is_off
    assert reports
    for report in reports:
        assert report.quality is not None
        assert report.quality.loss is not None
        assert report.quality.loss.value > 0.2
        assert OVER_LOSS in report.reason
        assert report.best_config.is_off
    accepted = [one.stats for report in reports for one in report.measurements]
    assert all(one.num_accepted == one.num_drafted for one in accepted)  # it does accept everything


def test_a_harmless_lossy_rule_is_accepted(decoder: SpeculativeDecoder, workload: Workload, tmp_path: Path) -> None:
    reports, _ = reports_of(decoder, workload, HARMLESS, tmp_path)
    assert reports
    for report in reports:
        assert OVER_LOSS not in report.reason
        assert LossLimit(0.05).excess(report.config, report.measurements) <= 0.0
        assert all(one.quality is not None and abs(one.quality.loss) < 0.01 for one in report.measurements)
