"""Optimal trees for a search space: rank paths for a number of nodes and a depth, from acceptance by rank.

A space says how large an optimal tree may be, and the programme of `autospec.engine.optimal_tree` says which one it
is, from what was recorded of the drafter. Knows no models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autospec.engine.optimal_tree import OptimalTrees, RankPath

# Of a drafter of which nothing was recorded: that of the first measured draft models, about.
NOMINAL_ACCEPTANCE = (0.6, 0.15, 0.06, 0.03)


class TreeMaker:
    """Makes the optimal trees of drafters; each is computed once.

    Args:
        acceptance: Drafter to how likely the target takes its candidate of each rank; those not named are nominal.
    """

    def __init__(self, acceptance: Mapping[str, Sequence[float]] | None = None) -> None:
        self.acceptance = {name: tuple(chances) for name, chances in (acceptance or {}).items()}
        self._programmes: dict[tuple[str, int, int], tuple[RankPath, ...]] = {}

    def paths(self, drafter: str, num_nodes: int, depth: int) -> tuple[RankPath, ...]:
        """Return the best tree of at most so many nodes and such a depth; at least its first candidate."""
        known = (drafter, num_nodes, depth)
        if known not in self._programmes:
            chances = self.acceptance.get(drafter, NOMINAL_ACCEPTANCE)
            trees = OptimalTrees(chances, num_nodes, min(depth, num_nodes))
            self._programmes[known] = trees.paths(num_nodes, min(depth, num_nodes)) or ((0,),)
        return self._programmes[known]
