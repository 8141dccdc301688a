"""One parent run for a study, a child run for each trial.

Called between measurements only. A tracker that fails in the middle of a study is a warning, never the end of the
study.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autospec.errors import AutospecWarning, TrackingError
from autospec.tracking.contents import (
    best_metrics,
    prompt_metrics,
    result_metrics,
    study_params,
    study_tags,
    trial_metrics,
)
from autospec.tracking.store import LocalStore, check_database, database_of, failures, first_line, open_client

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from autospec.tuning.events import StudyPlan, TrialReport
    from autospec.tuning.result import TuningResult

EXPERIMENT = "autospec"
RUN_FILE = "mlflow.json"
PARENT_TAG = "mlflow.parentRunId"
MAX_METRICS = 1000  # of one MLflow batch
MAX_RUNS = 50_000  # of one MLflow search
MAX_TAG_LENGTH = 5000


class MlflowTracker:
    """Logs a study to MLflow.

    Args:
        output_dir: Output folder of the study; the parent run's id is kept there, so that resuming finds it.
        root: Outputs root, under which the local store lies.
        uri: Another tracking server or store; empty takes the local one.
    """

    def __init__(self, output_dir: Path, root: Path, uri: str = "") -> None:
        self._output_dir, self._store, self._uri = output_dir, LocalStore(root), uri or LocalStore(root).uri
        self._client: MlflowClient | None = None
        self._experiment_id = self._run_id = ""
        self._tags: dict[str, str] = {}
        self._logged: set[int] = set()
        self._waiting: list[TrialReport] = []

    def check(self) -> None:
        """Find out whether there can be something to connect to, without making anything.

        Raises:
            TrackingError: A local store cannot be made or is broken; a server cannot be reached within seconds.
        """
        if (database := database_of(self._uri)) is not None:
            check_database(database)
            return
        try:
            open_client(self._uri).get_experiment_by_name(EXPERIMENT)
        except failures() as error:
            raise self._unreachable(error) from error

    def into(self, output_dir: Path) -> MlflowTracker:
        """Return a tracker with the same connection for a study in another folder."""
        moved = MlflowTracker(output_dir, self._store.root, self._uri)
        moved._client, moved._experiment_id = self._client, self._experiment_id
        return moved

    def connect(self) -> None:
        """Reach the store and find or make the experiment; a second call does nothing.

        Raises:
            TrackingError: It cannot be reached within seconds, or refuses.
        """
        if self._client is not None:
            return
        if self._uri == self._store.uri:
            self._store.create()
        try:
            client = open_client(self._uri)
            self._experiment_id = self._find_experiment(client)
        except failures() as error:
            raise self._unreachable(error) from error
        self._client = client

    def _unreachable(self, error: Exception) -> TrackingError:
        return TrackingError(
            f"MLflow must be reachable at {self._uri} (or use tracking=none), but: {first_line(error)}"
        )

    def start(self, plan: StudyPlan) -> None:
        """Open the parent run: the one this output folder already has, or a new one.

        Raises:
            TrackingError: The store cannot be reached, or refuses.
        """
        self.connect()
        self._tags = study_tags(plan)
        try:
            self._run_id = self._find_run() or self._create_run(plan)
            self._logged = self._find_trials()
        except failures() as error:
            raise TrackingError(f"MLflow must take a run at {self._uri}, but: {first_line(error)}") from error

    def log_trial(self, report: TrialReport) -> None:
        """Log a trial once, however often it comes."""
        self._waiting.append(report)
        if len(self._waiting) == 1:
            self._attempt(self._log_waiting, "trials are kept and logged at the end of the study, if it is back then")

    def finish(self, result: TuningResult, files: Sequence[Path]) -> None:
        """Log what is left, the result and its files, and end the parent run."""

        def end() -> None:
            self._log_waiting()
            self._log_metrics(self._run_id, [result_metrics(result)])
            self._put_files(files)
            self._connected.set_tag(self._run_id, "autospec.stop_reason", result.stop_reason)
            self._connected.set_terminated(self._run_id, "FINISHED")

        self._attempt(end, f"the study is complete in {self._output_dir}, but not in MLflow")

    def interrupt(self, result: TuningResult, files: Sequence[Path]) -> None:
        """Log what is left and the files there are, and mark the parent run as killed; `start` takes it up again.

        The figures of a partial result are not those of held-out prompts, so they are not logged under their names.
        """
        if not self._run_id:
            return  # by Ctrl-C before the study began

        def end() -> None:
            self._log_waiting()
            self._put_files(files)
            self._connected.set_tag(self._run_id, "autospec.stop_reason", result.stop_reason)
            self._connected.set_terminated(self._run_id, "KILLED")

        self._attempt(end, f"the study can be gone on with in {self._output_dir}, but MLflow does not know its state")

    def log_files(self, files: Sequence[Path]) -> None:
        """Add files of the output folder, such as figures, to the parent run; also after `finish`."""
        self._attempt(lambda: self._put_files(files), f"the files are in {self._output_dir}, but not in MLflow")

    @property
    def _connected(self) -> MlflowClient:
        if self._client is None:
            raise TrackingError("`start` must be called before anything is logged")
        return self._client

    def _attempt(self, action: Callable[[], None], consequence: str) -> None:
        try:
            action()
        except failures() as error:
            warnings.warn(f"MLflow at {self._uri}: {first_line(error)}; {consequence}", AutospecWarning, stacklevel=3)

    def _find_experiment(self, client: MlflowClient) -> str:
        """Return the first experiment of our name that is alive and keeps its artifacts where this store is."""
        location = None if self._uri.startswith(("http://", "https://")) else self._store.artifacts
        name, number = EXPERIMENT, 1
        while (found := client.get_experiment_by_name(name)) is not None:
            if found.lifecycle_stage == "active" and location in (None, found.artifact_location):
                return str(found.experiment_id)
            number += 1
            name = f"{EXPERIMENT}-{number}"
        return str(client.create_experiment(name, artifact_location=location))

    def _find_run(self) -> str:
        """Return the run that the output folder names, if this store still has it."""
        from mlflow.exceptions import MlflowException

        try:
            stored = json.loads((self._output_dir / RUN_FILE).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return ""
        if not isinstance(stored, dict) or stored.get("uri") != self._uri:
            return ""
        run_id = str(stored.get("run_id"))
        try:
            run = self._connected.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return ""
            raise
        if run.info.lifecycle_stage != "active":
            return ""
        self._connected.update_run(run_id, status="RUNNING")
        return run_id

    def _create_run(self, plan: StudyPlan) -> str:
        run = self._connected.create_run(self._experiment_id, run_name=self._output_dir.name, tags=self._tags)
        run_id = str(run.info.run_id)
        self._log_params(run_id, study_params(plan))
        path = self._output_dir / RUN_FILE
        path.write_text(json.dumps({"uri": self._uri, "run_id": run_id}) + "\n", encoding="utf-8")
        return run_id

    def _find_trials(self) -> set[int]:
        """Return the numbers of trials logged whole; those that a kill cut short are deleted, to be logged again."""
        of_parent = f"tags.`{PARENT_TAG}` = '{self._run_id}'"
        whole = set()
        for child in self._connected.search_runs([self._experiment_id], of_parent, max_results=MAX_RUNS):
            if child.info.status == "RUNNING":
                self._connected.delete_run(child.info.run_id)
            else:
                whole.add(int(child.data.tags["autospec.trial"]))
        return whole

    def _log_waiting(self) -> None:
        while self._waiting:
            report = self._waiting[0]
            if report.number not in self._logged:
                self._log_one(report)
                self._logged.add(report.number)
            del self._waiting[0]

    def _log_one(self, report: TrialReport) -> None:
        tags = {
            **self._tags,
            PARENT_TAG: self._run_id,
            "autospec.trial": str(report.number),
            "autospec.state": report.state,
            "autospec.config_hash": report.config.config_hash,
            "autospec.prompts": " ".join(one.prompt_id for one in report.measurements),
            "autospec.reason": report.reason,
        }
        name = f"{report.number:03d} {report.config.short()}"
        tags = {key: value[:MAX_TAG_LENGTH] for key, value in tags.items() if value}
        run_id = self._connected.create_run(self._experiment_id, run_name=name, tags=tags).info.run_id
        self._log_params(run_id, asdict(report.config))
        self._log_metrics(run_id, [prompt_metrics(one) for one in report.measurements])
        self._log_metrics(run_id, [trial_metrics(report)])
        self._connected.set_terminated(run_id, "FAILED" if report.state == "failed" else "FINISHED")
        self._log_metrics(self._run_id, [best_metrics(report)], first_step=report.number)

    def _log_params(self, run_id: str, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        self._connected.log_batch(run_id, params=[Param(name, str(value)) for name, value in values.items()])

    def _log_metrics(self, run_id: str, steps: Sequence[Mapping[str, float]], first_step: int = 0) -> None:
        """Log what was seen at each step; MLflow takes no infinite values, they are left out."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [
            Metric(name, value, now, step)
            for step, values in enumerate(steps, start=first_step)
            for name, value in values.items()
            if math.isfinite(value)
        ]
        for start in range(0, len(metrics), MAX_METRICS):
            self._connected.log_batch(run_id, metrics=metrics[start : start + MAX_METRICS])

    def _put_files(self, files: Sequence[Path]) -> None:
        for path in files:
            inside = path.parent.relative_to(self._output_dir) if path.is_relative_to(self._output_dir) else Path()
            self._connected.log_artifact(self._run_id, str(path), None if inside == Path() else inside.as_posix())
