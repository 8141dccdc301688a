from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autospec.cli import generate as command
from autospec.cli import main
from autospec.config import SamplingParams, SpecConfig
from autospec.policy import ModelSource, Policy
from autospec.records import StepStats


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, decoder: Any) -> Any:
    monkeypatch.setattr(command, "load_decoder", lambda model, allow_import=(): decoder)
    monkeypatch.setattr(Policy, "decoder", lambda self, device="auto", allow_import=(): decoder)
    return decoder


@pytest.fixture
def policy_file(policy: Policy, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> Path:
    policy.save(tmp_path / "policy.json")
    return tmp_path / "policy.json"


def test_text_goes_out_and_statistics_beside_it(fake: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "prompt=def f(a, b):", "config={drafter:draft,draft_length:4}", "max_new_tokens=9"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "a b\n"
    assert shown.err.splitlines() == [
        "3 tokens in 0.50 s (6.0 tok/s), 2 steps",
        "1.50 tokens per step, 1 of 4 draft tokens accepted (25%)",
        "accepted by position, given all before: 0.50 0.00",
        "time: prefill 0.00 s, draft 0.00 s, verify 0.00 s, accept 0.00 s",
    ]
    (call,) = fake.calls
    assert call["prompt"] == "def f(a, b):"
    assert call["config"] == SpecConfig(drafter="draft", draft_length=4)
    assert call["max_new_tokens"] == 9


def test_without_a_configuration_speculation_is_off(fake: Any) -> None:
    assert main(["generate", "prompt=x"]) == 0
    assert fake.calls[0]["config"] == SpecConfig()
    assert fake.calls[0]["sampling"] == SamplingParams()


def test_off_and_settings_of_sampling_are_taken(fake: Any) -> None:
    assert main(["generate", "prompt=x", "config=off", "temperature=0.8", "top_p=0.9", "seed=4", "stop=[END]"]) == 0
    assert fake.calls[0]["config"].is_off
    assert fake.calls[0]["sampling"] == SamplingParams(temperature=0.8, top_p=0.9, seed=4)
    assert fake.calls[0]["stop"] == ("END",)


def test_a_prompt_can_come_from_a_file(fake: Any, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("two\nlines", encoding="utf-8")
    assert main(["generate", f"prompt_file={tmp_path / 'prompt.txt'}"]) == 0
    assert fake.calls[0]["prompt"] == "two\nlines"


@pytest.mark.filterwarnings("ignore::autospec.errors.AutospecWarning")
def test_a_policy_decides_by_category(fake: Any, policy_file: Path) -> None:
    assert main(["generate", "prompt=x", f"policy={policy_file}", "category=talk", "seed=3"]) == 0
    (call,) = fake.calls
    assert isinstance(call["config"], Policy)
    assert call["category"] == "talk"
    assert call["sampling"] == SamplingParams(seed=3)


def test_a_category_the_policy_does_not_know_is_warned_of(
    fake: Any, policy_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "prompt=x", f"policy={policy_file}", "category=tlk"]) == 0
    message = capsys.readouterr().err
    assert "warning: the policy knows the categories ['code', 'talk'] and serves all else" in message
    assert "but got 'tlk'; did you mean `talk`?" in message
    # `code` has no row of its own, but the policy was measured on it.
    assert main(["generate", "prompt=x", f"policy={policy_file}", "category=code"]) == 0
    assert "the policy knows" not in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::autospec.errors.AutospecWarning")
def test_a_local_policy_loads_without_progress_bars(
    fake: Any, policy_file: Path, policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "HF_HUB_DISABLE_PROGRESS_BARS"
    monkeypatch.setenv(name, "")  # so that it is as before after the test
    monkeypatch.delenv(name)
    assert main(["generate", "prompt=x", f"policy={policy_file}"]) == 0
    assert os.environ[name] == "1"
    monkeypatch.delenv(name)
    replace(policy, target=ModelSource("someone/model")).save(tmp_path / "hub.json")
    assert main(["generate", "prompt=x", f"policy={tmp_path / 'hub.json'}"]) == 0
    assert name not in os.environ


@pytest.mark.filterwarnings("ignore::autospec.errors.AutospecWarning")
def test_a_policy_and_a_configuration_together_are_refused(
    fake: Any, policy_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "prompt=x", f"policy={policy_file}", "config=off"]) == 2
    assert "only one can be given" in capsys.readouterr().err


def test_all_faults_come_at_once(fake: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["prompt=", "max_new_tokens=0", "temperature=-1", "sed=3", "model=custom", "model.target=./no"]
    assert main(["generate", *arguments, f"policy={tmp_path / 'no.json'}"]) == 2
    message = capsys.readouterr().err
    for part in (
        "6 faults",
        "`generate` has no setting `sed`; did you mean `seed`?",
        "`max_new_tokens >= 1` must hold, but got 0",
        "`prompt` must hold some text, but it is empty",
        "no.json cannot be used as a policy",
        "`0 <= temperature <= 100` must hold, but got -1.0",
        "`model.target`: a model path must be an existing folder, but `./no` is not there",
    ):
        assert part in message
    assert fake.calls == []


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ([], 'one of prompt="TEXT" and prompt_file=PATH must be given, and not both'),
        (["prompt=x", "prompt_file=y"], 'one of prompt="TEXT" and prompt_file=PATH must be given, and not both'),
        (["prompt_file=/nowhere/x"], "`prompt_file` must be a readable text file"),
        (["prompt=x", "config=of"], "`config`: a configuration is off or a table"),
        (["prompt=x", "config={draft_length:4}"], "`config`: a draft needs a drafter"),
        (["prompt=x", "config={drafter:draft,draftlength:4}"], "['draftlength']; did you mean `draft_length`?"),
        (["prompt=x", "config={drafter:drft,draft_length:4}"], "but got 'drft'; did you mean `draft`?"),
    ],
)
def test_what_cannot_work_is_refused(
    fake: Any, arguments: list[str], fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", *arguments]) == 2
    assert fault in capsys.readouterr().err
    assert fake.calls == []


def test_statistics_of_plain_decoding_name_no_drafts() -> None:
    lines = command.statistics(StepStats(num_new_tokens=4, num_steps=3, total_seconds=2.0))
    assert lines[0] == "4 tokens in 2.00 s (2.0 tok/s), 3 steps"
    assert len(lines) == 2
