"""Dispatch: words of the command line -> one command, its exit code and its error messages.

Knows the commands by name only; a command's module is imported when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TextIO

from autospec import __version__
from autospec.cli.compose import Composed, compose_values, near, plain_values
from autospec.cli.faults import EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_PIPE_CLOSED, exit_code
from autospec.cli.help import COMMANDS, command_help, overview
from autospec.errors import AutospecError, AutospecWarning, ConfigError
from autospec.paths import data_dir

_HELP = ("-h", "--help")
_HYDRA_FLAGS = ("-m", "--multirun", "-c", "--cfg")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: Words after `python -m autospec`; those of the process where not given.
    """
    try:
        code = _dispatch(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        _forget_output()
        return EXIT_PIPE_CLOSED
    return code


def _forget_output() -> None:
    """Send what is still to be written to nowhere, or the interpreter complains of it when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(io.UnsupportedOperation):
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in _HELP:
        print(overview())
        return 0
    if words[0] == "--version":
        print(f"autospec {__version__}")
        return 0
    command, *rest = words
    if command not in COMMANDS:
        hint = near(command, list(COMMANDS))
        print(f"autospec: a command is one of {list(COMMANDS)}, but got {command!r}{hint}", file=sys.stderr)
        return EXIT_BAD_INPUT
    if any(word in _HELP for word in rest):
        print(command_help(command))
        return 0
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        if any(word.split("=")[0] in _HYDRA_FLAGS for word in rest):
            return _run_through_hydra(command, rest)
        return _guarded(command, lambda: compose_values(command, rest))


def _guarded(command: str, compose: Callable[[], Composed]) -> int:
    """Run a command; turn what it raises into a message and an exit code."""
    try:
        return int(importlib.import_module(f"autospec.cli.{command}").run(compose()))
    except AutospecError as error:
        print(error_message(command, error), file=sys.stderr)
        return exit_code(error)
    except KeyboardInterrupt:
        print(f"autospec {command}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def error_message(command: str, error: AutospecError) -> str:
    """Return what is printed for an error: one line, or one for each fault."""
    faults = error.faults if isinstance(error, ConfigError) else [str(error)]
    if len(faults) == 1:
        return f"autospec {command}: {faults[0]}"
    lines = ["\n    ".join(fault.splitlines()) for fault in faults]
    return "\n".join(
        [f"autospec {command}: {len(faults)} faults, nothing was started", *(f"  - {one}" for one in lines)]
    )


def _run_through_hydra(command: str, words: list[str]) -> int:
    """Let Hydra compose and sweep; the highest exit code of all jobs is that of the command.

    Hydra itself ends with 1 on the first override it cannot apply, which is bad input.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig

    codes = [0]

    @hydra.main(version_base="1.3", config_path=str(data_dir("conf")), config_name=command)
    def job(config: DictConfig) -> None:
        overrides = HydraConfig.get().overrides.task
        codes.append(_guarded(command, lambda: plain_values(config, overrides, words)))
        if codes[-1] == EXIT_INTERRUPTED:
            sys.exit(EXIT_INTERRUPTED)  # no further job of a sweep

    before, sys.argv = sys.argv, [f"autospec {command}", *words]
    try:
        job()
    except SystemExit as stopped:
        return EXIT_INTERRUPTED if stopped.code == EXIT_INTERRUPTED else EXIT_BAD_INPUT
    finally:
        sys.argv = before
    return max(codes)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if issubclass(category, AutospecWarning):
        text = f"warning: {message}\n"
    else:
        text = warnings.formatwarning(message, category, filename, lineno, line)
    (file or sys.stderr).write(text)
