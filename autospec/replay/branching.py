"""Trees of recorded drafters, grown at many positions at once; the array form of `autospec.engine.growth`.

Depth by depth, so that one growth gives the trees of every depth limit. Knows no model: what was not recorded is
asked for, or marked as missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from autospec.config import SpecConfig
from autospec.replay.forest import DraftForest, Ints
from autospec.replay.tables import StepTable

# Adds the nodes behind candidates (parents, ranks) to the forest.
Adder = Callable[[Ints, Ints], None]


@dataclass(frozen=True, slots=True)
class _Best:
    """The best paths so far at every position: [positions, at most budget], the most probable first.

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
    def empty(cls, num: int) -> _Best:
        kinds = (np.float64, np.int32, np.int16, np.int16, np.int32, np.bool_, np.bool_)
        return cls(*(np.zeros((num, 0), dtype=kind) for kind in kinds))

    def merged(self, other: _Best, budget: int) -> _Best:
        """Keep the best of both; of equals those that were seen first."""
        both = [np.concatenate([getattr(one, part.name) for one in (self, other)], axis=1) for part in fields(self)]
        kept = np.argsort(-both[0], axis=1, kind="stable")[:, :budget]
        return _Best(*(np.take_along_axis(part, kept, axis=1) for part in both))

    def enter(self, ladder: StepTable, level: int) -> None:
        """Write what the tree cut to the budget holds."""
        kept = self.value > -np.inf
        accepted = (kept & self.hit).sum(axis=1)
        ladder.nodes[level] = kept.sum(axis=1)
        ladder.depth[level] = np.where(kept, self.level, 0).max(axis=1, initial=0)
        ladder.accepted[level] = accepted
        tried = (kept & self.above & (self.level == accepted[:, None] + 1)).any(axis=1)
        ladder.tested[level] = accepted + tried


@dataclass(slots=True)
class _Frontier:
    """What is expanded next at every position: [positions, nodes]; -1 where there is none.

    Args:
        nodes: Of the forest.
        weights: Log-probability of the path to each.
        on_path: Whether the target writes that path.
    """

    nodes: NDArray[np.int64]
    weights: NDArray[np.float64]
    on_path: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Layers:
    """Beams or best-first trees at positions.

    Args:
        table: [deepest limit + 1, positions] the steps of every depth limit, each position's beyond its own limit
            undefined.
        best: By depth limit, from 1, the nodes of the trees.
    """

    table: StepTable
    best: tuple[_Best, ...]

    def tree(self, forest: DraftForest, place: int, limit: int) -> tuple[list[int], list[int]]:
        """Return tokens and parents of one tree, in the order in which the engine grows it.

        Args:
            forest: It was grown in.
            place: Among the positions.
            limit: Its depth limit, at least 1.
        """
        best = self.best[min(limit, len(self.best)) - 1]
        kept = np.nonzero(best.value[place] > -np.inf)[0]
        kept = kept[np.lexsort((best.order[place, kept], best.level[place, kept]))]
        above, ranks = best.parent[place, kept], best.rank[place, kept]
        tokens, behind = forest.rows.tokens[above, ranks].tolist(), forest.children[above, ranks].tolist()
        known: dict[int, int] = {}
        parents = []
        for node, (parent, child) in enumerate(zip(above.tolist(), behind, strict=True)):
            parents.append(known.get(parent, -1))
            if child >= 0:
                known[child] = node
        return tokens, parents


class _Growth:
    """Grows one shape at positions; see `grow_layers`."""

    def __init__(self, forest: DraftForest, config: SpecConfig, wanted: Ints, positions: NDArray[np.int64]) -> None:
        self.forest, self.width, self.budget = forest, config.tree_width, config.tree_nodes
        self.least = config.stop_threshold if config.stop_rule == "cumulative" else 0.0
        self.num_expanded = self.width if config.tree_shape == "beam" else self.budget
        self.wanted, num = wanted, len(positions)
        self.best = _Best.empty(num)
        self.front = _Frontier(positions[:, None], np.zeros((num, 1)), np.ones((num, 1), dtype=np.bool_))
        self.missing = np.zeros(num, dtype=np.bool_)

    def look(self, level: int) -> None:
        """Put the candidates behind the frontier among the best."""
        nodes, rows = np.maximum(self.front.nodes, 0), self.forest.rows
        values = rows.logprobs[nodes, : self.width].astype(np.float64) + self.front.weights[..., None]
        values[self.front.nodes < 0] = -np.inf
        if self.least > 0.0:
            values[np.exp(values) < self.least] = -np.inf
        hits = self.front.on_path[..., None] & (
            rows.tokens[nodes, : self.width] == self.wanted[:, level - 1, None, None]
        )
        num, count, width = values.shape
        flat = (num, count * width)
        columns = np.arange(count * width)
        fresh = _Best(
            values.reshape(flat),
            np.repeat(nodes.astype(np.int32), width, axis=1),
            np.broadcast_to((columns % width).astype(np.int16), flat),
            np.full(flat, level, dtype=np.int16),
            np.broadcast_to(columns.astype(np.int32), flat),
            hits.reshape(flat),
            np.repeat(self.front.on_path, width, axis=1),
        )
        self.best = self.best.merged(fresh, self.budget)

    def descend(self, level: int, may: NDArray[np.bool_], add: Adder | None) -> bool:
        """Make the best nodes of a level the frontier; tell whether there is one."""
        best, forest = self.best, self.forest
        chosen = (best.level == level) & (best.value > -np.inf)
        chosen &= chosen.cumsum(axis=1) <= self.num_expanded
        chosen &= (may & ~self.missing)[:, None]
        count = int(chosen.sum(axis=1).max(initial=0))
        if count == 0:
            return False
        order = np.argsort(~chosen, axis=1, kind="stable")[:, :count]
        taken = np.take_along_axis(chosen, order, axis=1)
        parents, ranks = (
            np.where(taken, np.take_along_axis(part, order, axis=1), 0) for part in (best.parent, best.rank)
        )
        behind = forest.children[parents, ranks]
        lacking = taken & (behind < 0)
        if lacking.any():
            if add is None:
                self.missing = self.missing | lacking.any(axis=1)
            else:
                add(parents[lacking].astype(np.int32), ranks[lacking].astype(np.int32))
                behind = forest.children[parents, ranks]
        nodes = np.where(taken, behind, -1).astype(np.int64)
        weights = np.where(nodes >= 0, np.take_along_axis(best.value, order, axis=1), 0.0)
        on_path = np.take_along_axis(best.hit, order, axis=1) & (nodes >= 0)
        self.front = _Frontier(nodes, weights, on_path)
        return True


def grow_layers(
    forest: DraftForest,
    config: SpecConfig,
    wanted: Ints,
    limits: NDArray[np.int64],
    positions: NDArray[np.int64],
    add: Adder | None = None,
) -> Layers:
    """Grow beams and best-first trees.

    Args:
        forest: What was recorded.
        config: Shape, width, budget and the cumulative rule.
        wanted: [positions, depth] what the target writes; -1 behind the end.
        limits: [positions] deepest draft there.
        positions: [positions] where.
        add: Records what is missing; None marks it.
    """
    num, depth = len(positions), int(limits.max(initial=0))
    growth, ladder = _Growth(forest, config, wanted, positions), StepTable.empty(depth + 1, num)
    calls, run = np.zeros(num, dtype=np.int16), np.zeros(num, dtype=np.int16)
    grown, goes_on = list[_Best](), True
    for level in range(1, depth + 1):
        if goes_on:
            alive = growth.front.nodes >= 0
            calls = calls + alive.any(axis=1)
            run = run + (alive.sum(axis=1).astype(np.int16) if level > 1 else 0)
            growth.look(level)
            grown.append(growth.best)
        growth.best.enter(ladder, level)
        ladder.calls[level], ladder.run[level], ladder.is_missing[level] = calls, run, growth.missing
        goes_on = goes_on and level < depth and growth.descend(level, limits > level, add)
    return Layers(ladder, tuple(grown))
