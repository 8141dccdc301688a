"""Drafters that are functions of the text: they are run again over what was recorded, not recorded themselves.

The drafters of the engine do it, so there is nothing here to differ from them.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from autospec.config import MAX_DRAFT_LENGTH, SamplingParams, SpecConfig
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
from autospec.replay.keeping import Kept
from autospec.replay.listing import Listing, Stepper, listed_steps
from autospec.replay.recycled import RecycledTrees
from autospec.replay.spans import Spans, lookahead_spans, ngram_spans
from autospec.replay.suffixes import LEAST_SHARE, SuffixLists
from autospec.replay.tables import Counts, StepTable
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

# Positions, and these times tokens of the longest text, beyond which drafts are made step by step: that takes longer,
# but no memory.
MOST_POSITIONS, MOST_CELLS = 1 << 14, 1 << 25
_DEPTH, _WIDTH, _NODES = 16, 8, 32  # what is listed so deep, wide and long serves all that is smaller
_MOST_WIDTH, _MOST_BYTES = 16, 1 << 26


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


class TextTables:
    """Drafts that are functions of the text, at every position, computed once for all configurations that share them.

    Args:
        trace: The texts.
        most: [positions] longest draft that could be used there.
    """

    def __init__(self, trace: Trace, most: NDArray[np.int64]) -> None:
        self._trace, self._most = trace, most
        self._chains, self._spans = Kept[StepTable](_MOST_BYTES), Kept[Spans](_MOST_BYTES)
        self._tries, self._trees = Kept[Listing](_MOST_BYTES), Kept[Listing](_MOST_BYTES)
        self._suffixes = Kept[SuffixLists](_MOST_BYTES)
        self._recycled: RecycledTrees | None = None

    def has_chains(self, drafter: Drafter | None, config: SpecConfig) -> bool:
        """Return whether `chains` knows what a drafter drafts."""
        if type(drafter) is WarmSuffix:
            return config.tree_shape == "chain" and self._lists(drafter, config)
        return config.tree_shape == "chain" and isinstance(drafter, tuple(CHAIN_KNOBS))

    def chains(self, name: str, drafter: Drafter, config: SpecConfig, limits: NDArray[np.int64]) -> StepTable:
        """Return the steps of chains with limits [..., positions]."""
        if isinstance(drafter, SuffixDrafter):
            return listed_steps(self._suffix_stepper(name, drafter, config), limits)
        return self._longest(name, drafter, config).cut(limits)

    def stepper(self, name: str, drafter: Drafter | None, config: SpecConfig) -> Stepper | None:
        """Return the steps of a drafter's trees; None where they are not listed."""
        shape, width = config.tree_shape, config.tree_width
        if not self._lists(drafter, config):
            return None
        if shape == "trie" and isinstance(drafter, WarmSuffix):
            return self._suffix_stepper(name, drafter, config)
        if shape == "trie" and isinstance(drafter, WarmNgram | RecordedLookahead):
            known = (*self._span_key(drafter, config), width)
            trie = self._tries.get(known, lambda: self._spans_of(drafter, config).trie(width))
            return trie.stepper(config.tree_nodes)
        if shape == "best_first" and isinstance(drafter, RecordedRecycling):
            return self._recycling_stepper(config)
        return None

    @functools.cached_property
    def _is_large(self) -> bool:
        num, longest = self._trace.num_positions, int(np.diff(self._trace.text_starts).max(initial=0))
        return num > MOST_POSITIONS or num * longest > MOST_CELLS

    def _lists(self, drafter: Drafter | None, config: SpecConfig) -> bool:
        """Return whether a drafter's drafts are few enough to be listed."""
        if self._is_large or config.tree_width > _MOST_WIDTH:
            return False
        is_warm = type(drafter) is WarmSuffix and config.suffix_min_prob >= LEAST_SHARE
        return is_warm or not isinstance(drafter, SuffixDrafter)

    def _longest(self, name: str, drafter: Drafter, config: SpecConfig) -> StepTable:
        """Return the steps of the longest chains, from which all shorter ones are cut."""
        if isinstance(drafter, WarmNgram | RecordedLookahead) and self._lists(drafter, config):
            known = self._span_key(drafter, config)
            return self._chains.get(known, lambda: self._spans_of(drafter, config).chains())
        knobs = next(knobs for kind, knobs in CHAIN_KNOBS.items() if isinstance(drafter, kind))
        known = (name, *(getattr(config, knob) for knob in knobs))
        return self._chains.get(known, lambda: drafts_everywhere(self._trace, drafter, config, self._whole))

    @property
    def _whole(self) -> NDArray[np.int64]:
        return np.maximum(self._trace.left() - 1, 0)

    def _span_key(self, drafter: WarmNgram | RecordedLookahead, config: SpecConfig) -> tuple[object, ...]:
        width = max(config.tree_width, _WIDTH)
        if isinstance(drafter, RecordedLookahead):
            return "lookahead", config.lookahead_window, config.lookahead_ngram, width, 0
        depth = _DEPTH if config.draft_length <= _DEPTH else MAX_DRAFT_LENGTH
        return "ngram", config.ngram_min, config.ngram_max, width, depth

    def _spans_of(self, drafter: WarmNgram | RecordedLookahead, config: SpecConfig) -> Spans:
        known = self._span_key(drafter, config)
        _, _, _, width, depth = known
        assert isinstance(width, int)
        assert isinstance(depth, int)
        if isinstance(drafter, RecordedLookahead):
            return self._spans.get(known, lambda: lookahead_spans(self._trace, drafter, config, width))
        return self._spans.get(known, lambda: ngram_spans(self._trace, config, width, depth))

    def _suffix_stepper(self, name: str, drafter: SuffixDrafter, config: SpecConfig) -> Stepper:
        depth = _DEPTH if config.draft_length <= _DEPTH else MAX_DRAFT_LENGTH
        width = _WIDTH if config.tree_shape == "chain" else max(config.tree_width, _WIDTH)
        lists = self._suffixes.get((name, depth, width), lambda: SuffixLists(self._trace, drafter.store, depth, width))
        return lists.stepper(config)

    def _recycling_stepper(self, config: SpecConfig) -> Stepper:
        if self._recycled is None:
            self._recycled = RecycledTrees(self._trace, self._most)
        trees, width, budget = self._recycled, config.tree_width, max(config.tree_nodes, _NODES)

        def step(places: NDArray[np.int64], limits: NDArray[np.int64]) -> Counts:
            counts = np.zeros((4, len(places)), dtype=np.int16)
            budgets = np.full(len(places), config.tree_nodes)
            # A tree that is shorter only because the output ends is among those of the longer limit.
            asked = np.where(limits < self._most[places], limits, config.draft_length)
            for limit in np.unique(asked[limits > 0]).tolist():
                own = (asked == limit) & (limits > 0)
                listing = self._trees.get(
                    (width, limit, budget), functools.partial(trees.listing, width, limit, budget)
                )
                kept = listing.kept(places[own], limits[own], budgets[own])
                counts[:, own] = listing.counts(places[own], kept)
            return counts

        return step


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
