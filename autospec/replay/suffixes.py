"""What followed every suffix of the texts, looked up once for all configurations of suffix decoding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autospec.config import MAX_DRAFT_LENGTH, MAX_SUFFIX_DEPTH, SpecConfig
from autospec.engine.drafters.automaton import SuffixAutomaton
from autospec.engine.drafters.suffix import Continuation, SuffixStore, continuations, token_budget
from autospec.replay.keeping import Kept
from autospec.replay.listing import Listing, Stepper
from autospec.replay.tables import Counts
from autospec.replay.trace import Trace

LEAST_SHARE = 0.05  # below which paths are so many that they are not listed
_DEPTH, _WIDTH = 16, 8  # one list of paths of this length and width serves all that are smaller
_MOST_BYTES = 1 << 26  # of cuts


@dataclass(frozen=True, slots=True)
class SuffixCut:
    """The paths of one width and least share: see `Listing`.

    Args:
        listing: Of every suffix.
        shares: [suffixes, nodes] of the path to each node.
    """

    listing: Listing
    shares: NDArray[np.float64]

    @property
    def num_bytes(self) -> int:
        """Size of all arrays."""
        return self.listing.num_bytes + self.shares.nbytes


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
        self._cuts = Kept[SuffixCut](_MOST_BYTES)
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
        """Make arrays [nodes] of all paths, one list behind the other."""
        is_hit, is_above, least, worst = list[bool](), list[bool](), list[float](), list[int]()
        for nodes, following in zip(paths, wanted, strict=True):
            hits, lows, ranks = [True], [1.0], [0]  # of the suffix itself, and then of the nodes
            for share, token, parent, level, rank in nodes:
                above = hits[parent + 1]
                is_above.append(above)
                hits.append(above and level <= len(following) and token == following[level - 1])
                lows.append(min(lows[parent + 1], share))
                ranks.append(max(ranks[parent + 1], rank))
            is_hit += hits[1:]
            least += lows[1:]
            worst += ranks[1:]
        self._owners = np.repeat(np.arange(len(paths)), [len(nodes) for nodes in paths])
        self._levels = np.array([node.depth for nodes in paths for node in nodes], dtype=np.int16)
        self._hits, self._above = (
            self._levels * np.array(is_hit, dtype=bool),
            self._levels * np.array(is_above, dtype=bool),
        )
        self._shares = np.array([node.share for nodes in paths for node in nodes], dtype=np.float64)
        # The smallest share and the worst rank along the path: what a cut must allow for it to be reached.
        self._least, self._worst = np.array(least, dtype=np.float64), np.array(worst, dtype=np.int64)

    def _cut(self, width: int, least: float) -> SuffixCut:
        """Return the paths of a width and least share, those this one holds at most."""
        own = np.nonzero((self._worst < width) & (self._least >= least))[0]
        rows = self._owners[own]
        counts = np.bincount(rows, minlength=len(self._lengths))
        columns = np.arange(len(own)) - (np.cumsum(counts) - counts)[rows]
        shape, found = (len(counts), int(counts.max(initial=0)) or 1), []
        for part in (self._levels, self._hits, self._above, self._shares):
            padded = np.zeros(shape, dtype=part.dtype)
            padded[rows, columns] = part[own]
            found.append(padded)
        return SuffixCut(Listing(*found[:3]), found[3])

    @property
    def num_bytes(self) -> int:
        """Size of all arrays, what is cut from them left out."""
        parts = (self._levels, self._hits, self._above, self._shares, self._least, self._worst, self._owners)
        return sum(part.nbytes for part in parts)

    def stepper(self, config: SpecConfig) -> Stepper:
        """Return the steps of a configuration, which this holds."""
        is_chain = config.tree_shape == "chain"
        kind = 1 if is_chain else config.tree_width, config.suffix_min_prob
        cut = self._cuts.get(kind, lambda: self._cut(*kind))
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
