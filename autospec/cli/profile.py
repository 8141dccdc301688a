"""`python -m autospec profile`: what target, drafters and host cost on this machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from autospec.cli.build import check_models, checked_root, fit_workload, load_decoder, read_workload
from autospec.cli.compose import Composed
from autospec.cli.console import Terminal
from autospec.cli.faults import Faults
from autospec.cli.profile_report import report_lines
from autospec.cli.schema import ModelSettings, typed
from autospec.cli.threads import Threads, check_threads, choose_threads, use_threads
from autospec.errors import ConfigError, ProfileError
from autospec.profiling import HardwareProfile, ProfileSettings, find_profile, load_profile, profile_path
from autospec.workloads import WorkloadSource

if TYPE_CHECKING:
    from autospec.engine.decoder import SpeculativeDecoder
    from autospec.records import Workload

_NEW, _AUTO = "new", "auto"
_PERCENT = 100


@dataclass(frozen=True, slots=True)
class ProfileCommand:
    """Settings of `profile`; see `conf/profile.yaml`."""

    model: ModelSettings = field(default_factory=ModelSettings)
    workload: WorkloadSource | None = None
    hardware: str = _NEW
    threads: Threads = None
    allow_import: tuple[str, ...] = ()
    costs: ProfileSettings = field(default_factory=ProfileSettings)
    output_root: str = "outputs"


def run(composed: Composed) -> int:
    """Measure, or take what was measured before; print the tables and the path."""
    faults = Faults(composed.faults)
    settings = typed(ProfileCommand, composed.values, faults.found)
    assert settings is not None
    if settings.hardware not in (_NEW, _AUTO):
        shown = faults.attempt(lambda: find_profile(settings.hardware))
        faults.raise_if_any()
        assert shown is not None
        with Terminal() as terminal:
            terminal.lines(report_lines(shown))
            terminal.line(f"profile: {settings.hardware}")
        return 0
    source = settings.workload
    workload = None if source is None else faults.attempt(lambda: read_workload(source))
    check_models(settings.model, faults, settings.allow_import)
    faults.attempt(lambda: check_threads(settings.threads))
    root = faults.attempt(lambda: checked_root(settings.output_root))
    faults.raise_if_any()
    assert source is not None
    assert workload is not None
    assert root is not None
    with Terminal() as terminal:
        terminal.line(f"loading {', '.join([settings.model.target, *settings.model.named_drafters.values()])}")
        use_threads(settings.threads)
        decoder = load_decoder(settings.model, settings.allow_import)
        found, path = _found_or_measured(decoder, fit_workload(workload, source, decoder), settings, root, terminal)
        terminal.lines(report_lines(found))
        terminal.line(f"profile: {path}")
    return 0


def _found_or_measured(
    decoder: SpeculativeDecoder, workload: Workload, settings: ProfileCommand, root: Path, terminal: Terminal
) -> tuple[HardwareProfile, Path]:
    """Return the profile and where it lies; a file appears only when everything is measured."""
    from autospec.profiling import key_of, profile

    threads = None
    if settings.threads == _AUTO:
        threads = choose_threads(decoder, workload, root, terminal, keeps=True, anew=settings.hardware == _NEW)
    path = profile_path(root, key_of(decoder, workload.sampling))
    if settings.hardware == _AUTO and path.is_file():
        try:
            return load_profile(path), path
        except ProfileError as error:
            terminal.line(f"measuring again: {error}")
    told = 0
    terminal.begin("profile", _PERCENT)

    def on_progress(what: str, used: float) -> None:
        nonlocal told
        terminal.line(f"{used:4.0%} of the time: {what}")
        while told < min(int(used * _PERCENT), _PERCENT):
            terminal.advance()
            told += 1

    made = profile(decoder, workload, settings.costs, on_progress=on_progress, threads=threads)
    terminal.begin("profile", 0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"profiles must go to a folder that can be made, but {path.parent}: {error}") from error
    made.save(path)
    return made, path
