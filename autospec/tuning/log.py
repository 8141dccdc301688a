"""The crash-safe record of a run: one JSON line for everything measured, failed or decided, in the order it happened.

A line is on the disk before anything else is done with it, and never changed. One process holds the file at a time.
Knows no study; readers that want only the measurements use `read_measurements`.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autospec.config import SpecConfig
from autospec.errors import ConfigError, MeasurementError
from autospec.records import Measurement

MEASUREMENTS_FILE = "measurements.jsonl"
Key = tuple[str, str, str, int]
_STAGES = {
    "search": "the search",
    "finalist": "the final choice",
    "confirm": "the confirmation",
    "situation": "the choice for a batch or a length",
    "situation_confirm": "the judgement of a batch or a length",
}
_LINE_ERRORS = (ValueError, TypeError, KeyError, MeasurementError)


@dataclass(frozen=True, slots=True)
class Failure:
    """A configuration that could not be measured; it is not measured again where that would fail as well.

    One that failed alone fails in every batch. One that failed beside others, for lack of memory or in what a drafter
    does for several rows, fails in larger batches, and says nothing of smaller ones.

    Args:
        config: Which.
        prompt_id: Where it failed.
        stage: `search`, `finalist` or `confirm`.
        trial: Number of the trial.
        reason: What went wrong.
        num_outputs: Prompts that were decoded side by side.
    """

    config: SpecConfig
    prompt_id: str
    stage: str
    trial: int
    reason: str
    num_outputs: int = 1

    def __str__(self) -> str:
        where = _STAGES.get(self.stage, self.stage)
        beside = f" and {self.num_outputs - 1} beside it" if self.num_outputs > 1 else ""
        return f"{self.config.short()} failed in {where}, on prompt {self.prompt_id!r}{beside}: {self.reason}"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**asdict(self), "config": self.config.to_json()}


def cut_torn_line(path: Path) -> int:
    """Cut what follows the last line end of a file, and return how many bytes that were.

    A process that is killed while it writes leaves part of a line; the next append would join it and spoil both.
    """
    if not path.is_file():
        return 0
    with path.open("r+b") as file:
        content = file.read()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            file.truncate(end)
            os.fsync(file.fileno())
    return len(content) - end


class MeasurementLog:
    """`measurements.jsonl`: open, look up, append.

    Args:
        path: The file; made where it is missing.

    Raises:
        ConfigError: Another process holds the file, or it cannot be opened.
        MeasurementError: A line cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("ab")
        except OSError as error:
            raise ConfigError(f"measurements must go to a file that can be written, but {path}: {error}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise ConfigError(f"one process may tune in a folder at a time, but {path} is held by another") from error
        cut_torn_line(path)
        self.measurements: list[Measurement] = []
        self.failures: list[Failure] = []
        self._decisions: dict[str, Any] = {}
        self._by_key: dict[Key, Measurement] = {}
        try:
            self._read()
        except BaseException:
            self.close()
            raise
        self.num_logged = len(self.measurements)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def find(self, config: SpecConfig, prompt_id: str, stage: str, repeat: int) -> Measurement | None:
        """Return a measurement that was already made, or None."""
        return self._by_key.get((config.config_hash, prompt_id, stage, repeat))

    def failure_of(self, config: SpecConfig, num_outputs: int = 1) -> Failure | None:
        """Return why a configuration cannot be measured with so many prompts side by side, or None."""
        known = (one for one in self.failures if one.config == config)
        return next((one for one in known if one.num_outputs <= num_outputs), None)

    def append(self, measurement: Measurement) -> None:
        """Add a measurement.

        Raises:
            MeasurementError: It was made before.
        """
        self._check_new(measurement)
        self._write(measurement.to_json())
        self._add(measurement)

    def append_failure(self, failure: Failure) -> None:
        """Add a failure."""
        self._write({"failure": failure.to_json()})
        self.failures.append(failure)

    def decide(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return what was decided under this name; decide and record it if it was not, so that it stays so.

        Args:
            name: What is decided.
            compute: Returns JSON values.
        """
        if name not in self._decisions:
            self.record(name, compute())
        return self._decisions[name]

    def record(self, name: str, value: Any) -> None:
        """Record a decision, once."""
        assert name not in self._decisions, name
        self._write({"decision": name, "value": value})
        self._decisions[name] = value

    def decision(self, name: str) -> Any:
        """Return what was decided under this name, or None."""
        return self._decisions.get(name)

    def _write(self, values: dict[str, Any]) -> None:
        line = json.dumps(values, separators=(",", ":"), allow_nan=False) + "\n"
        self._file.write(line.encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self) -> None:
        for number, line in enumerate(self.path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                self._take(json.loads(line))
            except _LINE_ERRORS as error:
                raise _bad_line(self.path, number, error) from error

    def _take(self, values: dict[str, Any]) -> None:
        if "failure" in values:
            fields = dict(values["failure"])
            self.failures.append(Failure(SpecConfig.from_json(fields.pop("config")), **fields))
        elif "decision" in values:
            self._decisions[values["decision"]] = values["value"]
        else:
            measurement = Measurement.from_json(values)
            self._check_new(measurement)
            self._add(measurement)

    def _check_new(self, measurement: Measurement) -> None:
        if measurement.key in self._by_key:
            raise MeasurementError(f"a measurement must be made once, but {measurement.key} was made twice")

    def _add(self, measurement: Measurement) -> None:
        self._by_key[measurement.key] = measurement
        self.measurements.append(measurement)


def read_decision(path: Path, name: str) -> Any:
    """Return what was decided under a name; None where it was not, or where there is no such file or it is damaged."""
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                values = json.loads(line)
                if isinstance(values, dict) and values.get("decision") == name:
                    return values.get("value")
    except (OSError, ValueError):
        return None
    return None


def read_measurements(path: str | Path) -> list[Measurement]:
    """Return all measurements of a file, without its failures and decisions; a torn last line is left out.

    Raises:
        MeasurementError: The file cannot be read.
    """
    path = Path(path)
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MeasurementError(f"measurements must be in a readable file, but {path}: {error}") from error
    measurements = []
    for number, line in enumerate(content[: content.rfind("\n") + 1].splitlines(), start=1):
        try:
            values = json.loads(line)
            if "failure" not in values and "decision" not in values:
                measurements.append(Measurement.from_json(values))
        except _LINE_ERRORS as error:
            raise _bad_line(path, number, error) from error
    return measurements


def _bad_line(path: Path, number: int, error: Exception) -> MeasurementError:
    rule = f"a line must be a measurement, a failure or a decision, but: {error!r}"
    return MeasurementError(f"{path}:{number}: {rule}")
