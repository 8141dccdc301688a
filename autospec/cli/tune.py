"""`python -m autospec tune`: the main job, from settings to a policy and its evidence."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autospec.cli.build import check_models, checked_root, fit_workload, let_import, load_decoder, read_workload
from autospec.cli.compose import Composed
from autospec.cli.console import Terminal
from autospec.cli.faults import EXIT_INTERRUPTED, Faults
from autospec.cli.narration import Narrator
from autospec.cli.resuming import machine_under, run_key, tell_left, threads_of_run
from autospec.cli.runs import CONFIG_FILE, RunKey, finish_run, open_run, unfinished_runs, write_config
from autospec.cli.schema import ModelSettings, TrackingSettings, typed
from autospec.cli.summary import summary_lines
from autospec.cli.threads import Threads, check_threads, choose_threads, keep_threads, use_threads
from autospec.errors import ConfigError, TrackingError
from autospec.profiling import HardwareProfile, ThreadChoice, find_profile, fingerprint_hash
from autospec.records import Workload
from autospec.runners import check_references, make_scorer
from autospec.tracking import MlflowTracker
from autospec.tuning import NullTracker, SearchSpace, StudySettings, tune
from autospec.tuning.events import Event, PlanMade
from autospec.tuning.settings import QualitySettings
from autospec.workloads import WorkloadSource

if TYPE_CHECKING:
    from autospec.engine.decoder import SpeculativeDecoder


@dataclass(frozen=True, slots=True)
class TuneSettings:
    """Settings of `tune`; see `conf/tune.yaml`."""

    model: ModelSettings = field(default_factory=ModelSettings)
    workload: WorkloadSource | None = None
    study: StudySettings = field(default_factory=StudySettings)
    quality: QualitySettings = field(default_factory=QualitySettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)
    search_space: str = "chain"
    hardware: str = "auto"
    threads: Threads = None
    output_root: str = "outputs"
    resume: bool = True
    allow_import: tuple[str, ...] = ()
    dry_run: bool = False

    @property
    def of_study(self) -> StudySettings:
        """The study's, with what may be lost and which code may judge it."""
        return replace(self.study, quality=replace(self.quality, allow_import=self.allow_import))


@dataclass(frozen=True, slots=True)
class _Job:
    """What is tuned, all of it loaded."""

    settings: TuneSettings
    root: Path
    decoder: SpeculativeDecoder
    workload: Workload
    space: SearchSpace
    key: RunKey
    tracker: MlflowTracker | None
    command: str
    hardware: HardwareProfile | Path | None
    threads: ThreadChoice | None


class _PlanToldError(Exception):
    """Ends a dry run where the plan has been told."""


def run(composed: Composed) -> int:
    """Check everything, load, then tune."""
    with Terminal() as terminal:
        job = _prepare(composed, terminal)
        if job.settings.dry_run:
            return _dry_run(job, terminal)
        return _tune(job, composed.values, terminal)


def _prepare(composed: Composed, terminal: Terminal) -> _Job:
    """Read and load what the settings name.

    Raises:
        ConfigError: With everything that is wrong; nothing was created.
        ModelError: A model cannot be loaded or used.
        WorkloadError: Prompts do not fit the target.
    """
    faults = Faults(composed.faults)
    settings = typed(TuneSettings, composed.values, faults.found)
    assert settings is not None
    source = settings.workload
    workload = None if source is None else faults.attempt(lambda: read_workload(source))
    drafters = settings.model.named_drafters
    space = faults.attempt(lambda: SearchSpace.load(Path(settings.search_space).expanduser(), drafters))
    if space is not None and workload is not None:
        faults.attempt(partial(space.under, workload.sampling))
    named = (composed.values.get("quality") or {}).get("max_loss") is not None
    if space is not None and not (named or settings.quality.allows_lossy):
        faults.found.extend(space.lossy_faults())
    _check_scorer(settings, workload, faults)
    check_models(settings.model, faults, settings.allow_import)
    faults.attempt(lambda: check_threads(settings.threads))
    root = faults.attempt(lambda: checked_root(settings.output_root))
    hardware = faults.attempt(lambda: _hardware(settings.hardware, root))
    tracker = None if root is None else _tracker(settings.tracking, root)
    if tracker is not None:
        faults.attempt(lambda: _reach(tracker.check))
    faults.raise_if_any()
    assert root is not None
    assert source is not None
    assert workload is not None
    assert space is not None
    decoder = _load(settings, terminal)
    workload, threads = fit_workload(workload, source, decoder), None
    key = run_key(decoder, workload, space, composed.values)
    if settings.threads == "auto":
        threads = _settle_threads(settings, decoder, workload, root, key, terminal)
        key = replace(key, device_hash=fingerprint_hash(machine_under(decoder)))
    if tracker is not None and not settings.dry_run:
        _reach(tracker.connect)
    command = shlex.join(["python", "-m", "autospec", "tune", *composed.overrides])
    return _Job(settings, root, decoder, workload, space, key, tracker, command, hardware, threads)


def _load(settings: TuneSettings, terminal: Terminal) -> SpeculativeDecoder:
    terminal.line(f"loading {', '.join([settings.model.target, *settings.model.named_drafters.values()])}")
    use_threads(settings.threads)
    return load_decoder(settings.model, settings.allow_import)


def _settle_threads(
    settings: TuneSettings,
    decoder: SpeculativeDecoder,
    workload: Workload,
    root: Path,
    key: RunKey,
    terminal: Terminal,
) -> ThreadChoice | None:
    """Use the threads of the unfinished run that is gone on with; where there is none, choose."""
    if settings.resume and not settings.dry_run and decoder.target.device.type == "cpu":
        here = machine_under(decoder)
        for folder in unfinished_runs(root, "tune", key.of_any_device):
            if (num_threads := threads_of_run(folder, here)) is not None:
                return keep_threads(decoder, root, folder, num_threads, terminal)
    return choose_threads(decoder, workload, root, terminal, keeps=not settings.dry_run, anew=False)


def _hardware(named: str, root: Path | None) -> HardwareProfile | Path | None:
    """Return a profile, the folder in which one may lie, or None where one is to be measured."""
    if named == "new":
        return None
    return root if named == "auto" else find_profile(named)


def _check_scorer(settings: TuneSettings, workload: Workload | None, faults: Faults) -> None:
    scorer = settings.quality.scorer
    if settings.quality.allow_import:
        faults.found.append("`quality.allow_import` is for Python; on a command line it is `allow_import=[MODULE]`")
        return
    let_import(settings.allow_import)
    faults.attempt(partial(make_scorer, scorer, settings.allow_import), "quality.scorer")
    if workload is not None:
        faults.attempt(partial(check_references, scorer, workload), "quality.scorer")


def _tracker(settings: TrackingSettings, root: Path) -> MlflowTracker | None:
    return None if settings.kind == "none" else MlflowTracker(root, root, settings.uri or "")


def _reach(action: Callable[[], None]) -> None:
    """Do something with a tracker before the study, where a tracker that does not work is bad input."""
    try:
        action()
    except TrackingError as error:
        raise ConfigError(f"`tracking`: {error}") from error


def _dry_run(job: _Job, terminal: Terminal) -> int:
    """Tell the plan, whose arithmetic needs a warm-up, and leave nothing behind."""
    narrate = Narrator(terminal)

    def on_event(event: Event) -> None:
        narrate(event)
        if isinstance(event, PlanMade):
            raise _PlanToldError

    with tempfile.TemporaryDirectory() as folder:
        try:
            tune(
                job.decoder,
                job.workload,
                job.space,
                output_dir=Path(folder),
                settings=job.settings.of_study,
                on_event=on_event,
                command=job.command,
                hardware=job.hardware,
                threads=job.threads,
            )
        except _PlanToldError:
            terminal.line("dry run: nothing was measured and nothing written")
    return 0


def _tune(job: _Job, values: dict[str, Any], terminal: Terminal) -> int:
    """Tune in a folder of its own, or go on in the one that an unfinished run left."""
    settings, key = job.settings, job.key
    folder, resumed = open_run(job.root, "tune", key, settings.resume)
    terminal.line(f"{'going on in' if resumed else 'writing to'} {folder}")
    if settings.resume and not resumed:
        tell_left(job.root, job.key, folder, machine_under(job.decoder), terminal)
    write_config(folder, values)
    tracker = NullTracker() if job.tracker is None else job.tracker.into(folder)
    result = tune(
        job.decoder,
        job.workload,
        job.space,
        output_dir=folder,
        settings=settings.of_study,
        tracker=tracker,
        on_event=Narrator(terminal),
        command=job.command,
        hardware=job.hardware,
        threads=job.threads,
    )
    if not result.finished:
        terminal.lines(summary_lines(result, folder))
        terminal.line("interrupted: the result is partial; the same command goes on with this run")
        return EXIT_INTERRUPTED
    finish_run(folder, key)
    _draw(folder, tracker)
    terminal.lines(summary_lines(result, folder))
    return 0


def _draw(folder: Path, tracker: MlflowTracker | NullTracker) -> None:
    """Draw the figures, and give them and the configuration to the tracker."""
    from autospec.report import draw_figures

    figures = draw_figures(folder)
    if isinstance(tracker, MlflowTracker):
        tracker.log_files([folder / CONFIG_FILE, *figures])
