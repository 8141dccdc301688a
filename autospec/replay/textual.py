"""Drafters that are functions of the text: they are run again over what was recorded, not recorded themselves.

The drafters of the engine do it, so there is nothing here to differ from them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.cache import KVCache
from autospec.engine.drafters import (
    DatastoreDrafter,
    Drafter,
    DraftPlan,
    LookaheadDrafter,
    NgramDrafter,
    RecyclingDrafter,
    SuffixDrafter,
)
from autospec.engine.drafters.suffix import SuffixStore
from autospec.engine.termination import Stopping
from autospec.errors import ReplayError
from autospec.replay.drafts import FollowsRows, RecordedRecycling, WarmNgram, WarmSuffix
from autospec.replay.tables import StepTable
from autospec.replay.trace import Trace
from autospec.replay.windowing import RecordedLookahead

TEXT_DRAFTERS = (NgramDrafter, SuffixDrafter, DatastoreDrafter, RecyclingDrafter, LookaheadDrafter)
# Of those whose shorter chains are the beginnings of longer ones: the fields of a configuration that decide a chain.
CHAIN_KNOBS: dict[type, tuple[str, ...]] = {
    NgramDrafter: ("ngram_min", "ngram_max"),
    DatastoreDrafter: (),
    RecordedRecycling: (),
    RecordedLookahead: ("lookahead_window", "lookahead_ngram"),
}


def made_of(source: str, trace: Trace) -> Drafter | None:
    """Make a drafter that needs nothing but its source; None where it needs more."""
    match source:
        case "ngram":
            return WarmNgram()
        case "suffix":
            return WarmSuffix(SuffixStore())
        case "recycling":
            return RecordedRecycling(trace)
        case "lookahead":
            return RecordedLookahead(trace)
    return None


def lookup_of(drafter: Drafter, trace: Trace, name: str) -> Drafter:
    """Return a drafter as it is run over a trace.

    Raises:
        ReplayError: It learns from one prompt to the next, so that its drafts depend on more than the text.
    """
    if isinstance(drafter, RecyclingDrafter):
        return RecordedRecycling(trace)
    if isinstance(drafter, LookaheadDrafter):
        return RecordedLookahead(trace)
    if isinstance(drafter, SuffixDrafter) and drafter.learns:
        raise ReplayError(f"a drafter that is replayed must begin every prompt in one state, but {name!r} learns")
    if type(drafter) is SuffixDrafter:
        return WarmSuffix(drafter.store)
    return WarmNgram() if type(drafter) is NgramDrafter else drafter


class ChainTables:
    """The longest chains of one drafter at every position, from which all shorter ones are cut.

    Args:
        trace: The texts.
        drafter: One of `CHAIN_KNOBS`.
    """

    def __init__(self, trace: Trace, drafter: Drafter) -> None:
        self._trace, self._drafter = trace, drafter
        self._knobs = next(knobs for kind, knobs in CHAIN_KNOBS.items() if isinstance(drafter, kind))
        self._kept: dict[tuple[object, ...], StepTable] = {}

    def table(self, config: SpecConfig, limits: NDArray[np.int64]) -> StepTable:
        """Return the steps of chains with limits [positions]."""
        key = tuple(getattr(config, knob) for knob in self._knobs)
        if key not in self._kept:
            longest = np.maximum(self._trace.left() - 1, 0)
            self._kept[key] = drafts_everywhere(self._trace, self._drafter, config, longest)
        return self._kept[key].cut(limits)


def drafts_everywhere(trace: Trace, drafter: Drafter, config: SpecConfig, limits: NDArray[np.int64]) -> StepTable:
    """Run a drafter over the texts, token by token, and return what it would do at every position.

    Args:
        trace: The texts.
        drafter: Knows texts only; begins every prompt in its declared state.
        config: Its knobs.
        limits: [positions] the longest draft that is asked for.
    """
    table = StepTable.empty(trace.num_positions)
    for row in range(len(trace.prompts)):
        prompt, output, start = trace.prompt_ids(row), trace.output_ids(row), int(trace.position_starts[row])
        if isinstance(drafter, FollowsRows):
            drafter.begin(row)
        capacity = 2 * (len(prompt) + len(output))
        drafter.start(prompt, DraftPlan(config, SamplingParams(), 0, capacity, Stopping(config), KVCache(1)))
        for place in range(len(output) - 1):
            drafter.commit(output[place : place + 1])
            limit = int(limits[start + place])
            table.put(start + place, drafter.propose(limit), output[place + 1 : place + 1 + limit])
    return table
