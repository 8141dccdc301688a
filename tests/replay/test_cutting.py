"""Trees cut from one growth, against the engine growing each of them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.growth import Growing, Growth, grow
from autospec.engine.termination import Stopping
from autospec.replay.branching import grow_layers, plant_layers
from autospec.replay.cutting import Layers, Level
from autospec.replay.forest import DraftForest, Ints
from autospec.replay.running import rows_of

VOCAB, WIDTH, DEPTH, NUM = 9, 4, 5, 6
Paths = dict[tuple[int, ...], torch.Tensor]


class Mind:
    """A drafter whose row behind a path is drawn from the path; counts what it is asked."""

    def __init__(self, root: int) -> None:
        self.root, self.calls, self.run = root, 0, 0

    def row(self, path: Sequence[int]) -> torch.Tensor:
        numbers = torch.Generator().manual_seed(hash((self.root, *path)) % (1 << 31))
        return 3 * torch.randn(VOCAB, generator=numbers)

    def expand(self, tree: Growing, nodes: Sequence[int]) -> torch.Tensor:
        self.calls += 1
        self.run += len(nodes) * (nodes[0] != -1)
        return torch.stack([self.row(_path(tree, node)) for node in nodes])


def _path(tree: Growing, node: int) -> list[int]:
    path = list[int]()
    while node >= 0:
        path.insert(0, tree.token_ids[node])
        node = tree.parents[node]
    return path


def forest_of(minds: Sequence[Mind]) -> DraftForest:
    rows = rows_of(torch.stack([mind.row(()) for mind in minds]), WIDTH)
    return DraftForest.of_positions(rows, np.full(len(minds), DEPTH, dtype=np.int32))


def planted(forest: DraftForest, minds: Sequence[Mind], configs: Sequence[SpecConfig], wanted: Ints) -> list[int]:
    """Grow configurations into a forest; return how many nodes were asked for together."""
    asked = list[int]()

    def add(parents: Ints, ranks: Ints) -> None:
        asked.append(len(parents))
        found = []
        for parent, rank in zip(parents.tolist(), ranks.tolist(), strict=True):
            root, path = forest.path(parent)
            found.append(minds[root].row([*path, int(forest.rows.tokens[parent, rank])]))
        forest.add(parents, ranks, rows_of(torch.stack(found), WIDTH))

    plant_layers(forest, configs, wanted, np.full(len(minds), DEPTH), np.arange(len(minds)), add)
    return asked


def shapes() -> Iterator[SpecConfig]:
    for shape, width, nodes in itertools.product(("best_first", "beam"), (1, 2, 4), (1, 3, 6, 11)):
        yield SpecConfig("x", DEPTH, tree_shape=shape, tree_width=width, tree_nodes=nodes)
        yield SpecConfig(
            "x",
            DEPTH,
            tree_shape=shape,
            tree_width=width,
            tree_nodes=nodes,
            stop_rule="cumulative",
            stop_threshold=0.1,
        )


@pytest.fixture(scope="module")
def minds() -> list[Mind]:
    return [Mind(root) for root in range(NUM)]


@pytest.fixture(scope="module")
def wanted(minds: list[Mind]) -> Ints:
    """What the target writes: mostly one of the first candidates."""
    numbers, rows = random.Random(0), list[list[int]]()
    for mind in minds:
        path = list[int]()
        for _ in range(DEPTH):
            path.append(int(mind.row(path).topk(3).indices[numbers.choice((0, 0, 1, 2))]))
        rows.append(path)
    return np.array(rows, dtype=np.int32)


def largest(config: SpecConfig, nodes: int = 11) -> SpecConfig:
    return SpecConfig("x", DEPTH, tree_shape=config.tree_shape, tree_width=config.tree_width, tree_nodes=nodes)


def cut(levels: tuple[Level, ...], config: SpecConfig) -> Layers:
    least = config.stop_threshold if config.stop_rule == "cumulative" else 0.0
    return Layers.cut(levels, NUM, config.tree_nodes, least)


def test_every_budget_threshold_and_depth_is_cut_from_the_largest_growth(minds: list[Mind], wanted: Ints) -> None:
    forest, limits = forest_of(minds), np.full(NUM, DEPTH)
    planted(forest, minds, [largest(config) for config in shapes()], wanted)
    num_accepted = 0
    for config in shapes():
        layers = cut(grow_layers(forest, largest(config), wanted, limits, np.arange(NUM)), config)
        for root, limit in itertools.product(range(NUM), range(1, DEPTH + 1)):
            mind = Mind(root)
            tree = grow(mind, Growth(config, SamplingParams(), 0, 0, limit, Stopping(config)))
            tokens, parents = layers.tree(forest, root, limit)
            assert (tokens, tuple(parents)) == (tree.token_ids.tolist(), tree.parents)
            table = layers.table
            assert (table.nodes[limit, root], table.depth[limit, root]) == (
                tree.num_nodes,
                max(tree.depths, default=0),
            )
            assert (table.calls[limit, root], table.run[limit, root]) == (mind.calls, mind.run)
            node, count = -1, 0
            while (place := _child(tree.token_ids.tolist(), tree.parents, node, int(wanted[root, count]))) >= 0:
                node, count = place, count + 1
                if count == DEPTH:
                    break
            assert table.accepted[limit, root] == count
            assert table.tested[limit, root] == count + (node in tree.parents)
            assert not table.is_missing[limit, root]
            num_accepted += count
    assert num_accepted > 100


def _child(tokens: Sequence[int], parents: Sequence[int], node: int, token: int) -> int:
    return next((place for place, one in enumerate(tokens) if parents[place] == node and one == token), -1)


def test_what_a_smaller_budget_recorded_is_missed_by_larger_ones_only(minds: list[Mind], wanted: Ints) -> None:
    forest, limits = forest_of(minds), np.full(NUM, DEPTH)
    small = SpecConfig("x", DEPTH, tree_shape="best_first", tree_width=3, tree_nodes=4)
    planted(forest, minds, [small], wanted)
    levels = grow_layers(forest, largest(small), wanted, limits, np.arange(NUM))
    for nodes in range(1, 5):
        assert not cut(levels, largest(small, nodes)).table.is_missing.any()
    larger = cut(levels, largest(small)).table.is_missing
    assert larger[DEPTH].all()
    assert not larger[1].any()  # the rows of the positions are known


def test_what_shapes_lack_at_a_depth_is_asked_for_together_and_once(minds: list[Mind], wanted: Ints) -> None:
    configs = [SpecConfig("x", DEPTH, tree_shape=kind, tree_width=3, tree_nodes=8) for kind in ("best_first", "beam")]
    forest = forest_of(minds)
    asked = planted(forest, minds, [*configs, *configs], wanted)
    assert len(asked) == DEPTH - 1
    assert planted(forest, minds, configs, wanted) == []
    edges = list(zip(forest.parents[NUM:].tolist(), forest.ranks[NUM:].tolist(), strict=True))
    assert len(edges) == len(set(edges)) == sum(asked)
