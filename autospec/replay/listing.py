"""Drafts as lists: nodes in the order in which they are taken, from which budgets and depth limits are cut.

For drafters that take one node after the other, each behind its parent, and would take those that a limit allows in
the same order if there were none. Then what a limit leaves over, in order, is the draft under that limit, and its
beginning the draft of a smaller budget. So one list serves many configurations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from autospec.config import SpecConfig
from autospec.engine.termination import heuristic_length
from autospec.replay.tables import Counts, StepTable
from autospec.replay.walking import Route

_NAMES = ("nodes", "depth", "accepted", "tested")
_AT_ONCE = 2048  # positions, so that many take no more memory than few
# Nodes, depth, accepted and tested [4, n] of the drafts at places [n] under depth limits [n].
Stepper = Callable[[NDArray[np.int64], NDArray[np.int64]], Counts]


@dataclass(frozen=True, slots=True)
class Listing:
    """Lists of nodes: [lists, nodes] each; 0 behind the end of a list.

    Args:
        levels: Depth of each, from 1.
        hits: The same where the target writes the path to it and it, else 0.
        aboves: The same where the target writes the path to it.
    """

    levels: Counts
    hits: Counts
    aboves: Counts

    @classmethod
    def of(cls, levels: NDArray[np.int64], hits: NDArray[np.bool_], aboves: NDArray[np.bool_]) -> Self:
        """Make it of what holds for every node."""
        small = np.ascontiguousarray(levels, dtype=np.int16)
        return cls(small, np.ascontiguousarray(small * hits), np.ascontiguousarray(small * aboves))

    @property
    def num_bytes(self) -> int:
        """Size of all arrays."""
        return self.levels.nbytes + self.hits.nbytes + self.aboves.nbytes

    def kept(
        self, rows: NDArray[np.int64], limits: NDArray[np.int64], budgets: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Return which nodes of lists [n] are drafted under depth limits and budgets of nodes [n]: [n, nodes]."""
        levels = self.levels[rows]
        keep = (levels > 0) & (levels <= limits[:, None])
        keep &= keep.cumsum(axis=1, dtype=np.int16) <= budgets[:, None]
        return np.asarray(keep)

    def counts(self, rows: NDArray[np.int64], kept: NDArray[np.bool_]) -> Counts:
        """Return nodes, depth, accepted and tested of what is drafted: [4, n]."""
        found = np.zeros((4, len(rows)), dtype=np.int16)
        found[0] = kept.sum(axis=1)
        for place, levels in enumerate((self.levels, self.hits, self.aboves), start=1):
            (levels[rows] * kept).max(axis=1, initial=0, out=found[place])
        return found

    def stepper(self, budget: int) -> Stepper:
        """Return the steps of a budget, where list number i is that of position i."""

        def step(places: NDArray[np.int64], limits: NDArray[np.int64]) -> Counts:
            return self.counts(places, self.kept(places, limits, np.full(len(places), budget)))

        return step


def listed_steps(step: Stepper, limits: NDArray[np.int64]) -> StepTable:
    """Return the steps at every position under depth limits [..., positions]."""
    table, num = StepTable.empty(*limits.shape), limits.shape[-1]
    for place in np.ndindex(limits.shape[:-1]):
        for start in range(0, num, _AT_ONCE):
            some = slice(start, min(start + _AT_ONCE, num))
            counts = step(np.arange(some.start, some.stop), limits[place][some])
            for name, values in zip(_NAMES, counts, strict=True):
                getattr(table, name)[place][some] = values
    return table


def walk_listed(step: Stepper, config: SpecConfig, route: Route) -> StepTable:
    """Return the steps at the positions that are visited under a draft length that moves, or at all positions.

    Args:
        step: Gives them.
        config: Its draft length, and whether that changes from step to step.
        route: The texts.
    """
    most = np.maximum(route.left - 1, 0)
    if config.stop_rule != "heuristic":
        return listed_steps(step, np.minimum(most, config.draft_length))
    table = StepTable.empty(len(most))
    places = route.beginnings[route.beginnings >= 0]
    lengths = np.full(len(places), min(config.draft_length_start, config.draft_length), dtype=np.int64)
    while len(places):
        counts = step(places, np.minimum(most[places], lengths))
        for name, values in zip(_NAMES, counts, strict=True):
            getattr(table, name)[places] = values
        _, depths, accepted, _ = counts.astype(np.int64)
        lengths = heuristic_length(lengths, depths, accepted, config.draft_length)
        places = route.moved(places, accepted)
        places, lengths = places[places >= 0], lengths[places >= 0]
    return table
