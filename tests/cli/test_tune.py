from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from autospec import profiling
from autospec.cli import main
from autospec.cli import tune as command
from autospec.errors import MeasurementError, ModelError, TrackingError, WorkloadError
from autospec.tracking import MlflowTracker
from autospec.tuning import TuningResult
from autospec.tuning.events import PhaseStarted, PlanMade, StudyPlan
from autospec.tuning.settings import QualitySettings

QUIET = ["tracking=none", "experiment=smoke", "tracking=none"]


class FakeTune:
    """Takes the place of `tune`: tells the plan, writes a file, returns or raises what it is given."""

    def __init__(self, plan: StudyPlan, *outcomes: TuningResult | BaseException) -> None:
        self.plan, self.outcomes = plan, list(outcomes)
        self.calls: list[dict[str, Any]] = []
        self.on_call: Callable[..., None] = lambda **options: None

    def __call__(self, decoder: Any, workload: Any, space: Any, **options: Any) -> TuningResult:
        self.calls.append({"workload": workload, "space": space, **options})
        self.on_call(**options)
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
    monkeypatch.setattr(command, "load_decoder", lambda model, allow_import=(): decoder)
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


def test_an_interrupted_run_is_not_gone_on_with_by_compiled_models(
    fake: FakeTune, result: TuningResult, in_empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", sys.executable)  # any program will do: nothing is compiled
    fake.outcomes = [replace(result, finished=False), replace(result, finished=False), result]
    assert main(["tune", *QUIET]) == 130
    assert main(["tune", *QUIET, "model.compile=true"]) == 130
    first, second = _runs(in_empty_folder / "outputs")
    assert "compile: true" in (second / "config.yaml").read_text()
    assert main(["tune", *QUIET]) == 0
    assert [call["output_dir"] for call in fake.calls] == [first, second, first]


def test_whether_to_compile_is_true_or_false(
    fake: FakeTune, in_empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", *QUIET, "model.compile=maybe"]) == 2
    assert "`model.compile` must be true or false, but got 'maybe'" in capsys.readouterr().err
    assert fake.calls == []


def test_ctrl_c_before_anything_was_loaded_ends_with_130(
    fake: FakeTune, monkeypatch: pytest.MonkeyPatch, in_empty_folder: Path
) -> None:
    def interrupted(model: Any, allow_import: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "load_decoder", interrupted)
    assert main(["tune", *QUIET]) == 130
    assert list(in_empty_folder.iterdir()) == []


@pytest.mark.parametrize("dry", [True, False])
def test_threads_are_chosen_before_anything_is_measured(
    fake: FakeTune, in_empty_folder: Path, monkeypatch: pytest.MonkeyPatch, dry: bool
) -> None:
    chosen: Any = object()
    asked: list[dict[str, Any]] = []

    def choose(*_: Any, **how: Any) -> Any:
        asked.append(how)
        return chosen

    monkeypatch.setattr(command, "choose_threads", choose)
    assert main(["tune", *QUIET, "threads=auto", f"dry_run={dry}".lower()]) == 0
    assert asked == [{"keeps": not dry, "anew": False}]
    assert main(["tune", *QUIET]) == 0
    assert [call["threads"] for call in fake.calls] == [chosen, None]
    assert len(asked) == 1


def begin_under(fake: FakeTune, monkeypatch: pytest.MonkeyPatch, num_threads: int, result: TuningResult) -> list[int]:
    """Let torch have so many threads until it is told otherwise, and the next run be interrupted, once measured."""
    now = [num_threads]
    monkeypatch.setattr(torch, "get_num_threads", lambda: now[-1])
    monkeypatch.setattr(torch, "set_num_threads", now.append)
    monkeypatch.setattr(profiling, "threads_key_of", lambda decoder: "0123", raising=False)
    fake.outcomes = [replace(result, finished=False, stop_reason="interrupted"), result, result]

    def measured(**options: Any) -> None:
        value = {"machine": profiling.device_fingerprint("cpu", "float32")}
        line = json.dumps({"decision": "identity", "value": value})
        (options["output_dir"] / "measurements.jsonl").write_text(line + "\n")

    fake.on_call = measured
    return now


def test_a_run_that_chose_its_threads_goes_on_under_them_whatever_was_chosen_since(
    fake: FakeTune,
    result: TuningResult,
    in_empty_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    now, choice = begin_under(fake, monkeypatch, 1, result), [1, 2]
    monkeypatch.setattr(command, "choose_threads", lambda *_, **how: now.append(choice.pop(0)))
    assert main(["tune", *QUIET, "threads=auto"]) == 130
    now.append(2)  # as a new process may have them
    assert main(["tune", *QUIET, "threads=auto"]) == 0
    (folder,) = _runs(in_empty_folder / "outputs")
    shown = capsys.readouterr().out
    assert f"threads: 1, with which the unfinished run in {folder} was begun" in shown
    assert f"going on in {folder}" in shown
    assert now[-1] == 1
    assert main(["tune", *QUIET, "threads=auto"]) == 0  # it is finished now: chosen anew
    assert (now[-1], choice, len(_runs(in_empty_folder / "outputs"))) == (2, [], 2)


def test_a_run_of_another_number_of_threads_is_named_and_left(
    fake: FakeTune,
    result: TuningResult,
    in_empty_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = begin_under(fake, monkeypatch, 1, result)
    assert main(["tune", *QUIET]) == 130
    (folder,) = _runs(in_empty_folder / "outputs")
    now.append(2)
    assert main(["tune", *QUIET]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"the unfinished run in {folder} stays as it is" in shown
    assert "num_threads: 1 -> 2; threads=1 goes on with it" in shown
    assert main(["tune", *QUIET, "threads=1"]) == 0
    assert fake.calls[-1]["output_dir"] == folder


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
    known = "['early_exit', 'lookahead', 'ngram', 'recycling', 'suffix']"
    assert f"must name drafters of the decoder {known}, but got 'draft'" in capsys.readouterr().err
    assert fake.calls == []


def test_a_target_that_cannot_be_used_is_bad_input(
    fake: FakeTune, monkeypatch: pytest.MonkeyPatch, in_empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(model: Any, allow_import: Any) -> Any:
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


def test_a_tracker_that_cannot_be_reached_is_bad_input_before_anything_is_made(
    fake: FakeTune, in_empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", "experiment=smoke", "tracking.uri=http://127.0.0.1:9"]) == 2
    assert "http://127.0.0.1:9" in capsys.readouterr().err
    assert list(in_empty_folder.iterdir()) == []
    assert fake.calls == []


def test_a_broken_local_store_is_listed_with_the_other_faults_and_nothing_is_written(
    fake: FakeTune, in_empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = in_empty_folder / "results"
    root.mkdir()
    (root / "mlflow").write_text("not a folder")
    arguments = ["experiment=smoke", f"output_root={root}", "workload.path=/nope"]
    assert main(["tune", *arguments]) == 2
    message = capsys.readouterr().err
    assert (
        f"`tracking`: the MLflow store (or use tracking=none) needs a folder that can be made, but {root}" in message
    )
    assert "a workload must be an existing file or folder, but /nope does not exist" in message
    assert [path.name for path in root.iterdir()] == ["mlflow"]
    assert main(["tune", "experiment=smoke", f"output_root={root}"]) == 2
    assert [path.name for path in root.iterdir()] == ["mlflow"]
    assert fake.calls == []


def test_a_store_that_fails_at_last_makes_no_run(
    fake: FakeTune, in_empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: MlflowTracker) -> None:
        raise TrackingError("the schema is out of date")

    monkeypatch.setattr(MlflowTracker, "connect", refuse)
    assert main(["tune", "experiment=smoke"]) == 2
    assert not (in_empty_folder / "outputs").exists()
    assert main(["tune", "experiment=smoke", "dry_run=true"]) == 0  # a dry run makes no store
    assert list(in_empty_folder.iterdir()) == []


def _questions(folder: Path, sizes: dict[str, list[int]]) -> Path:
    """Write questions of so many characters, by category: one token each for the fake decoder."""
    rows = [
        {"id": f"{category}-{index}", "category": category, "prompt": f"{category}{index:04d}".ljust(size, "x")}
        for category, own in sizes.items()
        for index, size in enumerate(own)
    ]
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_prompts_that_do_not_fit_are_all_listed_before_anything_is_made(
    fake: FakeTune, decoder: Any, in_empty_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decoder.target.usable_length = 100
    path = _questions(tmp_path, {"a": [10, 88, 89, 10], "b": [10, 10, 200, 10]})
    arguments = [*QUIET, "workload=file", f"workload.path={path}", "workload.max_prompts_per_category=null"]
    assert main(["tune", *arguments]) == 2
    message = capsys.readouterr().err
    assert "with 12 new ones there is room for 88 and 2 prompts are longer" in message
    assert "`workload.max_prompt_tokens=88` leaves them out" in message
    assert "'a-2' (89)" in message
    assert "'b-2' (200)" in message
    assert "a-1" not in message
    assert list(in_empty_folder.iterdir()) == []
    assert fake.calls == []
    assert main(["tune", *arguments, "workload.max_new_tokens=100"]) == 2
    assert "lower `max_new_tokens`" in capsys.readouterr().err


@pytest.mark.filterwarnings("always::autospec.errors.AutospecWarning")
@pytest.mark.parametrize("limit", [88, 95, 10_000])
def test_long_prompts_can_be_left_out(
    fake: FakeTune, decoder: Any, tmp_path: Path, in_empty_folder: Path, limit: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit above what fits leaves out what does not fit."""
    decoder.target.usable_length = 100
    path = _questions(tmp_path, {"a": [10, 88, 89, 10, 10], "b": [10, 95, 200, 100]})
    arguments = [*QUIET, "workload=spec_bench", f"workload.path={path}", f"workload.max_prompt_tokens={limit}"]
    assert main(["tune", *arguments]) == 0
    workload = fake.calls[0]["workload"]
    ids = {prompt.prompt_id for prompt in (*workload.tune, *workload.held_out)}
    assert ids == {"a-0", "a-1", "a-3", "a-4"}
    message = capsys.readouterr().err
    assert "warning: left out 5 of 9 prompts, because of tokens one may have 88" in message
    assert "too few are left of b" in message


def test_a_chat_template_that_refuses_a_prompt_is_found_before_anything_is_made(
    fake: FakeTune, decoder: Any, monkeypatch: pytest.MonkeyPatch, in_empty_folder: Path, capsys: Any
) -> None:
    def refuse(self: Any, prompt: Any) -> list[int]:
        raise WorkloadError(f"the chat template must take the messages of prompt {prompt.prompt_id!r}")

    monkeypatch.setattr(type(decoder), "render", refuse)
    assert main(["tune", *QUIET]) == 2
    assert capsys.readouterr().err.count("the chat template must take") == 12  # 2 prompts x 3 categories x 2 parts
    assert main(["tune", *QUIET, "workload.max_prompt_tokens=9"]) == 2
    assert "the chat template must take" in capsys.readouterr().err
    assert list(in_empty_folder.iterdir()) == []


SAMPLED_ONLY = """knobs:
  accept_rule:
    choices: [exact, block]
    when: {decoding: sampling}
  drafter:
    choices: [draft]
    when: {decoding: sampling}
  draft_length:
    choices: [4]
"""


def test_a_space_with_nothing_for_this_decoding_is_a_fault_with_its_line(
    fake: FakeTune, tmp_path: Path, in_empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(SAMPLED_ONLY)
    assert main(["tune", *QUIET, f"search_space={space}"]) == 2
    message = capsys.readouterr().err
    assert f"{space}:9: `knobs`: knobs must leave something to try, but a draft needs a drafter" in message
    assert "(under greedy decoding)" in message
    assert list(in_empty_folder.iterdir()) == []
    assert main(["tune", *QUIET, f"search_space={space}", "workload.sampling.temperature=0.8"]) == 0


def test_a_wrong_drafter_is_listed_with_the_other_faults_of_a_space(
    fake: FakeTune, tmp_path: Path, in_empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("knobs:\n  drafter:\n    choices: [drft]\n  draft_length:\n    range: [9, 2]\n")
    assert main(["tune", *QUIET, f"search_space={space}"]) == 2
    message = capsys.readouterr().err
    assert f"{space}:3: `knobs.drafter.choices`: must name drafters of the decoder" in message
    assert "did you mean `draft`?" in message
    assert f"{space}:5: `knobs.draft_length.range`" in message


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


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["quality.max_loss=-1"], "`quality`: `max_loss >= 0` must hold, or null for lossless rules only, but got -1"),
        (["quality.scorer=exact"], "`max_loss` must be named with it"),
        (
            ["search_space=lossy"],
            "quality.max_loss=NATS says how much may be lost, but ['typical', 'lenient', ",
        ),
        (["quality.max_loss=0.1", "quality.scorer=os:getcwd"], "with `allow_import=[os]` on the command line"),
        (["quality.max_loss=0.1", "+quality.allow_import=[os]"], "on a command line it is `allow_import=[MODULE]`"),
        (["quality.max_loss=0.1", "quality.scorer=exact"], "needs a `reference` in every row of the workload"),
    ],
)
def test_what_is_wrong_with_quality_is_told_before_anything_is_made(
    overrides: list[str], message: str, fake: FakeTune, in_empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", *QUIET, *overrides]) == 2
    assert message in capsys.readouterr().err
    assert not (in_empty_folder / "outputs").exists()
    assert fake.calls == []


def test_a_named_loss_reaches_the_study(fake: FakeTune, in_empty_folder: Path) -> None:
    assert main(["tune", *QUIET, "search_space=lossy", "quality.max_loss=0.1", "quality.scorer=regex:x"]) == 0
    assert fake.calls[0]["settings"].quality == QualitySettings(0.1, "regex:x")
