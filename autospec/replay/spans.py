"""Drafters that copy spans: what n-gram lookup and lookahead decoding find at every position, and the tries of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autospec.config import SpecConfig
from autospec.replay.forest import Ints
from autospec.replay.listing import Listing
from autospec.replay.tables import Counts, StepTable
from autospec.replay.trace import Trace
from autospec.replay.windowing import RecordedLookahead

_CELLS = 1 << 20  # of contexts times tokens of a text that are looked at together


@dataclass(frozen=True, slots=True)
class Spans:
    """Spans found at every position, the best first: what a chain copies, and what a trie merges.

    Args:
        lengths: [positions, spans] of each; 0 where there is none.
        hits: [positions, spans] how many of its first tokens the target writes.
        shared: [positions, spans, spans] how many first tokens two have in common.
    """

    lengths: Counts
    hits: Counts
    shared: Counts

    @property
    def num_bytes(self) -> int:
        """Size of all arrays."""
        return self.lengths.nbytes + self.hits.nbytes + self.shared.nbytes

    @classmethod
    def of(cls, trace: Trace, tokens: Ints) -> Spans:
        """Compare spans [positions, spans, depth], -1 behind their ends."""
        num, width, depth = tokens.shape
        wanted = np.concatenate([trace.next_tokens, np.full(depth, -2, dtype=np.int32)])
        follows = wanted[np.arange(num)[:, None] + np.arange(depth)]
        there = tokens >= 0
        hits = _agreeing((tokens == follows[:, None]) & there)
        shared = np.stack(
            [_agreeing((tokens == tokens[:, one, None]) & there & there[:, one, None]) for one in range(width)], axis=1
        )
        return cls(there.sum(axis=2, dtype=np.int16), hits, shared)

    def chains(self) -> StepTable:
        """Return the steps of the longest chains, from which shorter ones are cut."""
        table = StepTable.empty(len(self.lengths))
        table.nodes[:] = table.depth[:] = self.lengths[:, 0]
        table.accepted[:] = self.hits[:, 0]
        table.tested[:] = table.accepted + (table.accepted < table.nodes)
        return table

    def trie(self, width: int) -> Listing:
        """Return the tries of so many spans, the heaviest nodes first.

        As the drafters weigh them: each token of span number i adds half as much as the one of the span before, and a
        share of its depth. A node is never heavier than the one it stands behind, so the order of weights is that in
        which a trie is cut, and of equals that which was inserted first comes first.
        """
        width = min(width, self.lengths.shape[1])
        lengths, shared = self.lengths[:, :width], self.shared[:, :width, :width]
        places = np.arange(1, max(int(lengths.max(initial=0)), 1) + 1)
        weights = np.zeros((len(lengths), width, len(places)))
        # A node belongs to the first span that goes through it.
        before = np.zeros_like(lengths)
        for rank in range(width):
            through = places <= shared[:, :, rank, None]
            weights[:, : rank + 1] += np.where(through[:, : rank + 1], 2.0**-rank / places, 0.0)
            if rank:
                before[:, rank] = shared[:, :rank, rank].max(axis=1)
        own = (places > before[:, :, None]) & (places <= lengths[:, :, None])
        num = len(lengths)
        keys = np.where(own, -weights, 0.0).reshape(num, -1)
        order = np.argsort(keys, axis=1, kind="stable")[:, : int(own.reshape(num, -1).sum(axis=1).max(initial=0)) or 1]
        levels = np.where(own, places, 0)
        hits = self.hits[:, :width, None]
        parts = (levels, levels <= hits, levels <= hits + 1)
        return Listing.of(*(np.take_along_axis(part.reshape(num, -1), order, axis=1) for part in parts))


def _agreeing(equal: NDArray[np.bool_]) -> Counts:
    return np.asarray(equal.cumprod(axis=-1, dtype=np.int8).sum(axis=-1, dtype=np.int16))


def ngram_spans(trace: Trace, config: SpecConfig, width: int, depth: int) -> Spans:
    """Return what followed the matches of n-gram lookup: those of the longest suffix first, the most recent first.

    Args:
        trace: The texts.
        config: The shortest and the longest suffix.
        width: Most spans.
        depth: Longest span.
    """
    found = np.full((trace.num_positions, width, depth), -1, dtype=np.int32)
    for row in range(len(trace.prompts)):
        start, first = int(trace.text_starts[row]), int(trace.position_starts[row])
        text = trace.text[start : int(trace.text_starts[row + 1])]
        own = slice(first, int(trace.position_starts[row + 1]))
        contexts = trace.contexts[own]
        step = max(_CELLS // len(text), 1)
        parts = [_match_ends(text, contexts[at : at + step], config, width) for at in range(0, len(contexts), step)]
        ends = np.concatenate(parts) if parts else np.zeros((0, width), dtype=np.int64)
        places = ends[:, :, None] + np.arange(depth)
        is_known = (ends[:, :, None] >= 0) & (places < contexts[:, None, None])
        found[own] = np.where(is_known, text[np.minimum(places, len(text) - 1)], -1)
    return Spans.of(trace, found)


def _match_ends(text: Ints, contexts: NDArray[np.int64], config: SpecConfig, width: int) -> NDArray[np.int64]:
    """Return where matches of the last tokens before each context end: [contexts, width]; -1 where there are fewer."""
    ends = np.arange(len(text))
    alive = (ends > 0) & (ends < contexts[:, None])
    sizes = np.zeros(alive.shape, dtype=np.int64)
    for size in range(1, min(config.ngram_max, len(text) - 1) + 1):
        here = np.full(len(text), -1, dtype=text.dtype)
        here[size:] = text[: len(text) - size]
        alive = alive & (here == text[contexts - size, None])
        sizes += alive
    values = np.where(sizes >= config.ngram_min, sizes * len(text) + ends, -1)
    if values.shape[1] > width:
        values = np.partition(values, values.shape[1] - width, axis=1)[:, -width:]
    best = np.sort(values, axis=1)[:, ::-1]
    found = np.full((len(contexts), width), -1, dtype=np.int64)
    found[:, : best.shape[1]] = np.where(best >= 0, best % len(text), -1)
    return found


def lookahead_spans(trace: Trace, drafter: RecordedLookahead, config: SpecConfig, width: int) -> Spans:
    """Return the n-grams that begin with the last token, the newest first; arguments as for `ngram_spans`.

    Raises:
        ReplayMiss: Their windows were not recorded.
    """
    found = np.full((trace.num_positions, width, config.lookahead_ngram - 1), -1, dtype=np.int32)
    for row in range(len(trace.prompts)):
        for place, tails in enumerate(drafter.pools(row, config), start=int(trace.position_starts[row])):
            own: Sequence[tuple[int, ...]] = tails[:width]
            if own:
                found[place, : len(own)] = own
    return Spans.of(trace, found)
