"""A killed run: whatever the moment, restarting it loses nothing, repeats nothing and ends in the same result."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autospec.config import SpecConfig
from autospec.errors import ConfigError, MeasurementError
from autospec.policy import Policy
from autospec.tuning.events import Event, Measured
from autospec.tuning.log import read_measurements
from autospec.tuning.result import TuningResult
from autospec.tuning.run import run_task

SMALL: dict[str, Any] = {"trials": 8, "prompts_per_trial": 4, "finalists": 1, "finalist_prompts": 4, "max_failures": 9}
CHILD = """
import os, random, runpy, signal, sys
from pathlib import Path
fakes = runpy.run_path(sys.argv[1])
from autospec.tuning.run import run_task
kill_at = int(sys.argv[3])
def hook(count):
    if count == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
runner = fakes["FakeRunner"](hook=hook, gaps={"draft": 0.004})
small = {"trials": 8, "prompts_per_trial": 4, "finalists": 1, "finalist_prompts": 4}
task = fakes["make_task"](Path(sys.argv[2]), runner, objective=sys.argv[4], **small)
print(len(runner.calls), run_task(task).stop_reason)
"""


def speed(config: SpecConfig, category: str) -> float:
    """`ngram` wins on code, `draft` on prose; drafts longer than 12 fail."""
    if config.draft_length > 12:
        raise MeasurementError("out of memory")
    if config.drafter == "ngram":
        return 2.5 if category == "code" else 0.7
    return 1.2 + 0.02 * config.draft_length


def keys(folder: Path) -> list[tuple[str, str, str, int]]:
    return [one.key for one in read_measurements(folder / "measurements.jsonl")]


def essence(folder: Path) -> dict[str, Any]:
    """What must not depend on where a run was killed: everything but wall time."""
    result = json.loads((folder / "result.json").read_text())
    del result["wall_seconds"]
    return result


def policy_of(folder: Path) -> Policy:
    return Policy.from_json(json.loads((folder / "policy.json").read_text()))


@dataclass
class Recorder:
    """Copies the output folder at every moment a kill could strike around a measurement."""

    folder: Path
    store: Path
    snapshots: list[Path] = field(default_factory=list)

    def copy(self, moment: str) -> None:
        target = self.store / f"{len(self.snapshots):04d}-{moment}"
        shutil.copytree(self.folder, target, symlinks=True)
        self.snapshots.append(target)

    def on_event(self, event: Event) -> None:
        if isinstance(event, Measured) and len(self.snapshots) % 4 == 3:
            self.copy("after")


@dataclass
class Reference:
    result: TuningResult
    folder: Path
    snapshots: list[Path]
    fakes: SimpleNamespace

    def resume(self, folder: Path) -> tuple[TuningResult, list[tuple[str, str, str, int]]]:
        runner = self.fakes.FakeRunner(speed=speed)
        return run_task(
            self.fakes.make_task(folder, runner, **SMALL, workload=self.fakes.make_workload(per_category=5))
        ), runner.calls


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    import runpy

    fakes = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("conftest.py"))))
    root = tmp_path_factory.mktemp("reference")
    recorder = Recorder(root / "run", root / "snapshots")
    runner = fakes.FakeRunner(speed=speed, hook=lambda count: recorder.copy("before"))
    result = run_task(
        fakes.make_task(
            root / "run", runner, on_event=recorder.on_event, **SMALL, workload=fakes.make_workload(per_category=5)
        )
    )
    return Reference(result, root / "run", recorder.snapshots, fakes)


def damage(folder: Path, kind: int) -> None:
    """What else a kill can leave behind: part of a line in either file, a lock, a lock being let go of."""
    if kind in (1, 3):
        with (folder / "measurements.jsonl").open("ab") as file:
            file.write(b'{"config":{"drafter":"dra')
    journal = folder / "study.journal"
    if kind in (2, 3) and journal.exists():
        with journal.open("ab") as file:
            file.write(b'{"op_code":5,"worker_id":"x","trial_id":')
        os.symlink(journal, folder / "study.journal.lock")
        os.symlink(journal, folder / "study.journal.lock0-0.rename")


def test_the_reference_has_what_makes_resuming_hard(reference: Reference):
    log = (reference.folder / "measurements.jsonl").read_text()
    assert '"failure"' in log
    assert len(reference.result.confirmation.cross_checks) == 2
    assert len(set(keys(reference.folder))) == len(keys(reference.folder)) > 50


@pytest.mark.parametrize("part", range(4))
def test_a_run_killed_at_any_measurement_ends_as_if_it_had_not_been(reference: Reference, tmp_path: Path, part: int):
    whole, expected = keys(reference.folder), essence(reference.folder)
    for number, snapshot in enumerate(reference.snapshots[part::4]):
        folder = tmp_path / snapshot.name
        shutil.copytree(snapshot, folder, symlinks=True)
        damage(folder, number % 4)
        known = set(keys(folder))
        _, calls = reference.resume(folder)
        assert not known & set(calls), snapshot.name  # nothing that was in the log was measured again
        assert keys(folder) == whole, snapshot.name  # nothing lost, nothing twice, in the same order
        assert essence(folder) == expected, snapshot.name
        assert policy_of(folder).choose(category="code").drafter == "ngram", snapshot.name


@pytest.mark.parametrize("share", [0.1, 0.35, 0.6, 0.85])
def test_a_journal_that_lags_behind_the_log_is_caught_up(reference: Reference, tmp_path: Path, share: float):
    """The log is complete, of the journal only a part reached the disk: nothing is measured again."""
    folder = tmp_path / "run"
    shutil.copytree(reference.folder, folder)
    lines = (folder / "study.journal").read_bytes().splitlines(keepends=True)
    (folder / "study.journal").write_bytes(b"".join(lines[: int(len(lines) * share)]))
    _, calls = reference.resume(folder)
    assert calls == []
    assert keys(folder) == keys(reference.folder)


def test_a_finished_run_is_told_again_without_measuring(reference: Reference, tmp_path: Path):
    folder = tmp_path / "run"
    shutil.copytree(reference.folder, folder)
    result, calls = reference.resume(folder)
    assert calls == []
    assert result.to_json()["speedup"] == reference.result.to_json()["speedup"]


def test_the_folder_of_another_task_is_refused(reference: Reference, tmp_path: Path):
    folder = tmp_path / "run"
    shutil.copytree(reference.folder, folder)
    workload = reference.fakes.make_workload(per_category=5)
    with pytest.raises(ConfigError, match="differs in settings"):
        run_task(reference.fakes.make_task(folder, workload=workload, **{**SMALL, "seed": 5}))
    assert keys(folder) == keys(reference.folder)


@pytest.mark.parametrize(
    "objective",
    [
        "tokens_per_second",
        pytest.param("p95_inter_token_latency", marks=pytest.mark.slow),
        pytest.param("pareto", marks=pytest.mark.slow),
    ],
)
def test_three_real_kills_and_a_restart(tmp_path: Path, fakes: SimpleNamespace, objective: str):
    conftest = Path(__file__).with_name("conftest.py")
    environment = {**os.environ, "PYTHONPATH": str(conftest.parents[2]), "OMP_NUM_THREADS": "1"}

    def run(kill_at: int) -> int:
        command = [sys.executable, "-c", CHILD, str(conftest), str(tmp_path / "run"), str(kill_at), objective]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode in (0, -9), done.stderr
        return done.returncode

    assert [run(kill_at) for kill_at in (3, 17, 9, -1)] == [-9, -9, -9, 0]
    found = keys(tmp_path / "run")
    assert len(set(found)) == len(found)
    runner, small = fakes.FakeRunner(gaps={"draft": 0.004}), {**SMALL, "max_failures": 5}
    run_task(fakes.make_task(tmp_path / "whole", runner, objective=objective, **small))
    assert found == keys(tmp_path / "whole")
    assert not policy_of(tmp_path / "run").choose().is_off
