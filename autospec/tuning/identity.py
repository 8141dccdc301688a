"""What a run is of: recorded when it begins, and compared before it is gone on with. Measures nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from autospec.errors import ConfigError
from autospec.profiling import differences
from autospec.tuning.log import MEASUREMENTS_FILE, MeasurementLog, read_decision
from autospec.tuning.task import Task

_IDENTITY, _MACHINE = "identity", "machine"


def check_identity(task: Task, log: MeasurementLog) -> None:
    """Record what a run is of, or refuse a folder that another task has written to.

    Raises:
        ConfigError: With what differs; of the machine, all of it.
    """
    here = json.loads(json.dumps(task.identity()))
    there = {"compile": False, **log.decide(_IDENTITY, lambda: here)}  # older runs knew no other models
    differing = [name for name in here if there.get(name) != here[name]]
    if not differing:
        return
    words = [
        f"{name} ({', '.join(differences(there.get(name) or {}, here[name]))})" if name == _MACHINE else name
        for name in differing
    ]
    raise ConfigError(
        f"a run can only be gone on with by the same task, but {task.output_dir} differs in {', '.join(words)}"
    )


def machine_of(folder: Path) -> Mapping[str, str | int] | None:
    """Return the fingerprint of the machine that a run was begun on; None where nothing was measured yet."""
    identity = read_decision(folder / MEASUREMENTS_FILE, _IDENTITY)
    machine = identity.get(_MACHINE) if isinstance(identity, dict) else None
    return machine if isinstance(machine, dict) else None
