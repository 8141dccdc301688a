"""What a replay says of a configuration: the steps of every prompt, and how far the texts are walked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autospec.config import SpecConfig
from autospec.errors import ReplayError
from autospec.records import StepStats
from autospec.replay.trace import Trace
from autospec.replay.walking import Route


@dataclass(frozen=True, slots=True)
class Replay:
    """The steps of one configuration, those of the first prompt first: arrays [steps].

    Args:
        config: What was replayed.
        prompts: Row of the prompt in the trace.
        contexts: Tokens of the text when the step began; the target's cache held one fewer.
        nodes: Draft tokens verified; the target's forward ran one more.
        depth: Of the draft.
        accepted: Of them kept; one more token was written.
        tested: Positions put to the test.
        calls: Forwards of draft models, the first of each behind the text.
        run: Draft nodes that the forwards behind the first ran, all together.
        dropped: [prompts] tokens of the last step that stood behind the end of the output.
    """

    config: SpecConfig
    prompts: NDArray[np.int64]
    contexts: NDArray[np.int64]
    nodes: NDArray[np.int16]
    depth: NDArray[np.int16]
    accepted: NDArray[np.int16]
    tested: NDArray[np.int16]
    calls: NDArray[np.int16]
    run: NDArray[np.int16]
    dropped: NDArray[np.int64]

    @property
    def num_prompts(self) -> int:
        """Number of prompts in the trace."""
        return len(self.dropped)

    @property
    def firsts(self) -> NDArray[np.float64]:
        """1 for each prompt's first step that runs a draft model, 0 for the others: [steps]."""
        called = np.nonzero(self.calls > 0)[0]
        found = np.zeros(len(self.calls))
        found[called[np.unique(self.prompts[called], return_index=True)[1]]] = 1.0
        return found

    def per_prompt(self, counts: NDArray[np.int16] | None = None) -> NDArray[np.int64]:
        """Return the sum of one of the arrays for every prompt, or how many steps it has: [prompts]."""
        weights = None if counts is None else counts.astype(np.float64)
        return np.bincount(self.prompts, weights, minlength=self.num_prompts).astype(np.int64)

    def stats(self, row: int) -> StepStats:
        """Return the counts of one prompt, as a live run has them; its seconds are 0."""
        stats, own = StepStats(num_new_tokens=1), self.prompts == row
        for nodes, accepted, tested in zip(
            self.nodes[own].tolist(), self.accepted[own].tolist(), self.tested[own].tolist(), strict=True
        ):
            stats.add_step(nodes, accepted, tested)
            stats.num_new_tokens += accepted + 1
        stats.drop(int(self.dropped[row]))
        return stats


def route_of(trace: Trace, max_new_tokens: int | None, ends: Sequence[int] | None) -> Route:
    """Return how far the texts of a trace are walked; arguments as for `Simulator`.

    Raises:
        ReplayError: Not one end for each prompt, or more tokens than were recorded.
    """
    starts, left = trace.position_starts, trace.left(max_new_tokens)
    last = starts[1:].copy()
    if ends is not None:
        if len(ends) != len(trace.prompts):
            raise ReplayError(f"`ends` must name one for each prompt, but got {len(ends)} for {len(trace.prompts)}")
        last = np.minimum(last, starts[:-1] + np.array(ends, dtype=np.int64) - 1)
    return Route(starts[:-1], left, last[trace.prompt_of])
