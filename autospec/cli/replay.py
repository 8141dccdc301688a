"""`python -m autospec replay`: the best policy for a device from its profile alone, without models and unmeasured."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autospec.cli.build import checked_root
from autospec.cli.compose import Composed
from autospec.cli.console import Terminal, table
from autospec.cli.faults import Faults
from autospec.cli.runs import write_config
from autospec.cli.schema import typed
from autospec.config import SpecConfig
from autospec.errors import ConfigError, MeasurementError, ReplayError
from autospec.paths import new_output_dir
from autospec.profiling import HardwareProfile, find_profile
from autospec.tuning import SearchSpace, StudySettings

if TYPE_CHECKING:
    from autospec.cost_model import Prediction, Predictor
    from autospec.replay import Trace
    from autospec.tuning.guide import Guide

WARNING = "predicted, not measured there"


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """Settings of `replay`; see `conf/replay.yaml`."""

    trace: str = ""
    hardware: str = ""
    search_space: str = "chain"
    prompt_length: int | None = None
    trials: int = 2000
    shown: int = 10
    seed: int = 0
    output_root: str = "outputs"

    def __post_init__(self) -> None:
        faults = [
            f"`{name} >= {low}` must hold, but got {value}"
            for name, low, value in (
                ("trials", 1, self.trials),
                ("shown", 1, self.shown),
                ("seed", 0, self.seed),
                ("prompt_length", 1, self.prompt_length),
            )
            if value is not None and value < low
        ]
        if faults:
            raise ConfigError(faults)


@dataclass(frozen=True, slots=True)
class _Forecast:
    """What was priced, the best first."""

    predictor: Predictor
    guide: Guide
    ranked: list[Prediction]

    @property
    def best(self) -> SpecConfig:
        """Speculation off where nothing is predicted to be faster."""
        good = self.ranked and self.ranked[0].log_speedup > 0.0
        return self.ranked[0].config if good else SpecConfig()

    def by_category(self) -> dict[str, tuple[SpecConfig, float]]:
        """Return the best of each category and its speedup there; 1 under speculation off."""
        found = {}
        for category in sorted(set(self.predictor.categories)):
            own = np.array([one == category for one in self.predictor.categories])
            leader = max(self.ranked, key=partial(_log_speedup_on, own), default=None)
            value = 0.0 if leader is None else _log_speedup_on(own, leader)
            is_off = leader is None or value <= 0.0
            found[category] = (SpecConfig(), 1.0) if is_off or leader is None else (leader.config, math.exp(value))
        return found


def run(composed: Composed) -> int:
    """Price the space, print the best and write them down."""
    faults = Faults(composed.faults)
    settings = typed(ReplaySettings, composed.values, faults.found)
    assert settings is not None
    profile = faults.attempt(lambda: find_profile(settings.hardware)) if settings.hardware else None
    trace = faults.attempt(lambda: _trace(settings.trace)) if settings.trace else None
    known = sorted(set(profile.drafters) & set(trace.sources)) if profile and trace else None
    space = faults.attempt(lambda: SearchSpace.load(settings.search_space, known))
    if space is not None:
        faults.found += space.lossy_faults()
    root = faults.attempt(lambda: checked_root(settings.output_root))
    faults.raise_if_any()
    assert profile is not None
    assert trace is not None
    assert space is not None
    assert root is not None
    with Terminal() as terminal:
        forecast = _forecast(trace, profile, space, settings)
        folder = new_output_dir(root, "replay")
        write_config(folder, composed.values)
        document = _document(forecast, trace, profile, settings)
        (folder / "replay.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        terminal.lines(_report_lines(forecast, trace, profile, settings))
        terminal.line()
        terminal.line(f"prediction: {folder / 'replay.json'}")
    return 0


def _trace(path: str) -> Trace:
    """Load a trace by its own folder, or by one that holds a single trace.

    Raises:
        ConfigError: There is none, or which one is not clear.
    """
    from autospec.replay import Trace

    folder = Path(path).expanduser()
    found = [folder] if (folder / "trace.json").is_file() else [one.parent for one in folder.glob("*/trace.json")]
    if len(found) != 1:
        raise ConfigError(f"`trace` must be the folder of one trace, but {folder} holds {len(found)}")
    try:
        return Trace.load(found[0])
    except ReplayError as error:
        raise ConfigError(str(error)) from error


def _forecast(trace: Trace, profile: HardwareProfile, space: SearchSpace, settings: ReplaySettings) -> _Forecast:
    """Price the space.

    Raises:
        ConfigError: The profile has not even what plain decoding of the prompts needs.
    """
    from autospec.cost_model import Predictor, contexts_of
    from autospec.replay import Simulator, rank_acceptance
    from autospec.tuning.calibrating import calibrate, cost_curves, readers
    from autospec.tuning.defaults import engine_defaults
    from autospec.tuning.guide import Guide
    from autospec.tuning.replaying import is_priced_whole, replay_study
    from autospec.tuning.trees import TreeMaker

    known = [name for name in profile.drafters if name in trace.sources]
    recorded = {name: rank_acceptance(trace, name).tolist() for name in known if trace.key_of(name) is not None}
    space = space.under(trace.sampling).with_trees(TreeMaker(recorded))
    priced = readers(space) & set(known)
    try:
        contexts = contexts_of(trace, settings.prompt_length)
        costs = cost_curves(profile, contexts, priced, calibrate(trace, priced))
        predictor = Predictor(Simulator(trace, costs=costs), profile, prompt_length=settings.prompt_length)
    except MeasurementError as error:
        raise ConfigError(f"a profile must reach as far as the prompts, but: {error}") from error
    study = StudySettings(replayed_trials=settings.trials, seed=settings.seed)
    if is_whole := is_priced_whole(space, study):
        asked = list(space.walk())
    else:
        asked, _ = replay_study(predictor, space, study, math.inf, time.perf_counter)
    defaults = engine_defaults({name: name in recorded for name in known}, trace.sampling.is_greedy)
    guide = Guide(predictor, [*asked, *defaults], is_whole)
    return _Forecast(predictor, guide, guide.ranked())


def _log_speedup_on(own: Any, one: Prediction) -> float:
    return float(one.log_speedups[own].mean())


def _document(forecast: _Forecast, trace: Trace, profile: HardwareProfile, settings: ReplaySettings) -> dict[str, Any]:
    return {
        "measured": False,
        "note": WARNING,
        "device": dict(profile.fingerprint),
        "profile_key": profile.key,
        "compile": profile.compile,
        "trace": trace.content_hash,
        "target": {"trace": trace.target, "profile": profile.target.source},
        "search_space": settings.search_space,
        "prompt_length": settings.prompt_length,
        "num_asked": forecast.guide.num_asked,
        "num_priced": forecast.guide.num_priced,
        "num_expected": forecast.guide.num_expected,
        "best": forecast.best.to_json(),
        "categories": {
            name: {"config": config.to_json(), "predicted_speedup": value}
            for name, (config, value) in forecast.by_category().items()
        },
        "ranked": [
            {
                "config": one.config.to_json(),
                "is_exact": one.is_exact,
                "predicted_speedup": math.exp(one.log_speedup),
                "predicted_tokens_per_second": _tokens_per_second(one, trace),
                "tokens_per_step": _tokens_per_step(one, trace),
            }
            for one in forecast.ranked[: settings.shown]
        ],
    }


def _report_lines(
    forecast: _Forecast, trace: Trace, profile: HardwareProfile, settings: ReplaySettings
) -> Iterator[str]:
    device, guide = profile.fingerprint, forecast.guide
    form = profile.dtype + ", compiled" * profile.compile
    yield f"{device.get('device_name')}, {device.get('num_threads')} threads, {form}: {WARNING}"
    yield f"trace of {len(trace.prompts)} prompts by {trace.target}; the profile's target is {profile.target.source}"
    if settings.prompt_length is not None:
        recorded = [prompt.num_prompt for prompt in trace.prompts]
        yield (
            f"every prompt taken for one of {settings.prompt_length:,} tokens; drafts accepted as they were behind "
            f"{min(recorded):,} to {max(recorded):,}"
        )
    expected = f", {guide.num_expected} of them by expected steps" if guide.num_expected else ""
    yield f"{guide.num_priced} of {guide.num_asked} configurations could be priced from trace and profile{expected}"
    yield f"noise of the profile {profile.noise.spread:.1%}: {profile.noise.verdict}"
    yield ""
    if forecast.ranked:
        yield from _table(forecast.ranked[: settings.shown], trace)
        yield ""
    yield f"best, {WARNING}: {forecast.best.short()}"
    for name, (config, value) in forecast.by_category().items():
        yield f"  {name}: {config.short()}, {value:.2f}x"


def _table(ranked: Sequence[Prediction], trace: Trace) -> list[str]:
    rows = [["configuration", "speedup", "tokens/s", "tokens/step"]]
    for one in ranked:
        per_second, per_step = _tokens_per_second(one, trace), _tokens_per_step(one, trace)
        name = one.config.short() + " (expected)" * (not one.is_exact)
        rows.append([name, f"{math.exp(one.log_speedup):.2f}x", f"{per_second:.1f}", f"{per_step:.2f}"])
    return table(rows, right=range(1, 4))


def _tokens_per_second(one: Prediction, trace: Trace) -> float:
    return float(sum(prompt.num_new for prompt in trace.prompts) / one.seconds.sum())


def _tokens_per_step(one: Prediction, trace: Trace) -> float:
    return float(sum(prompt.num_new - 1 for prompt in trace.prompts) / max(float(one.num_steps.sum()), 1.0))
