"""What followed every suffix of the texts, looked up once for all configurations of suffix decoding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autospec.config import MAX_DRAFT_LENGTH, MAX_SUFFIX_DEPTH, SpecConfig
from autospec.engine.drafters.automaton import SuffixAutomaton
from autospec.engine.drafters.suffix import Continuation, SuffixStore, continuations, token_budget
from autospec.replay.listing import Listing, Stepper
from autospec.replay.tables import Counts
from autospec.replay.trace import Trace

LEAST_SHARE = 0.05  # below which paths are so many that they are not listed
_DEPTH, _WIDTH = 16, 8  # one list of paths of this length and width serves all that are smaller
_MOST_KEPT = 32  # cuts


@dataclass(frozen=True, slots=True)
class SuffixCut:
    """The paths of one width and least share: see `Listing`.

    Args:
        listing: Of every suffix.
        shares: [suffixes, nodes] of the path to each node.
    """

    listing: Listing
    shares: NDArray[np.float64]


class SuffixLists:
    """Continuations of all suffixes at all positions, those in the text and those in the store.

    Args:
        trace: The texts.
        store: Of earlier texts.
        depth: Longest path.
        width: Most tokens behind a path.
    """

    def __init__(self, trace: Trace, store: SuffixStore, depth: int = _DEPTH, width: int = _WIDTH) -> None:
        self.depth, self.width = depth, width
        self._cuts: dict[tuple[int, float], SuffixCut] = {}
        lengths, aboves, paths = list[int](), list[int](), list[list[Continuation]]()
        firsts, wanted = list[int](), list[Sequence[int]]()
        for text, following in _texts(trace, store):
            firsts.append(len(paths))
            for automaton, state, length in text:
                lengths.append(length)
                aboves.append(automaton.length[automaton.link[state]])
                paths.append(list(continuations(automaton, state, width, LEAST_SHARE, depth)))
                wanted.append(following)
        self._lengths, self._aboves = np.array(lengths, dtype=np.int64), np.array(aboves, dtype=np.int64)
        self._pack(paths, wanted)
        counts = np.diff([*firsts, len(paths)])
        places = np.repeat(np.arange(len(counts)), counts)
        # [positions, most suffixes] number of each, in the order in which they are tried; -1 where there is none.
        self._rows = np.full((len(counts), int(counts.max(initial=0)) or 1), -1, dtype=np.int64)
        self._rows[places, np.arange(len(paths)) - np.repeat(firsts, counts)] = np.arange(len(paths))

    def _pack(self, paths: Sequence[Sequence[Continuation]], wanted: Sequence[Sequence[int]]) -> None:
        """Make arrays [suffixes, nodes]."""
        shape = len(paths), max(map(len, paths), default=0) or 1
        levels, hits, aboves = (np.zeros(shape, dtype=np.int16) for _ in range(3))
        # The smallest share and the worst rank along the path: what a cut must allow for it to be reached.
        self._shares, self._least, self._worst = np.zeros(shape), np.zeros(shape), np.zeros(shape, dtype=np.int16)
        for row, (nodes, following) in enumerate(zip(paths, wanted, strict=True)):
            is_hit, least, worst = [True], [1.0], [0]  # of the suffix itself, and then of the nodes
            for place, (share, token, parent, level, rank) in enumerate(nodes):
                hit = is_hit[parent + 1]
                levels[row, place], aboves[row, place] = level, level * hit
                hit = hit and level <= len(following) and token == following[level - 1]
                hits[row, place], self._shares[row, place] = level * hit, share
                is_hit.append(hit)
                least.append(min(least[parent + 1], share))
                worst.append(max(worst[parent + 1], rank))
            self._least[row, : len(nodes)], self._worst[row, : len(nodes)] = least[1:], worst[1:]
        self._listing = Listing(levels, hits, aboves)

    def cut(self, width: int, least: float) -> SuffixCut:
        """Return the paths of a width and least share, those this one holds at most."""
        if (width, least) not in self._cuts:
            if len(self._cuts) == _MOST_KEPT:
                self._cuts.clear()
            whole = self._listing
            keep = (whole.levels > 0) & (self._worst < width) & (self._least >= least)
            order = np.argsort(~keep, axis=1, kind="stable")[:, : int(keep.sum(axis=1).max(initial=0)) or 1]
            parts = (whole.levels, whole.hits, whole.aboves, self._shares)
            *levels, shares = (np.take_along_axis(part * keep, order, axis=1) for part in parts)
            self._cuts[width, least] = SuffixCut(Listing(*levels), shares)
        return self._cuts[width, least]

    def stepper(self, config: SpecConfig) -> Stepper:
        """Return the steps of a configuration, which this holds."""
        is_chain = config.tree_shape == "chain"
        cut = self.cut(1 if is_chain else config.tree_width, config.suffix_min_prob)
        lengths = np.minimum(self._lengths, config.suffix_depth)
        budgets = np.array([token_budget(config, length) for length in range(config.suffix_depth + 1)])[lengths]
        budgets[self._aboves >= config.suffix_depth] = 0
        most = MAX_DRAFT_LENGTH if is_chain else config.tree_nodes

        def step(places: NDArray[np.int64], limits: NDArray[np.int64]) -> Counts:
            rows = self._rows[places]
            at, slot = np.nonzero(rows >= 0)
            own = rows[at, slot]
            # A chain's budget is its limit, too.
            kept = cut.listing.kept(own, limits[at], np.minimum(budgets[own], most))
            scores = np.zeros(rows.shape)
            # One after the other, as the drafter adds them: two sums may differ in the last digit only.
            scores[at, slot] = np.where(kept, cut.shares[own], 0.0).cumsum(axis=1)[:, -1]
            best = scores.argmax(axis=1)  # the first of equals
            number = np.full(rows.shape, -1, dtype=np.int64)
            number[at, slot] = np.arange(len(own))
            chosen = number[np.arange(len(places)), best]
            found = np.zeros((4, len(places)), dtype=np.int16)
            some = scores[np.arange(len(places)), best] > 0.0
            found[:, some] = cut.listing.counts(own[chosen[some]], kept[chosen[some]])
            return found

        return step


def _texts(trace: Trace, store: SuffixStore) -> Iterator[tuple[list[tuple[SuffixAutomaton, int, int]], Sequence[int]]]:
    """Yield of every position the suffixes that were followed by something, the longest first, and what comes."""
    for row in range(len(trace.prompts)):
        text, match = SuffixAutomaton(MAX_SUFFIX_DEPTH + MAX_DRAFT_LENGTH), (0, 0)
        prompt, output = trace.prompt_ids(row), trace.output_ids(row)
        text.extend(prompt)
        for token in prompt:
            match = store.automaton.advance(*match, token, MAX_SUFFIX_DEPTH)
        for place, token in enumerate(output[:-1]):
            text.extend([token])
            match = store.automaton.advance(*match, token, MAX_SUFFIX_DEPTH)
            found = [(text, *one) for one in text.suffixes(MAX_SUFFIX_DEPTH)]
            found += [(store.automaton, *one) for one in store.automaton.suffixes_of(*match, MAX_SUFFIX_DEPTH)]
            yield found, output[place + 1 :]
