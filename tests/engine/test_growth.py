"""Growing drafts, by hand: a drafter of written-down rows, what it is asked, and what comes out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.growth import Growing, Growth, grow
from autospec.engine.sampling import Use, pick, uniform
from autospec.engine.termination import Stopping
from autospec.engine.tree import TokenTree

GREEDY, SAMPLED = SamplingParams(), SamplingParams(temperature=1.0)
Path = tuple[int, ...]


class Rows:
    """An expander that knows the next-token probabilities behind every path, and remembers what it was asked."""

    def __init__(self, rows: Mapping[Path, Sequence[float]], default: Sequence[float]) -> None:
        self._rows, self._default = rows, default
        self.asked: list[list[Path]] = []

    def expand(self, tree: Growing, nodes: Sequence[int]) -> Tensor:
        paths = [path_of(tree, node) for node in nodes]
        self.asked.append(paths)
        return torch.tensor([self._rows.get(path, self._default) for path in paths]).log()


def path_of(tree: Any, node: int) -> Path:
    path: list[int] = []
    while node >= 0:
        path.append(int(tree.token_ids[node]))
        node = tree.parents[node]
    return tuple(reversed(path))


def paths(tree: TokenTree) -> list[Path]:
    return [path_of(tree, node) for node in range(tree.num_nodes)]


def draft(rows: Rows, sampling: SamplingParams = GREEDY, depth: int = 3, **knobs: Any) -> TokenTree:
    config = SpecConfig("draft", 3, **knobs)
    return grow(rows, Growth(config, sampling, seed=7, position=20, max_depth=depth, stopping=Stopping(config)))


@pytest.fixture
def rows() -> Rows:
    #   root: 0.5 0.3 0.2;  behind 0: 0.6 0.3 0.1;  behind 1: 0.1 0.8 0.1;  elsewhere: 0.2 0.3 0.5
    return Rows({(): (0.5, 0.3, 0.2), (0,): (0.6, 0.3, 0.1), (1,): (0.1, 0.8, 0.1)}, (0.2, 0.3, 0.5))


def test_a_greedy_chain_takes_the_most_probable_token_each_time(rows: Rows) -> None:
    tree = draft(rows)
    assert paths(tree) == [(0,), (0, 0), (0, 0, 2)]
    assert tree.is_chain
    assert tree.draft_probs is None
    assert rows.asked == [[()], [(0,)], [(0, 0)]]


def test_a_sampled_chain_draws_with_the_numbers_of_its_positions(rows: Rows) -> None:
    tree = draft(rows, SAMPLED)
    path: Path = ()
    assert tree.draft_probs is not None
    for depth, token in enumerate(tree.token_ids.tolist()):
        row = torch.tensor(rows._rows.get(path, rows._default))
        torch.testing.assert_close(tree.draft_probs[depth], row)
        number = torch.tensor(uniform(7, 20 + depth, Use.DRAFT, depth), dtype=torch.float64)
        assert token == int(pick(row, number))
        path = (*path, token)


def test_rank_paths_are_filled_with_the_tokens_of_those_ranks(rows: Rows) -> None:
    wanted = ((0,), (1,), (0, 1), (1, 0), (1, 0, 0))
    tree = draft(rows, tree_shape="static", tree_paths=wanted)
    assert sorted(paths(tree)) == [(0,), (0, 1), (1,), (1, 1), (1, 1, 2)]
    assert rows.asked == [[()], [(0,), (1,)], [(1, 1)]]  # one call a depth, only where something is behind


def test_rank_paths_deeper_than_allowed_are_left_out(rows: Rows) -> None:
    tree = draft(rows, depth=1, tree_shape="static", tree_paths=((0,), (1,), (0, 0)))
    assert paths(tree) == [(0,), (1,)]


def test_ranks_that_no_token_has_are_left_out_with_all_behind_them(rows: Rows) -> None:
    tree = draft(rows, tree_shape="static", tree_paths=((0,), (3,), (3, 0)))
    assert paths(tree) == [(0,)]
    only_two = SamplingParams(temperature=1.0, top_k=2)
    tree = draft(rows, only_two, tree_shape="static", tree_paths=((0,), (1,), (2,), (2, 0)))
    assert paths(tree) == [(0,), (1,)]


def test_a_beam_expands_its_width_and_is_cut_to_the_budget(rows: Rows) -> None:
    # depth 1: 0 (.5), 1 (.3);  behind them: 00 (.30), 01 (.15), 11 (.24), 10 (.03), and 00 and 11 go on:
    # 002 (.15), 001 (.09), 112 (.12), 111 (.072). The best six of all: 0, 1, 00, 11, 01, 002.
    tree = draft(rows, tree_shape="beam", tree_width=2, tree_nodes=6)
    assert rows.asked == [[()], [(0,), (1,)], [(0, 0), (1, 1)]]
    assert sorted(paths(tree)) == [(0,), (0, 0), (0, 0, 2), (0, 1), (1,), (1, 1)]


def test_a_beam_stops_where_the_budget_is_full_of_better_nodes(rows: Rows) -> None:
    tree = draft(rows, tree_shape="beam", tree_width=2, tree_nodes=2)
    assert sorted(paths(tree)) == [(0,), (0, 0)] or sorted(paths(tree)) == [(0,), (1,)]
    assert rows.asked[-1] != [(0, 0), (1, 1)]  # two nodes of depth 2 can never both be kept


def best_tree(rows: Rows, budget: int, depth: int, width: int) -> set[Path]:
    """The most probable paths of all, found by writing every one of them down."""

    def weight(path: Path) -> float:
        return math.prod(rows._rows.get(path[:i], rows._default)[token] for i, token in enumerate(path))

    def ranks(path: Path) -> list[int]:
        found = []
        for i, token in enumerate(path):
            row = rows._rows.get(path[:i], rows._default)
            found.append(sum(p > row[token] for p in row))
        return found

    everything = [path for size in range(1, depth + 1) for path in itertools.product(range(3), repeat=size)]
    allowed = [path for path in everything if max(ranks(path)) < width]
    return set(sorted(allowed, key=lambda path: (-weight(path), len(path)))[:budget])


@pytest.mark.parametrize("budget", range(1, 15))
def test_best_first_is_the_best_tree_of_its_size(budget: int) -> None:
    generator = torch.Generator().manual_seed(budget)
    written = {
        path: torch.rand(3, generator=generator).add(0.05).pow(2).div_(1).tolist()
        for size in range(3)
        for path in itertools.product(range(3), repeat=size)
    }
    normal = {path: [p / sum(row) for p in row] for path, row in written.items()}
    rows = Rows(normal, (1.0, 0.0, 0.0))
    tree = draft(rows, tree_shape="best_first", tree_width=3, tree_nodes=budget)
    assert set(paths(tree)) == best_tree(rows, budget, 3, 3)
    narrow = draft(rows, tree_shape="best_first", tree_width=2, tree_nodes=budget)
    assert set(paths(narrow)) == best_tree(rows, budget, 3, 2)


def test_paths_below_the_threshold_are_not_drafted(rows: Rows) -> None:
    knobs = {"tree_width": 2, "tree_nodes": 20, "stop_rule": "cumulative"}
    tree = draft(rows, tree_shape="best_first", stop_threshold=0.2, **knobs)
    assert sorted(paths(tree)) == [(0,), (0, 0), (1,), (1, 1)]
    assert draft(rows, tree_shape="beam", stop_threshold=0.6, **knobs).num_nodes == 0


@pytest.mark.parametrize(
    ("rule", "threshold", "length"),
    [
        ("confidence", 0.55, 1),  # the first token has 0.5
        ("confidence", 0.45, 3),
        ("cumulative", 0.31, 2),  # 0.5, then 0.5 * 0.6 = 0.3
        ("cumulative", 0.29, 3),
        ("adaptive", 0.55, 1),
    ],
)
def test_a_chain_ends_behind_the_token_that_a_rule_doubts(
    rows: Rows, rule: str, threshold: float, length: int
) -> None:
    assert draft(rows, stop_rule=rule, stop_threshold=threshold).num_nodes == length


def test_a_chain_ends_where_the_drafter_was_unsure(rows: Rows) -> None:
    # Entropies: root 1.030, behind 0: 0.898; roots of them 1.015 and 0.948.
    assert draft(rows, stop_rule="entropy", stop_threshold=1.0).num_nodes == 1
    sure = Rows({(): (0.9, 0.05, 0.05)}, (0.4, 0.3, 0.3))  # 0.394 -> 0.628, then 1.089 -> 1.044
    assert draft(sure, stop_rule="entropy", stop_threshold=0.9).num_nodes == 2
    # 1 - sqrt(0.5 * 0.394) = 0.556, then 1 - sqrt(0.5 * 1.089) = 0.262.
    knobs = {"stop_rule": "entropy", "entropy_form": "adaedl", "entropy_scale": 0.5}
    assert draft(sure, stop_threshold=0.5, **knobs).num_nodes == 2
    assert draft(sure, stop_threshold=0.6, **knobs).num_nodes == 1
    assert draft(sure, stop_threshold=0.2, **knobs).num_nodes == 3
