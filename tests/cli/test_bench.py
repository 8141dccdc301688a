from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autospec.cli import bench as command
from autospec.cli import main
from autospec.cli.faults import Faults
from autospec.config import SamplingParams, SpecConfig
from autospec.errors import BaselineError, MeasurementError
from autospec.policy import ModelSource, Policy
from autospec.records import Measurement, Prompt

SMALL = ["workload.max_prompts_per_category=2", "workload.max_new_tokens=4"]


class FakeRunner:
    """Twice as fast under any draft; interrupted at a given call."""

    def __init__(self, measurement: Callable[..., Measurement]) -> None:
        self.measurement = measurement
        self.num_calls, self.interrupt_at, self.fails = 0, -1, False

    def measure(self, config: SpecConfig, prompt: Prompt, *, stage: str, trial: int, repeat: int) -> Measurement:
        self.num_calls += 1
        if self.num_calls == self.interrupt_at:
            raise KeyboardInterrupt
        if self.fails:
            raise MeasurementError("out of memory")
        return self.measurement(
            config, prompt, (1.0 if config.is_off else 2.0) + 0.001 * self.num_calls, stage, repeat
        )


@pytest.fixture
def runner(
    monkeypatch: pytest.MonkeyPatch, decoder: Any, measurement: Callable[..., Measurement], in_empty_folder: Path
) -> FakeRunner:
    made = FakeRunner(measurement)
    monkeypatch.setattr(command, "load_decoder", lambda model, allow_import=(): decoder)
    monkeypatch.setattr(command, "make_runner", lambda decoder, workload: made)
    return made


@pytest.fixture
def policy_file(policy: Policy, tmp_path: Path) -> Path:
    policy.save(tmp_path / "policy.json")
    return tmp_path / "policy.json"


def _document() -> dict[str, Any]:
    (path,) = Path("outputs/bench").glob("*/bench.json")
    return dict(json.loads(path.read_text()))


@pytest.mark.filterwarnings("ignore::autospec.errors.AutospecWarning")
def test_policies_and_configurations_are_compared(
    runner: FakeRunner, policy_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"policies=[{policy_file}]", "configs=[off,{drafter:draft,draft_length:4}]", "repeats=3"]
    assert main(["bench", *arguments, *SMALL]) == 0
    shown = capsys.readouterr().out
    assert "against plain decoding" in shown
    assert "against each other" in shown
    document = _document()
    assert [one["name"] for one in document["contenders"]] == [str(policy_file), "off", "draft x4 exact"]
    assert {one["category"] for one in document["against_baseline"]} == {"all", "complete", "docs", "edit"}
    assert document["repeats"] == 3
    assert document["compile"] is False
    assert document["workload"]["split"] == "held_out"
    (folder,) = Path("outputs/bench").iterdir()
    lines = (folder / "measurements.jsonl").read_text().splitlines()
    # The policy knows none of these categories, so its row for all, draft x4, is shared.
    assert len(lines) == 2 * 6 * 3
    assert (folder / "config.yaml").is_file()


def test_ctrl_c_saves_what_there_is(runner: FakeRunner, capsys: pytest.CaptureFixture[str]) -> None:
    runner.interrupt_at = 6
    assert main(["bench", "configs=[{drafter:draft,draft_length:4}]", *SMALL]) == 130
    document = _document()
    assert document["interrupted"] is True
    assert document["contenders"][0]["num_measurements"] == 5
    assert "interrupted, partial result" in capsys.readouterr().out


def test_where_everything_fails_the_exit_code_says_so(runner: FakeRunner, capsys: pytest.CaptureFixture[str]) -> None:
    runner.fails = True
    assert main(["bench", "configs=[{drafter:draft,draft_length:4}]", *SMALL]) == 1
    assert "taken out: out of memory" in capsys.readouterr().out


def test_all_faults_come_at_once_and_nothing_is_made(
    runner: FakeRunner, capsys: pytest.CaptureFixture[str], in_empty_folder: Path
) -> None:
    configs = "configs=[{drafter:drft,draft_length:4},of,{draft_length:99}]"
    assert main(["bench", configs, "policies=[no.json]", "repeats=0", "workload.path=no.jsonl", "splt=tune"]) == 2
    message = capsys.readouterr().err
    for part in (
        "`bench` has no setting `splt`; did you mean `split`?",
        "`repeats >= 1` must hold, but got 0",
        "`configs[1]`: a configuration is off or a table",
        "`configs[2]`: `0 <= draft_length <= 64` must hold",
        "no.json cannot be used as a policy",
        "no.jsonl",
        "`drafter` must be one of ['draft', 'early_exit', 'lookahead', 'ngram', 'recycling', 'suffix'], "
        "but got 'drft'; did you mean `draft`?",
    ):
        assert part in message
    assert list(in_empty_folder.iterdir()) == []


@pytest.mark.filterwarnings("always::autospec.errors.AutospecWarning")
def test_prompts_that_do_not_fit_are_refused_or_left_out(
    runner: FakeRunner, decoder: Any, in_empty_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decoder.target.usable_length = 50
    rows = [json.dumps({"id": str(size), "prompt": "x" * size}) for size in (5, 6, 7, 47)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    arguments = ["configs=[off]", "workload=file", f"workload.path={tmp_path / 'rows.jsonl'}"]
    assert main(["bench", *arguments, "workload.max_new_tokens=4"]) == 2
    assert "'47' (47)" in capsys.readouterr().err
    assert list(in_empty_folder.iterdir()) == []
    assert main(["bench", *arguments, "workload.max_new_tokens=4", "workload.max_prompt_tokens=46"]) == 0
    assert "left out 1 of 4 prompts" in capsys.readouterr().err


def test_a_baseline_that_fails_is_the_fault_of_no_contender(
    runner: FakeRunner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: SpecConfig, prompt: Prompt, **asked: Any) -> Measurement:
        raise BaselineError("plain decoding must be possible")

    monkeypatch.setattr(runner, "measure", fail)
    assert main(["bench", "configs=[{drafter:draft,draft_length:4}]", *SMALL]) == 1
    shown = capsys.readouterr()
    assert shown.err == "autospec bench: plain decoding must be possible\n"
    assert "taken out" not in shown.out


def test_an_unknown_field_of_a_configuration_gets_the_nearest(
    runner: FakeRunner, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "configs=[{drafter:draft,draft_lenght:4}]", *SMALL]) == 2
    message = capsys.readouterr().err
    assert "`configs[0]`: SpecConfig takes only" in message
    assert "but got ['draft_lenght']; did you mean `draft_length`?" in message


def test_nothing_to_compare_is_refused(runner: FakeRunner, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench"]) == 2
    assert "something to compare must be given" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::autospec.errors.AutospecWarning")
def test_policies_for_different_models_are_refused(
    runner: FakeRunner, policy: Policy, policy_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drafters = {**policy.drafters, "draft": ModelSource("ngram")}
    replace(policy, target=ModelSource("pocket/draft"), drafters=drafters).save(tmp_path / "other.json")
    assert main(["bench", f"policies=[{policy_file},{tmp_path / 'other.json'}]", *SMALL]) == 2
    message = capsys.readouterr().err
    assert "all policies must be for one target, pocket/target (float32)" in message
    assert "a drafter's name must mean one model in all policies, but 'draft' is pocket/draft" in message


def test_models_are_compiled_as_all_policies_say(policy: Policy) -> None:
    compiled = replace(policy, compile=True)
    faults = Faults()
    assert command._policies_model({"a": policy}, faults).compile is False
    assert command._policies_model({"a": compiled, "b": compiled}, faults).compile is True
    assert faults.found == []
    command._policies_model({"a": compiled, "b.json": policy}, faults)
    assert faults.found == [
        "all policies must be for models compiled alike, compile=True, but b.json is for compile=False; name the "
        "models to use with model=custom"
    ]


def test_the_policies_tokenizer_is_loaded_and_must_be_one(policy: Policy) -> None:
    named = replace(policy, tokenizer=ModelSource("pocket/draft"))
    faults = Faults()
    assert command._policies_model({"a": named}, faults).tokenizer == "pocket/draft"
    assert command._policies_model({"a": policy}, faults).tokenizer is None
    assert faults.found == []
    command._policies_model({"a": named, "b.json": policy}, faults)
    assert faults.found == [
        "all policies must be for one tokenizer, pocket/draft, but b.json is for the target's own; name the models to "
        "use with model=custom"
    ]


@pytest.mark.filterwarnings("ignore:.*(is not|measured on|made).*:autospec.errors.AutospecWarning")
def test_a_policy_tuned_for_other_decoding_is_measured_with_a_warning(
    runner: FakeRunner, policy: Policy, tmp_path: Path
) -> None:
    path = tmp_path / "sampled.json"
    replace(policy, sampling=SamplingParams(temperature=0.8)).save(path)
    with pytest.warns(UserWarning, match="was tuned for SamplingParams.*but is measured under"):
        command.run(command_values([f"policies=[{path}]", *SMALL]))


def test_what_changes_the_output_is_flagged(runner: FakeRunner, capsys: pytest.CaptureFixture[str]) -> None:
    configs = "configs=[{drafter:draft,draft_length:4,accept_rule:typical},{drafter:draft,draft_length:4}]"
    assert main(["bench", configs, *SMALL]) == 0
    flagged = [line for line in capsys.readouterr().out.splitlines() if "is lossy" in line]
    assert len(flagged) == 1
    assert flagged[0].startswith("draft x4 typical")
    assert [one["is_lossless"] for one in _document()["contenders"]] == [False, True]


def command_values(overrides: list[str]) -> Any:
    from autospec.cli.compose import compose_values

    return compose_values("bench", overrides)
