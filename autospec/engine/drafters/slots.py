"""Where the nodes of a growing draft stand in a cache, and what each of them may see.

Shared by every drafter that runs layers behind a text; knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autospec.config import SpecConfig
from autospec.engine.cache import KVCache
from autospec.engine.growth import Growing


@dataclass(frozen=True, slots=True)
class Placement:
    """How the next nodes are run.

    Args:
        tree_mask: [n, m] bool: which of all m nodes run so far, the n new ones last, each new one sees; None is
            causal.
        depths: Position of each new node behind the cached tokens; None counts up.
    """

    tree_mask: Tensor | None
    depths: tuple[int, ...] | None


class DraftSlots:
    """The nodes of one draft that were run, in the order in which they were: slot 1 is the first behind the root."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget the draft."""
        self._slots: dict[int, int] = {}  # node -> how many slots behind the root it stands
        self._edges: dict[tuple[int, int], int] = {}  # (parent, token) -> node

    def place(self, tree: Growing, nodes: Sequence[int]) -> Placement:
        """Give the next nodes their slots; see `Expander` for which nodes may be next."""
        num_before = len(self._slots)
        for node in nodes:
            self._slots[node] = len(self._slots) + 1
            self._edges[tree.parents[node], tree.token_ids[node]] = node
        num_nodes = len(self._slots)
        if list(self._slots) == list(range(num_nodes)) and _is_chain(tree, num_nodes):
            return Placement(None, None)
        mask = torch.zeros(len(nodes), num_nodes, dtype=torch.bool)
        depths = []
        for row, node in enumerate(nodes):
            above = node
            while above >= 0:
                mask[row, self._slots[above] - 1] = True
                above = tree.parents[above]
            depths.append(tree.depth(node) - 1 - num_before)
        return Placement(mask, tuple(depths))

    def path(self, token_ids: Sequence[int]) -> list[int]:
        """Return the slots of those tokens, from the root on, that were run as nodes."""
        path, parent = list[int](), -1
        for token_id in token_ids:
            node = self._edges.get((parent, token_id))
            if node is None:
                break
            path.append(self._slots[node])
            parent = node
        return path


def num_run_nodes(config: SpecConfig) -> int:
    """Return how many nodes of one draft a drafter may run, at most, besides those along one path."""
    if config.tree_shape == "chain":
        return 0
    if config.tree_paths:
        return len(config.tree_paths)
    num_expanded = config.tree_width if config.tree_shape == "beam" else config.tree_nodes
    return config.draft_length * min(config.tree_nodes, num_expanded)


def text_cache(given: KVCache | None, capacity: int) -> KVCache:
    """Return an empty cache with room for a text.

    Args:
        given: Emptied and used, such as a row of a cache that other texts share; None makes one.
        capacity: Tokens.
    """
    if given is None:
        return KVCache(capacity)
    given.reserve(capacity)
    given.crop(0, 0)
    return given


def _is_chain(tree: Growing, num_nodes: int) -> bool:
    return tree.parents[:num_nodes] == list(range(-1, num_nodes - 1))
