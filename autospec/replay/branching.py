"""Trees of recorded drafters, grown at many positions at once; the array form of `autospec.engine.growth`.

Depth by depth, so that one growth gives the trees of every depth limit. It gives those of every smaller budget, too,
and of every cumulative threshold. What was seen, sorted by probability, begins with what a smaller budget keeps: a
node that only the larger one saw stands behind one that the smaller one cut, is no more probable than that, and bounds
only rise. A threshold cuts the same list at a probability. So only shape and width make another growth. Trees of
another width do not nest: a wider one keeps siblings in place of what a narrower one would have expanded below them,
and a wider beam need not carry on a narrower one's nodes.

Knows no model: what was not recorded is asked for, or marked as lacking.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from autospec.config import SpecConfig
from autospec.replay.cutting import Level
from autospec.replay.forest import DraftForest, Ints

# Adds the nodes behind candidates (parents, ranks) to the forest.
Adder = Callable[[Ints, Ints], None]


@dataclass(frozen=True, slots=True)
class _Best:
    """The best paths so far at every position: [positions, budget], the most probable first, -inf where there is none.

    Args:
        value: Log-probability of the path.
        parent: Node it stands behind.
        rank: As which candidate.
        level: Its depth.
        order: When it was grown, among all of its depth.
        hit: Whether the target writes it.
        above: Whether the target writes what is before it.
    """

    value: NDArray[np.float64]
    parent: Ints
    rank: NDArray[np.int16]
    level: NDArray[np.int16]
    order: Ints
    hit: NDArray[np.bool_]
    above: NDArray[np.bool_]

    @classmethod
    def empty(cls, num: int, budget: int) -> _Best:
        kinds = (np.int32, np.int16, np.int16, np.int32, np.bool_, np.bool_)
        return cls(np.full((num, budget), -np.inf), *(np.zeros((num, budget), dtype=kind) for kind in kinds))

    def merged(self, rows: NDArray[np.int64], fresh: Sequence[NDArray[np.generic]]) -> _Best:
        """Keep the best of these and of new ones; of equals those that were seen first.

        Args:
            rows: [new] position of each, ascending.
            fresh: Its fields, [new] each.
        """
        if not len(rows):
            return self
        budget = self.value.shape[1]
        counts = np.bincount(rows, minlength=len(self.value))
        own = np.nonzero(counts)[0]
        places = np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]
        width, packed_rows = int(counts.max()), (np.cumsum(counts > 0) - 1)[rows]
        both = []
        for part, new in zip(fields(self), fresh, strict=True):
            old = getattr(self, part.name)
            joined = np.full((len(own), budget + width), -np.inf if part.name == "value" else 0, dtype=old.dtype)
            joined[:, :budget] = old[own]
            joined[packed_rows, budget + places] = new
            both.append(joined)
        kept = np.argsort(-both[0], axis=1, kind="stable")[:, :budget]
        found = []
        for part, joined in zip(fields(self), both, strict=True):
            whole = getattr(self, part.name).copy()
            whole[own] = np.take_along_axis(joined, kept, axis=1)
            found.append(whole)
        return _Best(*found)


@dataclass(frozen=True, slots=True)
class _Frontier:
    """What is expanded next, position by position, the most probable first: [nodes] each.

    Args:
        rows: Which position.
        places: Which of its position's.
        nodes: Of the forest.
        weights: Log-probability of the path to each.
        on_path: Whether the target writes that path.
    """

    rows: NDArray[np.int64]
    places: NDArray[np.int64]
    nodes: NDArray[np.int64]
    weights: NDArray[np.float64]
    on_path: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Chosen:
    """Nodes that are to be expanded: [nodes] each, by position and then by probability."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    parents: Ints
    ranks: NDArray[np.int16]


class _Growth:
    """Grows one shape at positions; see `grow_layers`."""

    def __init__(self, forest: DraftForest, config: SpecConfig, wanted: Ints, positions: NDArray[np.int64]) -> None:
        self.forest, self.width, self.budget = forest, min(config.tree_width, forest.width), config.tree_nodes
        self.least = config.stop_threshold if config.stop_rule == "cumulative" else 0.0
        self.num_expanded = self.width if config.tree_shape == "beam" else self.budget
        self.wanted, num = wanted, len(positions)
        self.best, every = _Best.empty(num, self.budget), np.arange(num)
        self.front = _Frontier(
            every, np.zeros(num, dtype=np.int64), positions, np.zeros(num), np.ones(num, dtype=np.bool_)
        )

    def look(self, level: int) -> None:
        """Put the candidates behind the frontier among the best."""
        front, rows = self.front, self.forest.rows
        values = rows.logprobs[front.nodes, : self.width].astype(np.float64) + front.weights[:, None]
        is_good = values > self.best.value[front.rows, -1:]
        if self.least > 0.0:
            is_good &= np.exp(values) >= self.least
        one, rank = np.nonzero(is_good)
        above = front.on_path[one]
        hits = above & (rows.tokens[front.nodes[one], rank] == self.wanted[front.rows[one], level - 1])
        order = front.places[one] * self.width + rank
        fresh = (values[one, rank], front.nodes[one], rank, np.full(len(one), level), order, hits, above)
        self.best = self.best.merged(front.rows[one], fresh)

    def choose(self, level: int, may: NDArray[np.bool_]) -> _Chosen:
        """Return the best nodes of a level where growth may go on."""
        best = self.best
        chosen = (best.level == level) & (best.value > -np.inf) & may[:, None]
        if self.num_expanded < self.budget:
            chosen &= chosen.cumsum(axis=1) <= self.num_expanded
        rows, columns = np.nonzero(chosen)
        return _Chosen(rows, columns, best.parent[rows, columns], best.rank[rows, columns])

    def lacking(self, chosen: _Chosen) -> NDArray[np.int64]:
        """Return candidates (parent, rank) that were not recorded: [n, 2]."""
        lacks = self.forest.children[chosen.parents, chosen.ranks] < 0
        return np.stack([chosen.parents[lacks], chosen.ranks[lacks]], axis=1).astype(np.int64)

    def descend(self, chosen: _Chosen) -> NDArray[np.bool_]:
        """Make chosen nodes the frontier, without those that were not recorded; return which of them were."""
        behind = self.forest.children[chosen.parents, chosen.ranks]
        known = behind >= 0
        rows, columns = chosen.rows[known], chosen.columns[known]
        counts = np.bincount(rows, minlength=len(self.best.value))
        places = np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]
        values, hits = self.best.value[rows, columns], self.best.hit[rows, columns]
        self.front = _Frontier(rows, places, behind[known].astype(np.int64), values, hits)
        return np.asarray(known)


def grow_layers(
    forest: DraftForest, config: SpecConfig, wanted: Ints, limits: NDArray[np.int64], positions: NDArray[np.int64]
) -> tuple[Level, ...]:
    """Grow beams and best-first trees of what was recorded; return by depth limit, from 1, what was seen.

    Args:
        forest: What was recorded.
        config: Shape, width, budget and the cumulative rule.
        wanted: [positions, depth] what the target writes; -1 behind the end.
        limits: [positions] deepest draft there; of deeper ones nothing is told.
        positions: [positions] where.
    """
    growth, depth = _Growth(forest, config, wanted, positions), int(limits.max(initial=0))
    levels = list[Level]()
    for level in range(1, depth + 1):
        if not len(growth.front.nodes):
            levels += [levels[-1].stopped()] * (depth - len(levels))
            break
        growth.look(level)
        chosen = growth.choose(level, limits > level)
        known = growth.descend(chosen)
        best = growth.best
        seen = (best.value, best.level, best.hit, best.above, best.parent, best.rank, best.order)
        levels.append(Level.of(seen, (chosen.rows, chosen.columns), known))
    return tuple(levels)


def plant_layers(
    forest: DraftForest,
    configs: Sequence[SpecConfig],
    wanted: Ints,
    limits: NDArray[np.int64],
    positions: NDArray[np.int64],
    add: Adder,
) -> None:
    """Record what several beams and best-first trees expand, side by side: what all lack at a depth is added at once.

    Args:
        forest: Added to.
        configs: As for `grow_layers`.
        wanted: As for `grow_layers`, like the rest.
        limits: See there.
        positions: See there.
        add: Records what is missing.
    """
    growths = [_Growth(forest, config, wanted, positions) for config in configs]
    for level in range(1, int(limits.max(initial=0))):
        chosen = list[_Chosen]()
        for growth in growths:
            growth.look(level)
            chosen.append(growth.choose(level, limits > level))
        edges = np.concatenate([growth.lacking(one) for growth, one in zip(growths, chosen, strict=True)])
        if len(edges):
            edges = np.unique(edges, axis=0).astype(np.int32)
            add(edges[:, 0], edges[:, 1])
        for growth, one in zip(growths, chosen, strict=True):
            growth.descend(one)
        growths = [growth for growth in growths if len(growth.front.nodes)]
        if not growths:
            return
