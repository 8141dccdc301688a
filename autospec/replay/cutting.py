"""Trees of every budget and threshold, cut from one growth; see `autospec.replay.branching` for why they nest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from autospec.replay.forest import DraftForest, Ints
from autospec.replay.tables import StepTable

Counts = NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Level:
    """What had been seen at every position when a growth reached a depth, the most probable paths first.

    Arrays [positions, budget] of paths, or [positions, budget + 1] of what the first 0, 1, 2, ... of them make.

    Args:
        probs: Of the path to each; 0 where there is none.
        level: Depth of each.
        parent: Node it stands behind.
        rank: As which candidate.
        order: When it was grown, among all of its depth.
        num: [positions] paths that there are.
        accepted: How many the target writes.
        tested: How many are put to the test.
        depth: Of the deepest.
        run: How many are expanded next.
        first_lacking: [positions] the first that is expanded next and was not recorded; the budget where all were.
    """

    probs: NDArray[np.float64]
    level: Counts
    parent: Ints
    rank: Counts
    order: Ints
    num: NDArray[np.int64]
    accepted: Counts
    tested: Counts
    depth: Counts
    run: Counts
    first_lacking: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        seen: Sequence[NDArray[Any]],
        expanded: tuple[NDArray[np.int64], NDArray[np.int64]],
        known: NDArray[np.bool_],
    ) -> Self:
        """Make it.

        Args:
            seen: Log-probabilities of paths, depths, whether the target writes them, whether it writes what is before
                them, parents, ranks and orders.
            expanded: Rows and columns of what is expanded next.
            known: Of these, whether they were recorded.
        """
        values, level, hit, above, parent, rank, order = seen
        there, (rows, columns) = values > -np.inf, expanded
        budget, next_ones = values.shape[1], np.zeros(values.shape, dtype=np.bool_)
        next_ones[rows, columns] = True
        first = np.full(len(values), budget, dtype=np.int64)
        np.minimum.at(first, rows[~known], columns[~known])
        return cls(
            probs=np.exp(values),
            level=np.asarray(level, dtype=np.int16),
            parent=np.asarray(parent, dtype=np.int32),
            rank=np.asarray(rank, dtype=np.int16),
            order=np.asarray(order, dtype=np.int32),
            num=there.sum(axis=1),
            # A path comes behind its beginning, so what is written is written without gaps, and what is tested last is
            # the deepest behind something written.
            accepted=_sums(there & hit),
            tested=_deepest(np.where(there & above, level, 0)),
            depth=_deepest(np.where(there, level, 0)),
            run=_sums(next_ones),
            first_lacking=first,
        )

    def stopped(self) -> Self:
        """Return what the next depth sees where nothing is expanded."""
        full = np.full_like(self.first_lacking, self.probs.shape[1])
        return replace(self, run=np.zeros_like(self.run), first_lacking=full)

    def kept(self, budget: int, least: float) -> NDArray[np.int64]:
        """Return how many of the paths a budget and a least probability keep: [positions]."""
        good = self.num if least <= 0.0 else (self.probs >= least).sum(axis=1)
        return np.minimum(good, budget)


@dataclass(frozen=True, slots=True)
class Layers:
    """Beams or best-first trees of one budget and threshold at positions.

    Args:
        table: [deepest limit + 1, positions] the steps of every depth limit, each position's beyond its own limit
            undefined.
        levels: By depth limit, from 1, what they are cut from.
    """

    table: StepTable
    levels: tuple[Level, ...]

    @classmethod
    def cut(cls, levels: tuple[Level, ...], num_positions: int, budget: int, least: float) -> Self:
        """Cut them from a growth with at least that budget."""
        table, every = StepTable.empty(len(levels) + 1, num_positions), np.arange(num_positions)
        calls, run = np.ones(num_positions, dtype=np.int16), np.zeros(num_positions, dtype=np.int16)
        missing = np.zeros(num_positions, dtype=np.bool_)
        for limit, level in enumerate(levels, start=1):
            kept = level.kept(budget, least)
            table.nodes[limit] = kept
            for name in ("accepted", "tested", "depth"):
                getattr(table, name)[limit] = getattr(level, name)[every, kept]
            table.calls[limit], table.run[limit], table.is_missing[limit] = calls, run, missing
            more = level.run[every, kept]
            calls, run = calls + (more > 0), run + more
            missing = missing | (level.first_lacking < kept)
        return cls(table, levels)

    def tree(self, forest: DraftForest, place: int, limit: int) -> tuple[list[int], list[int]]:
        """Return tokens and parents of one tree, in the order in which the engine grows it.

        Args:
            forest: It was grown in.
            place: Among the positions.
            limit: Its depth limit, at least 1.
        """
        seen = self.levels[min(limit, len(self.levels)) - 1]
        num = int(self.table.nodes[min(limit, len(self.levels)), place])
        kept = np.lexsort((seen.order[place, :num], seen.level[place, :num]))
        above, ranks = seen.parent[place, kept], seen.rank[place, kept]
        tokens, behind = forest.rows.tokens[above, ranks].tolist(), forest.children[above, ranks].tolist()
        known: dict[int, int] = {}
        parents = []
        for node, (parent, child) in enumerate(zip(above.tolist(), behind, strict=True)):
            parents.append(known.get(parent, -1))
            if child >= 0:
                known[child] = node
        return tokens, parents


def _sums(flags: NDArray[np.bool_]) -> Counts:
    found = np.zeros((len(flags), flags.shape[1] + 1), dtype=np.int16)
    flags.cumsum(axis=1, dtype=np.int16, out=found[:, 1:])
    return found


def _deepest(levels: NDArray[np.int16]) -> Counts:
    found = np.zeros((len(levels), levels.shape[1] + 1), dtype=np.int16)
    np.maximum.accumulate(levels, axis=1, out=found[:, 1:])
    return found
