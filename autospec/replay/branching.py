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


def follow_ranks(
    forest: DraftForest,
    config: SpecConfig,
    wanted: Ints,
    limits: NDArray[np.int64],
) -> StepTable:
    """Return the steps of a tree of rank paths at every position, each under its own limit.

    Only nodes along what the target writes are looked at: the tree's form is known without the others.

    Args:
        forest: What was recorded.
        config: The paths.
        wanted: [positions, depth] what the target writes; -1 behind the end.
        limits: [positions] deepest draft there.
    """
    ends, kept = _path_automaton(config)
    levels = np.array(sorted(map(len, config.tree_paths)))
    parents = np.array(sorted(len(path) for path in {one[:-1] for one in config.tree_paths} if path), dtype=np.int64)
    table = StepTable.empty(len(limits))
    table.nodes[:] = np.searchsorted(levels, limits, side="right")
    table.depth[:] = np.minimum(limits, levels[-1])
    table.calls[:] = table.depth
    table.run[:] = np.searchsorted(parents, table.depth, side="left")
    node, state = np.arange(len(limits)), np.zeros(len(limits), dtype=np.int64)
    alive = np.ones(len(limits), dtype=np.bool_)
    for depth in range(int(table.depth.max(initial=0))):
        alive = alive & (depth < limits) & ends[state]
        table.tested[:] += alive
        table.is_missing[:] |= alive & (node < 0)
        alive = alive & (node >= 0)
        width = min(forest.width, kept.shape[1])
        matches = forest.rows.tokens[np.maximum(node, 0), :width] == wanted[:, depth, None]
        rank = matches.argmax(axis=1)
        behind = np.where(alive & matches.any(axis=1), kept[state, rank], -1)
        alive = behind >= 0
        table.accepted[:] += alive
        node = np.where(alive, forest.children[np.maximum(node, 0), rank], node)
        state = np.where(alive, behind, state)
    return table


def grow_paths(
    forest: DraftForest,
    config: SpecConfig,
    wanted: Ints,
    limits: NDArray[np.int64],
    positions: NDArray[np.int64],
    add: Adder | None = None,
) -> StepTable:
    """Return the same where filters leave nodes without some of their candidates: every node is looked at.

    Arguments as for `grow_layers`.
    """
    table = StepTable.empty(len(positions))
    root = (positions.copy(), np.ones(len(positions), dtype=np.bool_), np.ones(len(positions), dtype=np.bool_))
    known = dict[tuple[int, ...], tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]]({(): root})
    # path -> node, whether it is drafted, whether the target writes it
    accepted, tested = (np.zeros(len(positions), dtype=np.int64) for _ in range(2))
    depths, asked = np.zeros(len(positions), dtype=np.int64), set[tuple[int, ...]]()
    for path in sorted(config.tree_paths, key=lambda one: (len(one), one)):
        above, rank, level = path[:-1], path[-1], len(path)
        parent, is_drafted, is_right = known[above]
        wants = is_drafted & (limits >= level)
        if above not in asked:
            asked.add(above)
            if above:
                parent = _behind(forest, known[above[:-1]][0], above[-1], wants, add)
                known[above] = (parent, is_drafted, is_right)
                table.run[:] += wants
            table.calls[:] += wants & (depths < level)
            depths = np.where(wants, np.maximum(depths, level), depths)
        table.is_missing[:] |= wants & (parent < 0)
        row = np.maximum(parent, 0)
        inside = rank < forest.width
        is_here = wants & (parent >= 0) & inside
        is_here &= forest.rows.logprobs[row, min(rank, forest.width - 1)] > -np.inf
        hit = is_here & is_right & (forest.rows.tokens[row, min(rank, forest.width - 1)] == _column(wanted, level - 1))
        tested = np.where(is_here & is_right, np.maximum(tested, level), tested)
        accepted = np.where(hit, level, accepted)
        table.nodes[:] += is_here
        table.depth[:] = np.where(is_here, level, table.depth)
        known[path] = (parent, is_here, hit)
    table.accepted[:], table.tested[:] = accepted, tested
    return table


def _column(wanted: Ints, place: int) -> Ints:
    return np.asarray(wanted[:, place] if place < wanted.shape[1] else np.full(len(wanted), -1, dtype=np.int32))


def _behind(
    forest: DraftForest, parents: NDArray[np.int64], rank: int, wants: NDArray[np.bool_], add: Adder | None
) -> NDArray[np.int64]:
    """Return the nodes behind one candidate of nodes; -1 where there is none."""
    row = np.maximum(parents, 0)
    lacking = wants & (parents >= 0) & (forest.children[row, rank] < 0)
    if add is not None and lacking.any():
        add(row[lacking].astype(np.int32), np.full(int(lacking.sum()), rank, dtype=np.int32))
    return np.where(wants & (parents >= 0), forest.children[row, rank], -1).astype(np.int64)


def _path_automaton(config: SpecConfig) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return of every node of a tree whether it has children, and the child of each rank: [nodes + 1, ranks]."""
    paths = sorted(config.tree_paths, key=lambda path: (len(path), path))
    places = {path: place for place, path in enumerate(paths, start=1)} | {(): 0}
    kept = np.full((len(paths) + 1, 1 + max(rank for path in paths for rank in path)), -1, dtype=np.int64)
    for path in paths:
        kept[places[path[:-1]], path[-1]] = places[path]
    return np.asarray((kept >= 0).any(axis=1)), kept
