from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autospec.cli import main
from autospec.cli import tune as command
from autospec.errors import MeasurementError, ModelError
from autospec.tuning import TuningResult
from autospec.tuning.events import PhaseStarted, PlanMade, StudyPlan

QUIET = ["tracking=none", "experiment=smoke", "tracking=none"]


class FakeTune:
    """Takes the place of `tune`: tells the plan, writes a file, returns or raises what it is given."""

    def __init__(self, plan: StudyPlan, *outcomes: TuningResult | BaseException) -> None:
        self.plan, self.outcomes = plan, list(outcomes)
        self.calls: list[dict[str, Any]] = []

    def __call__(self, decoder: Any, workload: Any, space: Any, **options: Any) -> TuningResult:
        self.calls.append({"workload": workload, "space": space, **options})
        options["on_event"](PlanMade(self.plan))
        options["on_event"](PhaseStarted("search", 3))
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        (options["output_dir"] / "policy.json").write_text("{}")
        return outcome


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, decoder: Any, plan: StudyPlan, result: TuningResult) -> FakeTune:
    made = FakeTune(plan, result, result, result)
    monkeypatch.setattr(command, "load_decoder", lambda model: decoder)
    monkeypatch.setattr(command, "tune", made)
    monkeypatch.setattr(command, "_draw", lambda folder, tracker: None)
    return made


def _runs(root: Path) -> list[Path]:
    return sorted((root / "tune").iterdir())


def test_a_run_prints_plan_and_summary_and_marks_its_folder_finished(
    fake: FakeTune, in_empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", *QUIET, "study.trials=7"]) == 0
    (folder,) = _runs(in_empty_folder / "outputs")
    assert json.loads((folder / "run.json").read_text())["finished"] is True
    assert "trials: 7" in (folder / "config.yaml").read_text()
    shown = capsys.readouterr().out
    assert shown.index("plan") < shown.index("result, on held-out prompts") < shown.index(f"{folder}/policy.json")
    (call,) = fake.calls
    assert call["settings"].trials == 7
    assert call["command"] == "python -m autospec tune tracking=none experiment=smoke tracking=none study.trials=7"


def test_the_answer_off_is_a_success(
    fake: FakeTune, off_result: TuningResult, in_empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.outcomes = [off_result]
    assert main(["tune", *QUIET]) == 0
    assert "speculation off" in capsys.readouterr().out


def test_ctrl_c_ends_with_130_and_the_same_command_goes_on_in_the_same_folder(
    fake: FakeTune, result: TuningResult, in_empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.outcomes = [replace(result, finished=False, stop_reason="interrupted"), result, result]
    assert main(["tune", *QUIET]) == 130
    assert "the same command goes on with this run" in capsys.readouterr().out
    (first,) = _runs(in_empty_folder / "outputs")
    assert (first / "policy.json").exists()
    assert main(["tune", *QUIET]) == 0
    assert f"going on in {first}" in capsys.readouterr().out
    assert [call["output_dir"] for call in fake.calls] == [first, first]
    assert main(["tune", *QUIET]) == 0
    assert len(_runs(in_empty_folder / "outputs")) == 2


@pytest.mark.parametrize(
    "change", ["resume=false", "study.trials=9", "workload.max_new_tokens=7", "search_space=chain"]
)
def test_another_configuration_starts_anew(
    fake: FakeTune, result: TuningResult, in_empty_folder: Path, change: str
) -> None:
    fake.outcomes = [replace(result, finished=False), result]
    assert main(["tune", *QUIET]) == 130
    assert main(["tune", *QUIET, change]) == 0
    assert len(_runs(in_empty_folder / "outputs")) == 2


def test_ctrl_c_before_anything_was_loaded_ends_with_130(
    fake: FakeTune, monkeypatch: pytest.MonkeyPatch, in_empty_folder: Path
) -> None:
    def interrupted(model: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "load_decoder", interrupted)
    assert main(["tune", *QUIET]) == 130
    assert list(in_empty_folder.iterdir()) == []


def test_a_dry_run_tells_the_plan_and_leaves_nothing(
    fake: FakeTune, in_empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", *QUIET, "dry_run=true"]) == 0
    shown = capsys.readouterr().out
    assert "1,234 configurations" in shown
    assert "dry run" in shown
    assert "search: one line" not in shown
    assert list(in_empty_folder.iterdir()) == []
    assert not fake.calls[0]["output_dir"].exists()


def test_all_faults_come_in_one_message_and_nothing_is_written(
    in_empty_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty.jsonl").touch()
    space = tmp_path / "space.yaml"
    space.write_text("knobs:\n  drafter:\n    choices: [draft]\n  draft_length:\n    range: [9, 2]\n")
    arguments = [
        "study.trials=abc",
        "study.minutes=-1",
        "study.trail=3",
        "tracking=mlfow",
        "model.target=./nowhere",
        "model.drafters.draft=../nowhere/else",
        f"workload.path={tmp_path / 'empty.jsonl'}",
        f"search_space={space}",
        f"output_root={tmp_path / 'file' / 'below'}",
    ]
    assert main(["tune", *arguments]) == 2
    message = capsys.readouterr().err
    for part in (
        "9 faults, nothing was started",
        "`tune` has no setting `study.trail`",
        "`tracking` must be one of ['mlflow', 'none'], but got 'mlfow'; did you mean `mlflow`?",
        "`study.trials` must be an integer, but got 'abc'",
        "`minutes >= 0` must hold, but got -1.0",
        "a workload must hold at least one prompt",
        "space.yaml:5",
        "`model.target`: a model path must be an existing folder, but `./nowhere` is not there",
        "`model.drafters.draft`: a model path must be an existing folder",
        f"`output_root` must be a folder or possible to make, but {tmp_path / 'file'} is a file",
    ):
        assert part in message
    assert list(in_empty_folder.iterdir()) == []
    assert (tmp_path / "file").read_bytes() == b""


def test_a_space_with_a_drafter_that_is_not_there_is_a_fault_before_loading(
    fake: FakeTune, in_empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", *QUIET, "model.drafters.draft=null"]) == 2
    assert "must name drafters of the decoder ['ngram'], but got 'draft'" in capsys.readouterr().err
    assert fake.calls == []


def test_a_target_that_cannot_be_used_is_bad_input(
    fake: FakeTune, monkeypatch: pytest.MonkeyPatch, in_empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(model: Any) -> Any:
        raise ModelError("every layer must use the KV cache, but `x` leaves it unused")

    monkeypatch.setattr(command, "load_decoder", refuse)
    assert main(["tune", *QUIET]) == 2
    assert capsys.readouterr().err == "autospec tune: every layer must use the KV cache, but `x` leaves it unused\n"
    assert list(in_empty_folder.iterdir()) == []


def test_a_failed_measurement_ends_with_1_and_can_be_gone_on_with(
    fake: FakeTune, result: TuningResult, in_empty_folder: Path
) -> None:
    fake.outcomes = [MeasurementError("the baseline is too noisy"), result]
    assert main(["tune", *QUIET]) == 1
    assert main(["tune", *QUIET]) == 0
    assert len(_runs(in_empty_folder / "outputs")) == 1


def test_a_tracker_that_cannot_be_reached_ends_with_1_before_anything_is_made(
    fake: FakeTune, in_empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", "experiment=smoke", "tracking.uri=http://127.0.0.1:9"]) == 1
    assert "http://127.0.0.1:9" in capsys.readouterr().err
    assert list(in_empty_folder.iterdir()) == []


def test_multirun_runs_every_combination(fake: FakeTune, in_empty_folder: Path) -> None:
    assert main(["tune", "--multirun", "experiment=smoke", "tracking=none", "study.trials=1,2"]) == 0
    assert [call["settings"].trials for call in fake.calls] == [1, 2]
    assert [path.name for path in in_empty_folder.iterdir()] == ["outputs"]


def test_multirun_stops_at_ctrl_c(fake: FakeTune, result: TuningResult, in_empty_folder: Path) -> None:
    fake.outcomes = [replace(result, finished=False), result]
    assert main(["tune", "--multirun", "experiment=smoke", "tracking=none", "study.trials=1,2"]) == 130
    assert len(fake.calls) == 1


def test_multirun_with_an_unknown_override_is_bad_input(fake: FakeTune, in_empty_folder: Path) -> None:
    assert main(["tune", "--multirun", "study.trail=1,2"]) == 2
    assert fake.calls == []


def test_cfg_prints_the_configuration_and_runs_nothing(
    fake: FakeTune, in_empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", "--cfg", "job", "study.trials=5"]) == 0
    assert "trials: 5" in capsys.readouterr().out
    assert fake.calls == []
    assert list(in_empty_folder.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_root_without_permission_is_bad_input(fake: FakeTune, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert main(["tune", *QUIET, f"output_root={tmp_path / 'below'}"]) == 2
