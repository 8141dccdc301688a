"""What every step of a replay takes on a machine: the measured points of its profile, straight lines between them.

Arrays in, arrays out, so that thousands of configurations are priced in seconds. Refuses what was not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from autospec.config import SpecConfig
from autospec.profiling import HardwareProfile
from autospec.replay import Expectation, Replay

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
# What is priced: the arrays of an expectation mean the same.
Steps = Replay | Expectation


class StepCosts:
    """Prices steps.

    Args:
        profile: Of the machine.
        recorded: Drafters that run a model, forward by forward; the others look text up.
        contexts: [any] every context length that will be asked for, tokens cached before a step.
    """

    def __init__(self, profile: HardwareProfile, recorded: Collection[str], contexts: Ints) -> None:
        self.profile, self._recorded = profile, frozenset(recorded)
        low, high = int(contexts.min(initial=1 << 30)), int(contexts.max(initial=0))
        between = [one for one in profile.contexts if low < one < high]
        self._grid = np.array(sorted({low, *between, high}), dtype=np.float64)
        # What was asked of the profile once is kept: the same few sizes come again in every configuration.
        self._line = cache(self._measure)

    def plain(self, contexts: Ints) -> Floats:
        """Return the seconds of steps of the plain loop: [steps]."""
        return self._interpolated(("plain",), contexts)

    def steps(self, replay: Steps) -> Floats:
        """Return the seconds of every step where it is taken, drafting, verifying, accepting, committing: [steps].

        Raises:
            MeasurementError: More tokens, a longer draft or another context than the profile has.
        """
        config, contexts = replay.config, replay.contexts - 1
        if config.is_off:
            return self.plain(contexts)
        total = self._by_size("target", replay.nodes.astype(np.int64) + 1, contexts) + self.around(replay)
        return total + sum(self.drafts(name, replay) for name in config.drafter_names)

    def around(self, replay: Steps) -> Floats:
        """Return what steps take outside the target's forward and their drafts: [steps]."""
        config, contexts = replay.config, replay.contexts - 1
        if config.is_off:
            return np.maximum(self.plain(contexts) - self._interpolated(("target", 1), contexts), 0.0)
        total = self._by_size("host", replay.nodes.astype(np.int64) + 1, contexts)
        for name in config.drafter_names:
            total = total + self._interpolated(("extra", name, config.exit_layer), contexts)
        return total

    def first_drafts(self, replay: Steps) -> Floats:
        """Return what each prompt's first draft takes beyond a later one, the prompt through the drafter: [prompts].

        Zero for prompts whose drafts never ran a model; where steps have chances, the mean.
        """
        first = replay.firsts > 0.0
        extra, contexts = np.zeros(int(first.sum())), (replay.contexts - 1)[first]
        for name in replay.config.drafter_names:
            if name in self._recorded and len(extra):
                extra += self._interpolated(("first", name, replay.config.exit_layer), contexts)
        weights = np.maximum(extra, 0.0) * replay.firsts[first]
        return np.bincount(replay.prompts[first], weights, minlength=replay.num_prompts).astype(np.float64)

    def starts(self, replay: Steps) -> Floats:
        """Return what it takes to take in each prompt where drafts are looked up, before the first step: [prompts].

        Zero for prompts of a single new token, which take no step.
        """
        names = [name for name in replay.config.drafter_names if name not in self._recorded]
        firsts, extra = np.full(replay.num_prompts, np.iinfo(np.int64).max), np.zeros(replay.num_prompts)
        np.minimum.at(firsts, replay.prompts, replay.contexts - 1)
        stepped = np.unique(replay.prompts)
        for name in names:
            seconds = self._interpolated(("first", name, replay.config.exit_layer), firsts[stepped])
            extra[stepped] += np.maximum(seconds, 0.0)
        return extra

    def gaps(self, steps: Expectation) -> Floats:
        """Return how long after the tokens before them those of every step come: [steps], first drafts included."""
        share = np.divide(steps.firsts, steps.chances, out=np.zeros(len(steps.chances)), where=steps.chances > 0.0)
        return self.steps(steps) + share * self.first_drafts(steps)[steps.prompts]

    def prefills(self, lengths: Ints, config: SpecConfig) -> Floats:
        """Return the seconds of prompts through the target, with what the drafter asks of that: [prompts]."""
        drafter = None if config.is_off else config.drafter_names[0]
        return np.array([self.profile.prefill_seconds(int(one), drafter) for one in lengths])

    def drafts(self, name: str, replay: Steps) -> Floats:
        """Return what the drafts of one drafter take: [steps]."""
        config, contexts = replay.config, replay.contexts - 1
        calls, depth = replay.calls.astype(np.int64), replay.depth.astype(np.int64)
        if name not in self._recorded:
            # Of several drafters, a model that was called means that the lookup before it found nothing.
            found = np.where(calls > 0, 1, np.maximum(depth, 1))
            return self._by_size(f"draft {name}", found, contexts, config.exit_layer, 1)
        if config.tree_shape == "chain":
            return self._by_size(f"draft {name}", calls, contexts, config.exit_layer, 1)
        widths = np.maximum(replay.run.astype(np.float64) / np.maximum(calls - 1, 1), 1.0)
        total = np.zeros(len(calls))
        for width in np.unique(np.round(widths, 1)):
            asked = np.round(widths, 1) == width
            total[asked] = self._by_size(f"draft {name}", calls[asked], contexts[asked], config.exit_layer, width)
        return total

    def _by_size(self, what: str, sizes: Ints, contexts: Ints, exit_layer: int = 0, width: float = 1) -> Floats:
        total = np.zeros(len(sizes))
        for size in np.unique(sizes):
            if size > 0:
                asked = sizes == size
                total[asked] = self._interpolated((what, int(size), exit_layer, float(width)), contexts[asked])
        return total

    def _interpolated(self, key: tuple[str | int | float, ...], contexts: Ints) -> Floats:
        return np.interp(contexts, self._grid, self._line(key))

    def _measure(self, key: tuple[str | int | float, ...]) -> Floats:
        value = self._asked(key)
        return np.array([value(int(context)) for context in self._grid])

    def _asked(self, key: tuple[str | int | float, ...]) -> Callable[[int], float]:
        """Return the curve over contexts that a key means."""
        what, *rest = key
        if what == "plain":
            return self.profile.plain_seconds
        if what == "target":
            return partial(self.profile.target_seconds, int(rest[0]))
        if what == "host":
            return partial(self.profile.host_seconds, int(rest[0]))
        if what == "extra":
            return partial(self._extra, str(rest[0]), int(rest[1]))
        if what == "first":
            return partial(self._first, str(rest[0]), int(rest[1]))
        name = str(what).removeprefix("draft ")
        return partial(self._draft, name, int(rest[0]), int(rest[1]), float(rest[2]))

    def _extra(self, name: str, exit_layer: int, context: int) -> float:
        own = self.profile.host_seconds(1, context, name, exit_layer=exit_layer)
        fixed = self.profile.fixed_seconds(name, context, exit_layer)
        # Both are differences of timings and may be below 0 by noise; what a drafter costs is not.
        return max(own - self.profile.host_seconds(1, context) + fixed, 0.0)

    def _first(self, name: str, exit_layer: int, context: int) -> float:
        first = self.profile.first_draft_seconds(name, context, exit_layer)
        return first - self.profile.draft_seconds(name, 1, context, exit_layer=exit_layer)

    def _draft(self, name: str, depth: int, exit_layer: int, width: float, context: int) -> float:
        """Return what a draft takes whose later forwards run `width` rows on average: between the widths measured."""
        low, high = int(np.floor(width)), int(np.ceil(width))
        ends = [
            self.profile.draft_seconds(name, depth, context, width=one, exit_layer=exit_layer) for one in (low, high)
        ]
        return ends[0] + (ends[1] - ends[0]) * (width - low)


def p95_by_prompt(gaps: Floats, prompts: Ints, num_prompts: int, chances: Floats | None = None) -> Floats:
    """Return the 95th percentile of each prompt's gaps, as `autospec.records.p95`: [prompts]; 0 without any.

    Args:
        gaps: [steps] seconds.
        prompts: [steps] row of the prompt.
        num_prompts: How many prompts.
        chances: [steps] that each is taken; the percentile is then the first gap up to which 95 % of the steps that
            are expected lie. None: all are taken.
    """
    order, result = np.lexsort((gaps, prompts)), np.zeros(num_prompts)
    ordered, counts = gaps[order], np.bincount(prompts, minlength=num_prompts)
    some = counts > 0
    ends = np.cumsum(counts)[some]
    if chances is not None:
        for row, end, count in zip(np.flatnonzero(some), ends, counts[some], strict=True):
            reached = np.cumsum(chances[order][end - count : end])
            place = int(np.searchsorted(reached, 0.95 * reached[-1] - 1e-12))
            result[row] = ordered[end - count + min(place, count - 1)]
        return result
    places = 0.95 * (counts[some] - 1)
    low = ends - counts[some] + places.astype(np.int64)
    high = np.minimum(low + 1, ends - 1)
    result[some] = ordered[low] + (ordered[high] - ordered[low]) * (places % 1.0)
    return result
