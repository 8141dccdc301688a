"""What a guided study prepares: a trace of its prompts, a profile of its machine, and the guide that both make.

The only module of tuning that runs models itself. Everything it makes lies in the run's folder, so that a resumed run
goes on with the same.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autospec.config import SpecConfig
from autospec.cost_model import Independence, Predictor, independence
from autospec.errors import MeasurementError, ProfileError, ReplayError
from autospec.profiling import (
    HardwareProfile,
    ProfileSettings,
    find_profile,
    key_of,
    profile_path,
    profile_text,
    text_of,
)
from autospec.records import Prompt
from autospec.replay import RecordedPrompt, Recorder, RecordingBudget, Simulator, Trace, rank_acceptance
from autospec.runners.live import sampling_of
from autospec.tuning.calibrating import Calibrated, calibrate, cost_curves, readers
from autospec.tuning.events import Guided, PhaseStarted, Warned
from autospec.tuning.guide import Guide
from autospec.tuning.log import MeasurementLog
from autospec.tuning.measuring import Measurer
from autospec.tuning.replaying import is_priced_whole, price, replay_study
from autospec.tuning.situations import lengths_of, situations_of
from autospec.tuning.space import SearchSpace
from autospec.tuning.task import Task
from autospec.tuning.trees import TreeMaker

if TYPE_CHECKING:
    from autospec.engine.decoder import SpeculativeDecoder

_REMEDY = "more study.minutes, or `python -m autospec profile` beforehand, measure more of what steps cost"
TRACE_FOLDER, PROFILE_FILE = "trace", "profile.json"
_END_ROOM = 37  # tokens that a profile leaves behind its longest context
_REPLAY_SHARE = 0.1  # of the minutes, for pricing and for recording what it lacks
_MOST_NODES = 32  # of trees that are recorded at every position; larger ones only where there is time left
_PROFILE_SHARE = 0.05  # of the minutes, for measuring costs
_UNLIMITED_SECONDS = 60.0  # for either, where there is no limit
_LEAST_SECONDS = 2.0  # below which a profile has holes


@dataclass(frozen=True, slots=True)
class Preparation:
    """What has been prepared.

    Args:
        guide: To the space.
        space: With optimal trees made for what was recorded.
        predictor: Behind the guide.
        independence: How far the field's closed form is off, for each drafter whose chains are recorded.
        acceptance: What the cost-aware rule reads, for each drafter of a space that has it.
    """

    guide: Guide
    space: SearchSpace
    predictor: Predictor
    independence: tuple[Independence, ...] = ()
    acceptance: tuple[Calibrated, ...] = ()


def prepare(task: Task, log: MeasurementLog, measurer: Measurer, prompts: Sequence[Prompt]) -> Preparation | None:
    """Record, profile and price; None, with a warning, where this task cannot be predicted.

    The decoder keeps what its drafts cost and are worth, for the cost-aware stopping rule. Under
    sampling, steps are replayed where the rule keeps plain decoding's tokens, and expected for other lossless rules.

    Args:
        task: What is tuned.
        log: Keeps which configurations were priced.
        measurer: Keeps the time of the phases.
        prompts: Of a trial.
    """
    space = task.space.under(task.workload.sampling)
    try:
        with measurer.phase("record"):
            task.on_event(PhaseStarted("record", 0))
            trace, recorder = _trace(task, prompts, space)
        with measurer.phase("profile"):
            task.on_event(PhaseStarted("profile", 0))
            costs = _profile(task, trace, space)
        with measurer.phase("replay"):
            space = space.with_trees(TreeMaker(log.decide("rank_acceptance", lambda: _by_rank(trace, space))))
            acceptance = _calibrated(task, trace, space)
            task.decoder.costs = cost_curves(costs, trace.contexts, readers(space), acceptance)
            simulator = Simulator(trace, task.decoder.drafters, costs=task.decoder.costs, recorder=recorder)
            predictor = Predictor(simulator, costs, task.goal.yardstick)
            guide = _guide(task, log, predictor, space)
            _keep(trace, task.output_dir / TRACE_FOLDER)
    except (ReplayError, MeasurementError, ProfileError) as error:
        task.on_event(Warned(f"nothing is predicted, the search goes without: {error} ({_REMEDY})"))
        return None
    task.on_event(_told(guide, costs.noise.spread))
    return Preparation(guide, space, predictor, _independence(simulator, space), acceptance)


def _told(guide: Guide, noise: float) -> Guided:
    best = guide.ranked()[:3]
    speeds = tuple((one.config, math.exp(one.log_ratio)) for one in best)
    expected = tuple(one.config for one in best if not one.is_exact)
    return Guided(guide.num_asked, guide.num_priced, speeds, noise, guide.num_expected, expected, guide.num_left)


def _trace(task: Task, prompts: Sequence[Prompt], space: SearchSpace) -> tuple[Trace, Recorder]:
    """Return what was recorded before, or record it."""
    recorder = Recorder(_only_tried(task, space), _budget(space))
    folder = task.output_dir / TRACE_FOLDER
    for place in sorted(folder.glob("*")):
        try:
            return Trace.load(place), recorder
        except ReplayError:  # cut short by a kill: recorded again
            continue
    sampling = task.workload.sampling
    asked = [
        RecordedPrompt(one.prompt_id, one.category, tuple(task.decoder.render(one)), sampling_of(sampling, one).seed)
        for one in prompts
    ]
    trace = recorder.record(asked, task.workload.max_new_tokens, sampling)
    trace.save(folder)
    return trace, recorder


def _keep(trace: Trace, folder: Path) -> None:
    """Write what pricing has added to a trace, so that neither a resumed run nor `replay` has to record it again."""
    kept = trace.save(folder)
    for place in folder.iterdir():
        if place != kept:
            shutil.rmtree(place)


def _only_tried(task: Task, space: SearchSpace) -> SpeculativeDecoder:
    """Return the decoder with those drafters that the space names: the others need not be recorded."""
    from autospec.engine.decoder import SpeculativeDecoder

    named = {part for choice in _values(space, "drafter") for part in str(choice).split("+")}
    drafters = {name: drafter for name, drafter in task.decoder.drafters.items() if name in named}
    return SpeculativeDecoder(task.decoder.target, drafters, task.decoder.text)


def _values(space: SearchSpace, name: str) -> Iterable[str | int | float | bool]:
    return next((knob.domain.grid() or () for knob in space.knobs if knob.name == name), ())


def _budget(space: SearchSpace) -> RecordingBudget:
    """Return how deep and wide to record for what the space may try."""
    depths, widths, nodes = (
        [int(value) for value in _values(space, name)] for name in ("draft_length", "tree_width", "tree_nodes")
    )
    shapes, usual = set(_values(space, "tree_shape")), RecordingBudget()
    is_chain, kinds = shapes <= {"chain"}, tuple(sorted(set(widths)))
    exits = tuple(sorted({int(value) for value in _values(space, "exit_layer")})) or usual.exit_layers
    return RecordingBudget(
        max_depth=max(depths, default=usual.max_depth),
        width=max(widths, default=usual.width) if not is_chain else 2,
        max_nodes=0 if is_chain else min(max(nodes, default=usual.max_nodes), _MOST_NODES),
        # A trie takes the best-first trees of drafters that have probabilities.
        tree_widths=kinds if shapes & {"best_first", "trie"} else kinds[-1:],
        beam_widths=kinds if "beam" in shapes else (),
        exit_layers=exits,
        # Without one of its own a drafter has the target's: what ranks are read from.
        draft_temperatures=tuple(sorted({-1.0, *(float(value) for value in _values(space, "draft_temperature"))})),
    )


def _profile(task: Task, trace: Trace, space: SearchSpace) -> HardwareProfile:
    """Return the profile that was given, that kept of these models on this machine, or a short one made now."""
    own = task.output_dir / PROFILE_FILE
    if own.is_file():
        return find_profile(own)
    made = task.hardware if isinstance(task.hardware, HardwareProfile) else _kept(task, trace)
    if made is not None and made.sampling.is_greedy != task.workload.sampling.is_greedy:
        task.on_event(Warned("a profile should be measured under the decoding that is tuned: sampling takes its time"))
    if made is not None and made.compile != task.decoder.target.compiles:
        words = ("compiled", "uncompiled") if made.compile else ("uncompiled", "compiled")
        task.on_event(Warned("the profile is of {} models, but these are {}".format(*words)))
    if made is None:
        text = text_of(task.decoder, task.workload)
        made = profile_text(_only_tried(task, space), text, _short(task, trace, space), threads=task.threads)
    made.save(own)
    return made


def _kept(task: Task, trace: Trace) -> HardwareProfile | None:
    """Return a profile that the command `profile` made, if it knows all that will be asked of it."""
    if not isinstance(task.hardware, Path):
        return None
    path = profile_path(task.hardware, key_of(task.decoder, task.workload.sampling))
    if not path.is_file():
        return None
    try:
        found = find_profile(path)
    except ProfileError as error:
        task.on_event(Warned(f"costs are measured again: {error}"))
        return None
    asked, known = _contexts(task, trace), found.contexts
    has_sizes = set(_batch_sizes(task)) <= {point.batch_size for point in found.target_points}
    return found if known and known[0] <= asked[0] and asked[-1] <= known[-1] and has_sizes else None


def _short(task: Task, trace: Trace, space: SearchSpace) -> ProfileSettings:
    """Return what to measure: contexts of the trace and of asked lengths, trees only where the space has some."""
    minutes = task.settings.minutes
    share = _PROFILE_SHARE * minutes * 60 if minutes else _UNLIMITED_SECONDS
    sizes = _batch_sizes(task)
    # Drafts of several rows are measured as those of trees are.
    has_rows = bool(sizes) or not set(_values(space, "tree_shape")) <= {"chain"}
    return ProfileSettings(
        budget_seconds=min(max(share, _LEAST_SECONDS), _UNLIMITED_SECONDS),
        contexts=_contexts(task, trace),
        widths=ProfileSettings().widths if has_rows else (),
        batch_sizes=sizes,
    )


def _batch_sizes(task: Task) -> tuple[int, ...]:
    return tuple(size for size in task.workload.batch_sizes if size > 1)


def _contexts(task: Task, trace: Trace) -> tuple[int, ...]:
    """Return contexts of the trace, tokens cached before a step, and those of prompts of the lengths asked for."""
    low, high = int(trace.contexts.min()) - 1, int(trace.contexts.max()) - 1
    length = lengths_of(task.decoder)
    lengths = [one.prompt_length(task.workload.tune, length) for one in situations_of(task.workload)]
    ends = {end for one in lengths if one is not None for end in (one, one + task.workload.max_new_tokens)}
    most = task.decoder.target.usable_length - _END_ROOM
    return tuple(sorted({min(one, most) for one in (low, (low + high) // 2, high, *ends)}))


def _calibrated(task: Task, trace: Trace, space: SearchSpace) -> tuple[Calibrated, ...]:
    found = calibrate(trace, readers(space))
    for one in found:
        if one.note:
            task.on_event(Warned(f"stop_rule cost_aware reads the own probabilities of {one.drafter!r}: {one.note}"))
    return found


def _by_rank(trace: Trace, space: SearchSpace) -> dict[str, list[float]]:
    """Return, for drafters that were recorded, how often the target took their candidate of each rank."""
    if not space.has_optimal_trees:
        return {}
    names = {str(value) for value in _values(space, "drafter")}
    return {name: rank_acceptance(trace, name).tolist() for name in sorted(names) if trace.key_of(name) is not None}


def _independence(simulator: Simulator, space: SearchSpace) -> tuple[Independence, ...]:
    names = sorted({part for choice in _values(space, "drafter") for part in str(choice).split("+")})
    found = []
    for name in names:
        try:
            found.append(independence(simulator, name))
        except ReplayError:  # not recorded, or not so deep: there is nothing to compare
            continue
    return tuple(found)


def _guide(task: Task, log: MeasurementLog, predictor: Predictor, space: SearchSpace) -> Guide:
    """Price the space, whole or by a replayed study; what was chosen or left is kept for a resumed run."""
    every, minutes = task.goal.weighs_memory, task.settings.minutes
    seconds = _REPLAY_SHARE * minutes * 60 if minutes else _UNLIMITED_SECONDS
    if is_priced_whole(space, task.settings):
        whole = [config for config in space.walk() if not config.is_off]

        def left() -> list[dict[str, object]]:
            return [one.to_json() for one in price(predictor, whole, seconds, task.now)]

        unknown = {SpecConfig.from_json(one) for one in log.decide("left", left)}
        known = [config for config in whole if config not in unknown]
        return Guide(predictor, known, is_whole=True, every_drafter=every, num_left=len(whole) - len(known))

    def priced() -> dict[str, object]:
        found, num_left = replay_study(predictor, space, task.settings, seconds, task.now)
        return {"configs": [one.to_json() for one in found], "num_left": num_left}

    kept = log.decide("priced", priced)
    if isinstance(kept, list):  # of a run that was begun before anything was left
        kept = {"configs": kept, "num_left": 0}
    configs = [SpecConfig.from_json(one) for one in kept["configs"]]
    return Guide(predictor, configs, is_whole=False, every_drafter=every, num_left=kept["num_left"])
