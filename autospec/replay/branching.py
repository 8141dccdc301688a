"""Trees of recorded drafters, grown at many positions at once; the array form of `autospec.engine.growth`.

Depth by depth, so that one growth gives the trees of every depth limit. Knows no model: what was not recorded is
asked for, or marked as missing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from autospec.config import SpecConfig
from autospec.replay.forest import DraftForest, Ints
from autospec.replay.tables import StepTable

# Adds the nodes behind candidates (parents, ranks) to the forest.
Adder = Callable[[Ints, Ints], None]


def grow_layers(
    forest: DraftForest,
    config: SpecConfig,
    wanted: NDArray[np.int32],
    limits: NDArray[np.int64],
    positions: NDArray[np.int64],
    add: Adder | None = None,
) -> StepTable:
    """Grow beams and best-first trees.

    Args:
        forest: What was recorded.
        config: Shape, width, budget and the cumulative rule.
        wanted: [positions, depth] what the target writes; -1 behind the end.
        limits: [positions] deepest draft there.
        positions: [positions] where.
        add: Records what is missing; None marks it.

    Returns:
        [deepest limit + 1, positions] the steps of every depth limit, each position's beyond its own limit undefined.
    """
    num, depth = len(positions), int(limits.max(initial=0))
    width, budget = config.tree_width, config.tree_nodes
    least = config.stop_threshold if config.stop_rule == "cumulative" else 0.0
    num_expanded = width if config.tree_shape == "beam" else budget
    ladder = StepTable.empty(depth + 1, num)
    best = _Best.empty(num, budget)
    nodes, weights = positions[:, None], np.zeros((num, 1))
    on_path, missing = np.ones((num, 1), dtype=np.bool_), np.zeros(num, dtype=np.bool_)
    calls, run = np.zeros(num, dtype=np.int16), np.zeros(num, dtype=np.int16)
    for level in range(1, depth + 1):
        alive = nodes >= 0
        calls += alive.any(axis=1)
        if level > 1:
            run += alive.sum(axis=1).astype(np.int16)
        row = np.maximum(nodes, 0)
        values = forest.rows.logprobs[row, :width].astype(np.float64) + weights[..., None]
        values[~alive] = -np.inf
        if least > 0.0:
            values[np.exp(values) < least] = -np.inf
        tokens = forest.rows.tokens[row, :width]
        hits = on_path[..., None] & (tokens == wanted[:, level - 1, None, None])
        used = values.shape[2]
        keys = row[..., None] * used + np.arange(used)
        above = np.broadcast_to(on_path[..., None], values.shape)
        fresh = _Best(values, keys, np.full(values.shape, level, dtype=np.int16), hits, above)
        best = best.merged(fresh.flat(num), budget)
        best.enter(ladder, level)
        ladder.calls[level], ladder.run[level], ladder.is_missing[level] = calls, run, missing
        if level == depth:
            break
        chosen = (best.level == level) & (best.value > -np.inf)
        chosen &= chosen.cumsum(axis=1) <= num_expanded
        chosen &= ((limits > level) & ~missing)[:, None]
        count = int(chosen.sum(axis=1).max(initial=0))
        if count == 0:
            for deeper in range(level + 1, depth + 1):
                best.enter(ladder, deeper)
                ladder.calls[deeper], ladder.run[deeper], ladder.is_missing[deeper] = calls, run, missing
            break
        order = np.argsort(~chosen, axis=1, kind="stable")[:, :count]
        taken = np.take_along_axis(chosen, order, axis=1)
        keys = np.take_along_axis(best.key, order, axis=1)
        parents, ranks = (keys // used), (keys % used)
        parents, ranks = np.where(taken, parents, 0), np.where(taken, ranks, 0)
        behind = forest.children[parents, ranks]
        lacking = taken & (behind < 0)
        if add is not None and lacking.any():
            add(parents[lacking].astype(np.int32), ranks[lacking].astype(np.int32))
            behind = forest.children[parents, ranks]
        elif lacking.any():
            missing = missing | lacking.any(axis=1)
        nodes = np.where(taken & (behind >= 0), behind, -1).astype(np.int64)
        weights = np.take_along_axis(best.value, order, axis=1)
        weights[nodes < 0] = 0.0
        on_path = np.take_along_axis(best.hit, order, axis=1) & (nodes >= 0)
    return ladder


class _Best:
    """The best paths so far at every position: [positions, at most budget], the most probable first.

    Of each: log-probability, its parent and rank as one number, depth, whether the target writes it, and whether the
    target writes what is before it.
    """

    def __init__(
        self,
        value: NDArray[np.float64],
        key: NDArray[np.int64],
        level: NDArray[np.int16],
        hit: NDArray[np.bool_],
        above: NDArray[np.bool_],
    ) -> None:
        self.value, self.key, self.level, self.hit, self.above = value, key, level, hit, above

    @classmethod
    def empty(cls, num: int, budget: int) -> _Best:
        shape = (num, budget)
        return cls(
            np.full(shape, -np.inf),
            np.zeros(shape, dtype=np.int64),
            np.zeros(shape, dtype=np.int16),
            np.zeros(shape, dtype=np.bool_),
            np.zeros(shape, dtype=np.bool_),
        )

    @property
    def _parts(self) -> tuple[NDArray[np.generic], ...]:
        return self.value, self.key, self.level, self.hit, self.above

    def flat(self, num: int) -> _Best:
        return _Best(*(part.reshape(num, -1) for part in self._parts))  # type: ignore[arg-type]

    def merged(self, other: _Best, budget: int) -> _Best:
        """Keep the best of both; of equals those that were seen first."""
        both = [np.concatenate(pair, axis=1) for pair in zip(self._parts, other._parts, strict=True)]
        order = np.argsort(-both[0].astype(np.float64), axis=1, kind="stable")[:, :budget]
        return _Best(*(np.take_along_axis(part, order, axis=1) for part in both))

    def enter(self, ladder: StepTable, level: int) -> None:
        """Write what the tree cut to the budget holds."""
        kept = self.value > -np.inf
        accepted = (kept & self.hit).sum(axis=1)
        ladder.nodes[level] = kept.sum(axis=1)
        ladder.depth[level] = np.where(kept, self.level, 0).max(axis=1)
        ladder.accepted[level] = accepted
        tried = (kept & self.above & (self.level == accepted[:, None] + 1)).any(axis=1)
        ladder.tested[level] = accepted + tried


def follow_ranks(
    forest: DraftForest,
    config: SpecConfig,
    wanted: NDArray[np.int32],
    limits: NDArray[np.int64],
    positions: NDArray[np.int64],
) -> StepTable:
    """Return the steps of a tree of rank paths; arguments as for `grow_layers`, the deepest limit alone decides.

    Only nodes along what the target writes are looked at: the tree's form is known without the others.

    Returns:
        [positions], each under its own limit.
    """
    paths = set(config.tree_paths)
    table = StepTable.empty(len(positions))
    levels = np.array(sorted(len(path) for path in paths))
    parents = {one[:-1] for one in paths}
    table.nodes[:] = np.searchsorted(levels, limits, side="right")
    table.depth[:] = np.minimum(limits, levels[-1])
    table.calls[:] = table.depth
    table.run[:] = np.searchsorted(np.array(sorted(len(path) for path in parents if path)), table.depth, side="left")
    for place, position in enumerate(positions.tolist()):
        node, path = position, tuple[int, ...]()
        while len(path) < limits[place] and path in parents:
            found = np.nonzero(forest.rows.tokens[node] == wanted[place, len(path)])[0]
            rank = int(found[0]) if len(found) else -1
            if (*path, rank) not in paths:
                break
            path = (*path, rank)
            node = int(forest.children[node, rank])
        count = len(path)
        has_child = count < limits[place] and path in parents
        table.accepted[place], table.tested[place] = count, count + has_child
    return table
