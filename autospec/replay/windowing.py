"""Records the windows of lookahead decoding, which are a function of the text; whole drafters are made of them again.

Windows of one size begin at every so many tokens of a text, and those with more iterations contain those with fewer,
so only sizes are recorded apart. They run several tokens for each token of the text, prompts included, which takes
longer than plain decoding: they are recorded when they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.cache import KVCache
from autospec.engine.drafters import DraftPlan, LookaheadDrafter
from autospec.engine.drafters.lookahead import WINDOWS_AT_ONCE, iterate
from autospec.engine.model import CausalLM
from autospec.engine.termination import Stopping
from autospec.errors import ReplayMiss
from autospec.replay.forest import Ints
from autospec.replay.trace import Trace


class RecordedLookahead(LookaheadDrafter):
    """Lookahead whose windows were run when the text was recorded.

    Args:
        trace: Holds them, by size.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def begin(self, row: int) -> None:
        """See `FollowsRows`."""
        self._row = row

    def pools(self, row: int, config: SpecConfig) -> Iterator[list[tuple[int, ...]]]:
        """Yield what followed the last token in the pool, the newest first, at every position of a text."""
        self.begin(row)
        prompt, output = self._trace.prompt_ids(row), self._trace.output_ids(row)
        self.start(prompt, DraftPlan(config, SamplingParams(), 0, len(prompt), Stopping(config), KVCache(1)))
        for token in output[:-1]:
            self.commit([token])
            yield self._found()

    def _own(self, config: SpecConfig) -> Ints:
        """Return what the windows of this text hold: [windows, size, tokens]."""
        size, depth = config.lookahead_window, config.lookahead_ngram - 1
        windows = self._trace.windows.get(size)
        if windows is None or windows.shape[2] < depth:
            raise ReplayMiss(f"windows must be recorded, but those of {size} tokens and {depth} iterations are not")
        counts = np.diff(self._trace.text_starts) // size
        first = int(counts[: self._row].sum())
        return windows[first : first + int(counts[self._row]), :, :depth]

    def _end(self, config: SpecConfig) -> int:
        fits = (self._own(config)[:, 0, -1] >= 0).sum()
        return int(fits + 1) * config.lookahead_window - 1

    def _guess(self, text: Sequence[int], starts: Sequence[int], config: SpecConfig) -> list[list[tuple[int, ...]]]:
        own, size = self._own(config), config.lookahead_window
        return [list(map(tuple, own[(start + 1) // size - 1].tolist())) for start in starts]


def record_windows(target: CausalLM, trace: Trace, size: int, depth: int) -> None:
    """Add windows to a trace.

    Args:
        target: It wrote the texts.
        trace: Changed.
        size: Tokens of a window.
        depth: Iterations; those that would reach beyond the target's length are left out, -1.
    """
    found = []
    for row in range(len(trace.prompts)):
        text = [*trace.prompt_ids(row), *trace.output_ids(row)]
        cache = KVCache(len(text) + WINDOWS_AT_ONCE * (size + depth))
        target.forward(torch.tensor([text]), cache, num_logits=1)
        found.append(_windows(target, cache, text, size, depth))
    trace.windows[size] = np.concatenate(found)


def _windows(target: CausalLM, cache: KVCache, text: Sequence[int], size: int, depth: int) -> Ints:
    """Return the windows of one text: [windows, size, depth]."""
    every = range(size - 1, len(text), size)
    found = np.full((len(every), size, depth), -1, dtype=np.int32)
    for first, starts in _batches(every):
        rows = [[text[at], *text[at - size + 1 : at]] for at in starts]
        for step in range(depth):
            # Row by row they grow longer, so that the last of a batch are the first to reach the target's end.
            fitting = sum(at + len(rows[0]) <= target.usable_length for at in starts)
            if not fitting:
                break
            rows = iterate(target, cache, rows[:fitting], starts[:fitting])
            found[first : first + fitting, :, step] = [row[step + 1 : step + 1 + size] for row in rows]
    return found


def _batches(starts: range) -> Iterator[tuple[int, range]]:
    for first in range(0, len(starts), WINDOWS_AT_ONCE):
        yield first, starts[first : first + WINDOWS_AT_ONCE]
