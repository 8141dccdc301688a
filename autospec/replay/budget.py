"""How much of drafters' minds is recorded, and what it takes: arithmetic on shapes and sizes, nothing is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from autospec.config import SpecConfig
from autospec.engine.drafters.recycling import NUM_CANDIDATES

# What a node costs of a model as large as the target, run among many behind a few hundred tokens, over a plain step.
NODE_COST = 0.19
# Nodes that trees of a budget expand at a position, over the budget: all kinds together, and each kind. As the node's
# cost measured on the embedded pair.
_SHARED_NODES, _OWN_NODES = 0.3, 0.2
_LEAST_NODES = 4  # below which only chains are recorded


def chain_shape(length: int) -> SpecConfig:
    """Return chains as trees are grown: one child each."""
    return SpecConfig("x", 1, tree_shape="best_first", tree_width=1, tree_nodes=length)


def num_nodes(configs: Sequence[SpecConfig], limit: int) -> int:
    """Return how many nodes configurations expand at a position, at most; those of one shape and width share theirs.

    Args:
        configs: What is drafted.
        limit: Longest path.
    """
    return sum(size + limit for size in _sizes(configs).values())


def plain_generations(size: float, configs: Sequence[SpecConfig]) -> float:
    """Return about how many times as long as plain decoding it takes to record what configurations draft.

    Args:
        size: Weights of the drafter over those of the target.
        configs: What is drafted.
    """
    sizes = _sizes(configs)
    share = _SHARED_NODES + _OWN_NODES * len(sizes)
    return NODE_COST * size * share * max(sizes.values(), default=0)


def _sizes(configs: Sequence[SpecConfig]) -> dict[tuple[str, int], int]:
    """Return the largest budget of every shape and width."""
    sizes: dict[tuple[str, int], int] = {}
    for config in configs:
        kind = config.tree_shape, 1 if config.tree_shape == "chain" else config.tree_width
        own = config.draft_length if kind[1] == 1 else max(config.tree_nodes, len(config.tree_paths))
        sizes[kind] = max(sizes.get(kind, 0), own)
    return sizes


@dataclass(frozen=True, slots=True)
class RecordingBudget:
    """How much of a drafter's mind is recorded; what lies beyond is added when it is missed.

    Args:
        max_depth: Longest draft.
        width: Candidates of a node.
        max_nodes: Nodes of the trees that are recorded at every position; smaller ones of the same shape and width are
            part of them. 0 records chains only.
        tree_widths: Children of a node in best-first trees, one tree for each, because these do not nest; none takes
            `width`.
        beam_widths: Of beams, likewise; none records no beam.
        max_plain: Most times as long as plain decoding of the texts the trees of all draft models shall take, by
            arithmetic on sizes: no clock decides what is recorded. The budget of those that cost most is halved first.
        exit_layers: Of a target that drafts itself.
        draft_temperatures: Of drafters, under sampling; -1 is that of the target.
        max_bytes: Most a trace may take, whatever is added to it.
    """

    max_depth: int = 16
    width: int = 8
    max_nodes: int = 16
    tree_widths: tuple[int, ...] = ()
    beam_widths: tuple[int, ...] = ()
    max_plain: float = 3.0
    exit_layers: tuple[int, ...] = (0,)
    draft_temperatures: tuple[float, ...] = (-1.0,)
    max_bytes: int = 1 << 30

    def shapes(self) -> list[SpecConfig]:
        """Return what is grown at every position: chains, best-first trees, beams."""
        chain = chain_shape(self.max_depth)
        if not self.max_nodes:
            return [chain]
        kinds = [("best_first", width) for width in self.tree_widths or (self.width,)]
        kinds += [("beam", width) for width in self.beam_widths]
        return [
            chain,
            *(replace(chain, tree_shape=kind, tree_width=width, tree_nodes=self.max_nodes) for kind, width in kinds),
        ]

    def shared(self, sizes: Mapping[str, float]) -> dict[str, RecordingBudget]:
        """Return what is recorded of each model so that all together keep to `max_plain`.

        Args:
            sizes: Name to weights over those of the target.
        """
        most = dict.fromkeys(sizes, self.max_nodes)

        def cost(key: str) -> float:
            trees = replace(self, max_nodes=most[key]).shapes()[1:]
            return plain_generations(sizes[key], trees)

        while sum(map(cost, most)) > self.max_plain:
            dearest = max(most, key=cost)
            most[dearest] = most[dearest] // 2 if most[dearest] > _LEAST_NODES else 0
        return {key: replace(self, max_nodes=nodes) for key, nodes in most.items()}

    def estimate_bytes(self, num_tokens: int, num_positions: int, num_forests: int) -> int:
        """Return about how large a trace will be.

        Half of the positions are taken to leave the text, and every shape to expand an eighth of its budget that none
        before it did.
        """
        others = max(len(self.shapes()) - 2, 0) * self.max_nodes // 4
        nodes = num_positions * (1 + (self.max_depth + self.max_nodes + others) // 2)
        drawn = num_positions * (12 * self.max_depth + 16)
        return num_tokens * (4 + 8 * NUM_CANDIDATES) + num_forests * (nodes * (12 * self.width + 12) + drawn)
