from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest

import autospec
from autospec.cli import main
from autospec.cli.faults import exit_code
from autospec.cli.help import COMMANDS
from autospec.errors import (
    AutospecError,
    AutospecWarning,
    ConfigError,
    MeasurementError,
    MismatchError,
    ModelError,
    PolicyError,
    TrackingError,
    TrainingError,
    WorkloadError,
)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """In place of the module of `tune`, with a `run` to be replaced."""
    made = SimpleNamespace(run=lambda composed: 0)
    monkeypatch.setitem(sys.modules, "autospec.cli.tune", made)
    return made


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_without_a_command_the_commands_are_listed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    for name, text in COMMANDS.items():
        assert f"  {name} " in shown
        assert text.summary in shown


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help_with_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "study.trial=3", "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"usage: python -m autospec {name}" in shown
    assert shown.count(f"python -m autospec {name}") > 1
    assert "output_root: outputs" in shown


def test_help_lists_the_choices_that_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    main(["tune", "--help"])
    assert "pocket (default), pocket_complete, pocket_docs, pocket_edit" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line",
    [
        r"study\.trials: 30 +# most configurations measured",
        r"study\.patience: 20 +# trials without a rise of the best value before the search ends; 0: never",
        r"model\.drafters\.draft: pocket/draft +# distilled from the target",
        r"model\.dtype: auto +# auto: float32 on a CPU, .*",
        r"workload\.path: pocket/workload",
        r"workload\.max_prompt_tokens: null +# .*",
        r"workload\.sampling\.top_k: 0 +# 0: all tokens",
        r"tracking\.uri: null +# .*",
        r"study=quick: A first look in about two minutes\. Sets study\.trials=10, .*",
        r"experiment=smoke: .*",
        r"dry_run: false +# print the plan and stop",
    ],
)
def test_help_shows_the_settings_of_groups_with_their_comments(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["tune", "--help"])
    shown = capsys.readouterr().out
    assert re.search(rf"^  {line}", shown, re.MULTILINE)
    assert "conf/" not in shown


def test_help_says_which_settings_must_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    main(["bench", "--help"])
    shown = capsys.readouterr().out
    assert "model=custom (settings of model need a choice first)" in shown
    assert re.search(r"^  model\.target: \?\?\? +# must be given$", shown, re.MULTILINE)


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"autospec {autospec.__version__}\n"


def test_an_unknown_command_is_bad_input_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tun"]) == 2
    assert "but got 'tun'; did you mean `tune`?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (ModelError("x"), 2),
        (WorkloadError("x"), 2),
        (PolicyError("x"), 2),
        (MeasurementError("x"), 1),
        (MismatchError("x"), 1),
        (TrackingError("x"), 1),
        (TrainingError("x"), 1),
    ],
)
def test_errors_become_one_line_and_an_exit_code(
    command: SimpleNamespace, error: AutospecError, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(composed: object) -> int:
        raise error

    command.run = run
    assert main(["tune"]) == code == exit_code(error)
    assert capsys.readouterr().err == "autospec tune: x\n"


def test_several_faults_are_listed(command: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    def run(composed: object) -> int:
        raise ConfigError(["one", "two\nlines"])

    command.run = run
    assert main(["tune"]) == 2
    assert capsys.readouterr().err == "autospec tune: 2 faults, nothing was started\n  - one\n  - two\n    lines\n"


def test_ctrl_c_ends_with_130(command: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    def run(composed: object) -> int:
        raise KeyboardInterrupt

    command.run = run
    assert main(["tune"]) == 130
    assert capsys.readouterr().err == "autospec tune: interrupted\n"


def test_other_errors_are_ours_and_are_not_hidden(command: SimpleNamespace) -> None:
    def run(composed: object) -> int:
        raise ZeroDivisionError

    command.run = run
    with pytest.raises(ZeroDivisionError):
        main(["tune"])


def test_our_warnings_are_one_line(command: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    def run(composed: object) -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("made for another device", AutospecWarning, stacklevel=1)
        return 0

    command.run = run
    assert main(["tune"]) == 0
    assert capsys.readouterr().err == "warning: made for another device\n"


def test_the_module_runs_and_answers_help_without_heavy_libraries() -> None:
    code = (
        "import sys; from autospec.cli import main; main(['tune', '--help']);"
        "print(sorted({'torch', 'transformers', 'optuna', 'mlflow', 'matplotlib', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_reader_that_has_seen_enough_ends_a_command_quietly() -> None:
    code = "import sys; from autospec.cli import main; sys.exit(main(['tune', '--help']))"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert done.stderr == b""
    assert done.returncode == 141


def test_a_pipe_that_closes_while_a_command_writes_ends_it_quietly(command: SimpleNamespace) -> None:
    code = (
        "import sys; from types import SimpleNamespace; from autospec.cli import main\n"
        "def run(composed):\n"
        "    for _ in range(100_000): print('text', flush=True)\n"
        "sys.modules['autospec.cli.tune'] = SimpleNamespace(run=run)\n"
        "sys.exit(main(['tune']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(3) == b"tex"
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 141


def test_python_m_autospec_runs() -> None:
    done = subprocess.run([sys.executable, "-m", "autospec", "nothing"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "a command is one of" in done.stderr
