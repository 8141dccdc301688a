"""Optimal trees against all small trees, against trees worked by hand, and against each other."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autospec.config import SpecConfig
from autospec.engine.costs import CostCurve
from autospec.engine.optimal_tree import OptimalTrees, greedy_paths, rank_acceptance, tokens_per_step
from autospec.errors import ConfigError, MeasurementError

Paths = tuple[tuple[int, ...], ...]


@cache
def all_trees(num_nodes: int, depth: int, num_ranks: int) -> tuple[Paths, ...]:
    """Every tree of exactly so many nodes in which a node's children are its first few ranks."""
    if num_nodes == 0:
        return ((),)
    if depth == 0:
        return ()
    found = []
    for num_children in range(1, min(num_nodes, num_ranks) + 1):
        for sizes in product(range(num_nodes), repeat=num_children):
            if sum(sizes) == num_nodes - num_children:
                below = [all_trees(size, depth - 1, num_ranks) for size in sizes]
                for parts in product(*below):
                    found.append(tuple(graft(parts)))
    return tuple(found)


def graft(parts: tuple[Paths, ...]) -> Iterator[tuple[int, ...]]:
    for rank, part in enumerate(parts):
        yield (rank,)
        for path in part:
            yield (rank, *path)


def value(paths: Paths, acceptance: list[float]) -> float:
    return 1.0 + sum(prod(acceptance[rank] for rank in path) for path in paths)


def chances(*weights: float) -> list[float]:
    total = max(sum(weights), 1.0)
    return [weight / total for weight in weights]


ACCEPTANCE = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=3).map(lambda weights: chances(*weights))


def test_all_small_trees_are_what_they_should_be() -> None:
    assert [len(all_trees(size, 9, 9)) for size in range(6)] == [1, 1, 2, 5, 14, 42]  # Catalan's numbers
    assert all_trees(2, 9, 9) == (((0,), (0, 0)), ((0,), (1,)))
    assert all_trees(3, 1, 3) == (((0,), (1,), (2,)),)
    assert all_trees(3, 1, 2) == ()


@settings(derandomize=True, deadline=None, max_examples=30)
@given(acceptance=ACCEPTANCE)
def test_no_small_tree_is_better(acceptance: list[float]) -> None:
    """Whatever the order of the chances: also where a later candidate is likelier than an earlier one."""
    trees = OptimalTrees(acceptance, max_nodes=6, max_depth=4)
    assert trees.tokens_per_step.shape == (7, 5)
    for num_nodes, depth in product(range(7), range(5)):
        known = [
            value(tree, acceptance)
            for size in range(num_nodes + 1)
            for tree in all_trees(size, depth, len(acceptance))
        ]
        best = trees.tokens_per_step[num_nodes, depth]
        assert best == pytest.approx(max(known), abs=1e-12)
        paths = trees.paths(num_nodes, depth)
        assert value(paths, acceptance) == pytest.approx(best, abs=1e-12)
        assert len(paths) <= num_nodes
        assert len(set(paths)) == len(paths)
        assert max(map(len, paths), default=0) <= depth


@pytest.mark.parametrize("chance", [0.3, 0.8, 1.0])
def test_of_one_candidate_it_is_the_chain_of_the_survey(chance: float) -> None:
    trees = OptimalTrees([chance], max_nodes=8, max_depth=8)
    for length in range(9):
        expected = length + 1 if chance == 1.0 else (1 - chance ** (length + 1)) / (1 - chance)
        assert trees.tokens_per_step[length, length] == pytest.approx(expected)
        assert trees.paths(length, length) == tuple((0,) * size for size in range(1, length + 1))
    assert trees.tokens_per_step[8, 3] == trees.tokens_per_step[3, 8] == trees.tokens_per_step[3, 3]


def test_a_tree_worked_by_hand() -> None:
    """Nodes by worth: (0,) .6, (0,0) .36, (1,) .3, (0,0,0) .216, (0,1) and (1,0) .18."""
    trees = OptimalTrees([0.6, 0.3], max_nodes=5, max_depth=3)
    assert trees.paths(1, 3) == ((0,),)
    assert trees.paths(2, 3) == ((0,), (0, 0))
    assert trees.paths(3, 3) == ((0,), (1,), (0, 0))
    assert trees.paths(4, 3) == ((0,), (1,), (0, 0), (0, 0, 0))
    assert trees.paths(4, 1) == ((0,), (1,))
    assert trees.tokens_per_step[4, 3] == pytest.approx(1 + 0.6 + 0.3 + 0.36 + 0.216)
    assert trees.tokens_per_step[4, 1] == pytest.approx(1.9)
    assert trees.tokens_per_step[0, 3] == trees.tokens_per_step[5, 0] == 1.0


def test_a_good_second_candidate_pays_for_a_bad_first() -> None:
    assert OptimalTrees([0.0, 0.9], max_nodes=4, max_depth=4).paths(4, 4) == ((0,), (1,), (1, 0), (1, 1))


def test_paths_are_a_configuration() -> None:
    paths = OptimalTrees([0.5, 0.2, 0.1], max_nodes=40, max_depth=6).paths(40, 6)
    config = SpecConfig("draft", 6, tree_shape="optimal", tree_paths=paths)
    assert len(config.tree_paths) == 40


@settings(derandomize=True, deadline=None, max_examples=20)
@given(acceptance=ACCEPTANCE, num_nodes=st.integers(1, 30), depth=st.integers(1, 5))
def test_the_greedy_tree_of_equal_levels_is_as_good(acceptance: list[float], num_nodes: int, depth: int) -> None:
    """Two ways to the same tree, where earlier candidates are likelier."""
    falling = sorted(acceptance, reverse=True)
    greedy = greedy_paths([falling] * depth, num_nodes)
    best = OptimalTrees(falling, num_nodes, depth).tokens_per_step[num_nodes, depth]
    assert tokens_per_step(greedy, falling) == pytest.approx(best, abs=1e-12)


def test_the_fastest_tree_depends_on_the_machine() -> None:
    trees = OptimalTrees([0.6, 0.3], max_nodes=4, max_depth=3)
    # Verifying is free up to 3 tokens and then dear: two nodes. A dear drafter gets one level, a cheap one two.
    points = ((1, 1.0), (3, 1.0), (4, 5.0), (5, 9.0))
    dear = trees.choose(CostCurve(1.0, 0.0, 0.5, target_points=points))
    assert (dear.paths, dear.depth) == (((0,), (1,)), 1)
    assert dear.tokens_per_step == pytest.approx(1.9)
    assert dear.seconds_per_token == pytest.approx(1.5 / 1.9)
    cheap = trees.choose(CostCurve(1.0, 0.0, 0.01, target_points=points))
    assert (cheap.paths, cheap.depth) == (((0,), (0, 0)), 2)
    assert cheap.seconds_per_token == pytest.approx(1.02 / 1.96)


def test_where_nothing_pays_the_choice_is_no_draft() -> None:
    choice = OptimalTrees([0.1], max_nodes=4, max_depth=3).choose(CostCurve(1.0, 0.05, 0.2))
    assert (choice.paths, choice.depth, choice.tokens_per_step, choice.seconds_per_token) == ((), 0, 1.0, 1.0)


def test_trees_larger_than_what_was_measured_are_not_guessed_at() -> None:
    with pytest.raises(MeasurementError, match="measured up to 3 tokens, but 5"):
        OptimalTrees([0.5], 4, 3).choose(CostCurve(1.0, 0.0, 0.1, target_points=((1, 1.0), (3, 1.0))))


@settings(derandomize=True, deadline=None, max_examples=20)
@given(acceptance=ACCEPTANCE, target=st.floats(0.5, 2), per_token=st.floats(0, 0.3), draft=st.floats(0, 0.5))
def test_no_size_and_depth_is_faster(acceptance: list[float], target: float, per_token: float, draft: float) -> None:
    choice = OptimalTrees(acceptance, 5, 3).choose(CostCurve(target, per_token, draft))
    rates = [
        (max(map(len, tree), default=0) * draft + target + per_token * size) / value(tree, acceptance)
        for size in range(6)
        for tree in all_trees(size, 3, len(acceptance))
    ]
    assert choice.seconds_per_token == pytest.approx(min(rates))


def test_greedy_takes_the_best_path_left_whatever_its_depth() -> None:
    accuracies = [[0.5, 0.3, 0.1], [0.8, 0.1, 0.0], [0.9, 0.0, 0.0]]
    # (0,) .5, (0,0) .4, (0,0,0) .36, (1,) .3, (1,0) .24, (1,0,0) .216
    assert greedy_paths(accuracies, 4) == ((0,), (1,), (0, 0), (0, 0, 0))
    assert greedy_paths(accuracies, 6) == ((0,), (1,), (0, 0), (1, 0), (0, 0, 0), (1, 0, 0))
    assert tokens_per_step(greedy_paths(accuracies, 4), accuracies) == pytest.approx(1 + 0.5 + 0.4 + 0.36 + 0.3)
    assert greedy_paths([[0.5, 0.0]], 9) == ((0,),)  # a candidate that was never right is no node


def test_no_tree_is_worth_the_target_s_own_token() -> None:
    assert tokens_per_step((), [0.5]) == 1.0


def test_acceptance_is_estimated_from_ranks() -> None:
    assert rank_acceptance([0, 0, 1, 5, -1], 3).tolist() == [0.5, 0.25, 0.0]
    by_depth = rank_acceptance([[0, 1], [0, -1], [2, 9], [0, 0]], 2)
    np.testing.assert_allclose(by_depth, [[0.75, 0.0], [1 / 3, 1 / 3]])
    assert rank_acceptance([-1, -1], 2).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("acceptance", [[0.7, 0.4], [-0.1], [], [[0.5]], [float("nan")]])
def test_what_cannot_be_chances_is_refused(acceptance: list[float]) -> None:
    with pytest.raises(ConfigError, match="acceptance by rank must"):
        OptimalTrees(acceptance, 4, 2)


@pytest.mark.parametrize(("sizes", "name"), [((0, 2), "max_nodes"), ((513, 2), "max_nodes"), ((4, 0), "max_depth")])
def test_sizes_out_of_range_are_refused(sizes: tuple[int, int], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        OptimalTrees([0.5], *sizes)
