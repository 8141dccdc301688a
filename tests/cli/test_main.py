from __future__ import annotations

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


def test_python_m_autospec_runs() -> None:
    done = subprocess.run([sys.executable, "-m", "autospec", "nothing"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "a command is one of" in done.stderr
