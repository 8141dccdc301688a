"""Which rank paths make the best tree: by dynamic programming, by greedy choice, and for what a machine takes.

Sequoia (2402.12374) and Medusa (2401.10774). Works on acceptance by rank, which is estimated here from ranks that were
observed; knows neither models nor tokens.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autospec.config import MAX_TREE_NODES
from autospec.engine.costs import CostCurve
from autospec.errors import ConfigError

RankPath = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TreeChoice:
    """A tree and what it is worth.

    Args:
        paths: Of all its nodes, the `tree_paths` of a `SpecConfig`; none is speculation off.
        depth: Of its longest path.
        tokens_per_step: Expected, the target's own token included.
        seconds_per_token: In the unit of the costs it was chosen by.
    """

    paths: tuple[RankPath, ...]
    depth: int
    tokens_per_step: float
    seconds_per_token: float


class OptimalTrees:
    """The best trees of every size and depth up to a maximum.

    Sequoia's programme, one level of depth and one more child at a time: a tree whose root has b children is a tree
    whose root has b - 1, and a b-th child with a tree of its own below it.

    Args:
        acceptance: [ranks]: how likely the target, behind an accepted token, takes the drafter's candidate of each
            rank. The same at every depth. A node gets its candidates in order: the third only with the first two.
        max_nodes: Most draft nodes of a tree, the root not counted.
        max_depth: Longest path.

    Raises:
        ConfigError: No probabilities that can be of one event, or sizes out of range.
    """

    def __init__(self, acceptance: ArrayLike, max_nodes: int, max_depth: int) -> None:
        self.acceptance = _probabilities(acceptance, ndim=1)
        if not 1 <= max_nodes <= MAX_TREE_NODES:
            raise ConfigError(f"`1 <= max_nodes <= {MAX_TREE_NODES}` must hold, but got {max_nodes}")
        if max_depth < 1:
            raise ConfigError(f"`max_depth >= 1` must hold, but got {max_depth}")
        self.max_nodes, self.max_depth = max_nodes, max_depth
        # Of exactly so many nodes below a root, by depth at most: its value, how many children the root has, and for
        # each number of children how many nodes stand at and below the last.
        self._values = np.full((max_depth + 1, max_nodes + 1), -np.inf)
        self._values[0, 0] = 1.0
        self._num_children = np.zeros((max_depth + 1, max_nodes + 1), dtype=np.int64)
        self._num_last = np.zeros((max_depth + 1, self.acceptance.size + 1, max_nodes + 1), dtype=np.int64)
        for depth in range(1, max_depth + 1):
            self._fill(depth)

    def _fill(self, depth: int) -> None:
        """Compute all sizes of one depth from those of the depth below."""
        sizes = np.arange(self.max_nodes + 1)
        rest = sizes[:, None] - sizes  # [size, nodes of the last child] -> nodes of the others
        by_children = np.full((self.acceptance.size + 1, sizes.size), -np.inf)
        by_children[0, 0] = 1.0
        # A child with y nodes at and below it is the root of a tree of y - 1.
        below = np.concatenate([[-np.inf], self._values[depth - 1, :-1]])
        for count, chance in enumerate(self.acceptance, start=1):
            others = np.where(rest >= 0, by_children[count - 1][rest], -np.inf)
            # An impossible subtree stays impossible under a candidate that is never taken.
            last = np.where(np.isfinite(below), chance * np.where(np.isfinite(below), below, 0.0), -np.inf)
            totals = others + last
            self._num_last[depth, count] = totals.argmax(axis=1)
            by_children[count] = totals.max(axis=1)
        self._num_children[depth] = by_children.argmax(axis=0)
        self._values[depth] = by_children.max(axis=0)

    @cached_property
    def tokens_per_step(self) -> NDArray[np.float64]:
        """Expected tokens of a step, the target's own included: [max_nodes + 1, max_depth + 1], of at most so many."""
        return np.asarray(np.maximum.accumulate(self._values, axis=1).T)

    def paths(self, num_nodes: int, depth: int) -> tuple[RankPath, ...]:
        """Return the best tree of at most so many nodes and such a depth, by depth and rank."""
        size = int(self._values[depth, : num_nodes + 1].argmax())  # the smallest, where more nodes bring nothing
        found: list[RankPath] = []
        self._collect(size, depth, (), found)
        return tuple(sorted(found, key=lambda path: (len(path), path)))

    def _collect(self, size: int, depth: int, path: RankPath, found: list[RankPath]) -> None:
        for count in range(int(self._num_children[depth, size]), 0, -1):
            num_last = int(self._num_last[depth, count, size])
            child = (*path, count - 1)
            found.append(child)
            self._collect(num_last - 1, depth - 1, child, found)
            size -= num_last

    def choose(self, costs: CostCurve) -> TreeChoice:
        """Return the tree whose tokens come fastest: least (depth x draft + target of its size) for each token.

        A drafter's call for a whole level is taken to cost as much as for one token.

        Raises:
            MeasurementError: The costs were not measured for trees of `max_nodes`.
        """
        sizes, depths = np.arange(self.max_nodes + 1), np.arange(self.max_depth + 1)
        seconds = costs.verify(sizes)[:, None] + costs.draft * depths
        rates = seconds / self.tokens_per_step
        num_nodes, depth = np.unravel_index(int(rates.argmin()), rates.shape)
        return TreeChoice(
            self.paths(int(num_nodes), int(depth)),
            int(depth),
            float(self.tokens_per_step[num_nodes, depth]),
            float(rates[num_nodes, depth]),
        )


def greedy_paths(accuracies: ArrayLike, num_nodes: int) -> tuple[RankPath, ...]:
    """Return the tree of most expected tokens where the candidates' accuracies differ by depth, as Medusa's heads' do.

    Takes the node with the largest product of accuracies along its path, again and again: no path is worth more than
    its beginning, so the best nodes hang together.

    Args:
        accuracies: [depth, rank]: how often the target's token at that depth was the candidate of that rank.
        num_nodes: Most nodes; candidates that were never right are left out.

    Raises:
        ConfigError: No probabilities that can be of one event.
    """
    chances = _probabilities(accuracies, ndim=2)
    frontier: list[tuple[float, int, RankPath]] = []
    found: list[RankPath] = []

    def offer(path: RankPath, value: float) -> None:
        if len(path) < chances.shape[0]:
            for rank, chance in enumerate(chances[len(path)]):
                if chance > 0.0:
                    heapq.heappush(frontier, (-value * float(chance), len(path) + 1, (*path, rank)))

    offer((), 1.0)
    while frontier and len(found) < num_nodes:
        value, _, path = heapq.heappop(frontier)
        found.append(path)
        offer(path, -value)
    return tuple(sorted(found, key=lambda path: (len(path), path)))


def tokens_per_step(paths: Sequence[RankPath], acceptance: ArrayLike) -> float:
    """Return the expected tokens of a step with a tree: the target's own and, of every node, its chance to be kept.

    Args:
        paths: Of all nodes.
        acceptance: [ranks], or [depth, ranks] where it differs by depth.
    """
    chances = np.asarray(acceptance, dtype=np.float64)
    by_depth = np.broadcast_to(chances, (max(map(len, paths), default=0), chances.shape[-1]))
    return 1.0 + sum(float(np.prod(by_depth[np.arange(len(path)), list(path)])) for path in paths)


def rank_acceptance(ranks: ArrayLike, num_ranks: int) -> NDArray[np.float64]:
    """Estimate acceptance by rank from the ranks that the target's tokens had among the drafter's candidates.

    Args:
        ranks: [observations, ...] int, 0 the drafter's first candidate; a negative one was not observed, and counts
            for nothing; one of `num_ranks` or more counts as a miss.
        num_ranks: How many candidates matter.

    Returns:
        [..., num_ranks] the share of each rank; 0 where nothing was observed.
    """
    observed = np.asarray(ranks)
    counts = np.stack([(observed == rank).sum(axis=0) for rank in range(num_ranks)], axis=-1)
    totals = (observed >= 0).sum(axis=0)[..., None]
    return np.asarray(counts / np.maximum(totals, 1))


def _probabilities(values: ArrayLike, ndim: int) -> NDArray[np.float64]:
    chances = np.asarray(values, dtype=np.float64)
    if chances.ndim != ndim or chances.size == 0:
        raise ConfigError(f"acceptance by rank must have {ndim} dimensions and values, but got shape {chances.shape}")
    if not (np.all(chances >= 0.0) and np.all(chances.sum(axis=-1) <= 1.0 + 1e-9)):
        raise ConfigError(f"acceptance by rank must be chances that sum to at most 1, but got {chances.tolist()}")
    return chances
