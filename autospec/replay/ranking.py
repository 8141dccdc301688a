"""Trees of rank paths over recorded drafters, at many positions at once; the array form of `engine.growth`'s.

Their form is known, so only what the target writes must be looked at, unless filters of sampling leave candidates out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autospec.config import SpecConfig
from autospec.replay.branching import Adder
from autospec.replay.forest import DraftForest, Ints
from autospec.replay.tables import StepTable


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
