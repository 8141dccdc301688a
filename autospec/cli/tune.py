"""`python -m autospec tune`: the main job, from settings to a policy and its evidence."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import autospec
from autospec.cli.build import check_models, checked_root, fit_workload, let_import, load_decoder, read_workload
from autospec.cli.compose import Composed
from autospec.cli.console import Terminal
from autospec.cli.faults import EXIT_INTERRUPTED, Faults
from autospec.cli.narration import Narrator
from autospec.cli.runs import CONFIG_FILE, RunKey, config_hash, finish_run, open_run, write_config
from autospec.cli.schema import ModelSettings, TrackingSettings, typed
from autospec.cli.summary import summary_lines
from autospec.cli.threads import Threads, check_threads, choose_threads, use_threads
from autospec.errors import ConfigError, TrackingError
from autospec.imports import code_digest
from autospec.profiling import HardwareProfile, ThreadChoice, device_fingerprint, find_profile, fingerprint_hash
from autospec.records import Workload
from autospec.rules import imported_path
from autospec.runners import check_references, make_scorer
from autospec.sources import model_digest, tokenizer_digest
from autospec.tracking import MlflowTracker
from autospec.tuning import NullTracker, SearchSpace, StudySettings, tune
from autospec.tuning.events import Event, PlanMade
from autospec.tuning.settings import QualitySettings
from autospec.workloads import WorkloadSource

if TYPE_CHECKING:
    from autospec.engine.decoder import SpeculativeDecoder

# What does not change what is measured, so that a run is gone on with whatever they are.
_NOT_IN_HASH = ("resume", "dry_run", "output_root", "tracking", "allow_import")


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
    decoder, workload, threads = _load(settings, workload, source, root, terminal)
    if tracker is not None and not settings.dry_run:
        _reach(tracker.connect)
    command = shlex.join(["python", "-m", "autospec", "tune", *composed.overrides])
    return _Job(settings, root, decoder, workload, space, tracker, command, hardware, threads)


def _load(
    settings: TuneSettings, workload: Workload, source: WorkloadSource, root: Path, terminal: Terminal
) -> tuple[SpeculativeDecoder, Workload, ThreadChoice | None]:
    """Load the models, fit the workload to them, and settle how many threads everything is measured with."""
    terminal.line(f"loading {', '.join([settings.model.target, *settings.model.named_drafters.values()])}")
    use_threads(settings.threads)
    decoder, threads = load_decoder(settings.model, settings.allow_import), None
    workload = fit_workload(workload, source, decoder)
    if settings.threads == "auto":
        threads = choose_threads(decoder, workload, root, terminal, keeps=not settings.dry_run, anew=False)
    return decoder, workload, threads


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
    settings = job.settings
    key = _run_key(job, values)
    folder, resumed = open_run(job.root, "tune", key, settings.resume)
    terminal.line(f"{'going on in' if resumed else 'writing to'} {folder}")
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


def _run_key(job: _Job, values: dict[str, Any]) -> RunKey:
    """Return what must be the same for a run to be gone on with; files count by content, not by name."""
    target, drafters = job.decoder.target, job.decoder.drafters
    sources = {"target": target.name, **{name: drafter.source for name, drafter in drafters.items()}}
    tokenizer = "" if job.decoder.text is None else job.decoder.text.source
    extra = {
        "version": autospec.__version__,
        "space": job.space.content_hash,
        "models": {name: [source, _digest(source)] for name, source in sources.items()},
        "tokenizer": [tokenizer, tokenizer_digest(tokenizer) if tokenizer else None],
    }
    return RunKey(
        config_hash=config_hash({**values, "files": extra}, without=_NOT_IN_HASH),
        workload_hash=job.workload.content_hash,
        device_hash=fingerprint_hash(device_fingerprint(target.device, target.dtype)),
    )


def _digest(source: str) -> str | None:
    path = imported_path(source)
    return code_digest(path) if path else model_digest(source)


def _draw(folder: Path, tracker: MlflowTracker | NullTracker) -> None:
    """Draw the figures, and give them and the configuration to the tracker."""
    from autospec.report import draw_figures

    figures = draw_figures(folder)
    if isinstance(tracker, MlflowTracker):
        tracker.log_files([folder / CONFIG_FILE, *figures])
