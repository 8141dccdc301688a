"""Tables of what was recorded, computed once for all configurations that share them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from autospec.config import SpecConfig
from autospec.engine.costs import CostCurve, costs_of
from autospec.errors import ReplayMiss
from autospec.replay.branching import grow_layers
from autospec.replay.cutting import Layers, Level
from autospec.replay.forest import Ints
from autospec.replay.tables import Chains
from autospec.replay.trace import Trace

_DEPTH, _NODES = 16, 32  # one growth of this depth and of so many nodes serves all that are smaller


class Shelf:
    """Chains and trees at every position.

    Args:
        trace: What was recorded.
        costs: By drafter, for the cost-aware stopping rule.
        most: [positions] longest draft that could be used there.
    """

    def __init__(self, trace: Trace, costs: Mapping[str, CostCurve], most: NDArray[np.int64]) -> None:
        self.trace, self.costs, self.most = trace, costs, most
        self._chains: dict[tuple[object, ...], Chains] = {}
        self._stops: dict[tuple[object, ...], NDArray[np.int64]] = {}
        self._growths: dict[tuple[object, ...], tuple[int, tuple[Level, ...]]] = {}  # with the nodes there were
        self._layers: dict[tuple[object, ...], Layers] = {}

    def limits(self, key: str, length: int | NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the deepest draft at every position where at most `length` tokens are asked for.

        Args:
            key: Of the drafter.
            length: One length, or [lengths, 1].

        Returns:
            [positions] or [lengths, positions].
        """
        return np.minimum(np.minimum(self.most, length), self.trace.forests[key].caps)

    def chain(self, key: str, config: SpecConfig, depth: int) -> Chains:
        """Return the chains of a drafter: drawn ones under sampling, else the most probable, at least so deep."""
        forest, depth = self.trace.forests[key], max(depth, _DEPTH)
        if not config.draft_sampling(self.trace.sampling).is_greedy:
            drawn = self.trace.drawn[key]
            known: tuple[object, ...] = (key, id(drawn))
            if known not in self._chains:
                self._chains[known] = Chains.drawn(drawn, self.trace.next_tokens)
            return self._chains[known]
        known = (key, depth, forest.num_nodes)
        if known not in self._chains:
            self._chains[known] = Chains.of(forest, self.trace.next_tokens, depth)
        return self._chains[known]

    def stops(self, key: str, config: SpecConfig, depth: int) -> NDArray[np.int64]:
        """Return behind how many tokens a rule without state ends each chain: [positions]."""
        chains = self.chain(key, config, depth)
        rule = (config.stop_rule, config.stop_threshold, config.entropy_form, config.entropy_scale)
        known = (key, id(chains), *rule)
        if known not in self._stops:
            self._stops[known] = chains.stops(config, costs_of(self.costs, config.drafter))
        return self._stops[known]

    def layers(self, key: str, config: SpecConfig) -> Layers:
        """Return the beams or best-first trees of a drafter, of every depth limit up to the configuration's.

        Raises:
            ReplayMiss: Nodes were recorded with fewer candidates than the trees have children.
        """
        self.check_width(key, config)
        depth = max(_DEPTH, config.draft_length)
        levels = self._grown(key, config, depth)
        least = config.stop_threshold * (config.stop_rule == "cumulative")
        known = (key, id(levels), config.tree_nodes, least)
        if known not in self._layers:
            self._layers[known] = Layers.cut(levels, self.trace.num_positions, config.tree_nodes, least)
        return self._layers[known]

    def _grown(self, key: str, config: SpecConfig, depth: int) -> tuple[Level, ...]:
        """Return the growth from which trees of a configuration's shape and width are cut."""
        is_beam, size = config.tree_shape == "beam", max(_NODES, config.tree_nodes)
        kind, forest = (key, is_beam, config.tree_width, size, depth), self.trace.forests[key]
        num_nodes, levels = self._growths.get(kind, (-1, ()))
        if num_nodes != forest.num_nodes:  # more was recorded since
            places, limits = np.arange(self.trace.num_positions), self.limits(key, depth)
            shape = "beam" if is_beam else "best_first"
            whole = SpecConfig("x", 1, tree_shape=shape, tree_width=config.tree_width, tree_nodes=size)
            old, levels = levels, grow_layers(forest, whole, wanted_of(self.trace, places, limits), limits, places)
            self._growths[kind] = forest.num_nodes, levels
            self._layers = {known: cut for known, cut in self._layers.items() if cut.levels is not old}
        return levels

    def check_width(self, key: str, config: SpecConfig) -> None:
        """Refuse trees that look at more candidates than were recorded."""
        ranks = max((rank for path in config.tree_paths for rank in path), default=0) + 1
        wanted, width = ranks if config.tree_paths else config.tree_width, self.trace.forests[key].width
        if wanted > width:
            raise ReplayMiss(f"a node was recorded with {width} candidates, not {wanted}")


def wanted_of(trace: Trace, positions: NDArray[np.int64], limits: NDArray[np.int64]) -> Ints:
    """Return what the target writes from positions on: [positions, deepest limit]; -1 behind the last position."""
    depth = int(limits[positions].max(initial=0))
    padded = np.concatenate([trace.next_tokens, np.full(depth, -1, dtype=np.int32)])
    return np.asarray(padded[positions[:, None] + np.arange(depth)])
