"""Output folders that can be gone on with: `run.json` says what a run is, whether it has ended and who is at it.

Knows hashes and processes; not what is measured.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from autospec.paths import new_output_dir

RUN_FILE = "run.json"
CONFIG_FILE = "config.yaml"
_CLOCK_SLACK_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class RunKey:
    """What must be the same for a run to be gone on with."""

    config_hash: str
    workload_hash: str
    device_hash: str

    @property
    def of_any_device(self) -> dict[str, str]:
        """The fields but for the device, of which the number of threads is a part."""
        return {"config_hash": self.config_hash, "workload_hash": self.workload_hash}


def config_hash(values: Mapping[str, Any], without: tuple[str, ...] = ()) -> str:
    """Return sixteen hexadecimal digits of composed values, some top-level names left out."""
    kept = {name: value for name, value in values.items() if name not in without}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def write_config(folder: Path, values: Mapping[str, Any]) -> None:
    """Write the composed configuration of a run, all references resolved."""
    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")


def open_run(root: Path, command: str, key: RunKey, resume: bool) -> tuple[Path, bool]:
    """Return the folder of the newest unfinished run with this key, or a new one, and whether it is resumed.

    A run that another living process is at is left alone.

    Raises:
        ConfigError: A new folder cannot be made.
    """
    folder = next(unfinished_runs(root, command, asdict(key)), None) if resume else None
    resumed = folder is not None
    folder = folder or new_output_dir(root, command)
    _write(folder, key, finished=False)
    return folder, resumed


def finish_run(folder: Path, key: RunKey) -> None:
    """Mark a run as ended: it is not gone on with again."""
    _write(folder, key, finished=True)


def unfinished_runs(root: Path, command: str, wanted: Mapping[str, str]) -> Iterator[Path]:
    """Yield the folders of unfinished runs that no other living process is at, the newest first.

    Args:
        root: The folder of all outputs.
        command: Which command's runs.
        wanted: The fields of a `RunKey` that must be the same.
    """
    candidates = (root / command).glob(f"*/{RUN_FILE}")
    for path in sorted(candidates, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        try:
            run = json.loads(path.read_text())
        except (OSError, ValueError):
            continue  # torn by a crash before anything was measured: nothing to go on with
        if isinstance(run, dict) and {**run, **wanted} == run and not run.get("finished") and not _is_alive(run):
            yield path.parent


def _is_alive(run: Mapping[str, Any]) -> bool:
    """Tell whether the process that wrote the file still runs; its start time tells it from a later one."""
    pid = run.get("pid")
    if not isinstance(pid, int) or pid == os.getpid():
        return False
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return abs(process.create_time() - float(run.get("process_started", 0.0))) < _CLOCK_SLACK_SECONDS
    except psutil.Error:
        return False


def _write(folder: Path, key: RunKey, finished: bool) -> None:
    """Replace the file as a whole, so that a kill leaves the old one or the new one."""
    run = {
        **asdict(key),
        "finished": finished,
        "pid": os.getpid(),
        "process_started": psutil.Process().create_time(),
    }
    temporary = folder / f".{RUN_FILE}.{os.getpid()}"
    temporary.write_text(json.dumps(run, indent=2) + "\n")
    temporary.replace(folder / RUN_FILE)
