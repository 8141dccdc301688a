"""Drafts as token trees. A chain is a tree of width 1.

Knows tokens, parents and masks; nothing of models, and not which nodes will be accepted. How a drafter grows one
stands in `growth`.
"""

from __future__ import annotations

import heapq
import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from autospec.config import MAX_DRAFT_LENGTH


@dataclass(frozen=True)
class TokenTree:
    """The draft of one step for one row; the root (the last committed token) is not part of it.

    Args:
        token_ids: [n] int64, parents before children; siblings stand in the order in which they were drawn.
        parents: For every node the index of its parent; -1 is the root.
        draft_probs: [n, vocab] the full filtered distribution each node was drawn from (siblings share a row);
            None where nodes were chosen without drawing: they are one-hot.
        draft_logits: [n, vocab] what the drafter thought of all tokens where each node stands, unfiltered; only where
            the acceptance rule reads it.
    """

    token_ids: Tensor
    parents: tuple[int, ...]
    draft_probs: Tensor | None = None
    draft_logits: Tensor | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "parents", tuple(self.parents))
        assert self.token_ids.shape == (len(self.parents),), (self.token_ids.shape, self.parents)
        assert min(self.parents, default=-1) >= -1, self.parents
        assert all(map(operator.lt, self.parents, range(len(self.parents)))), self.parents
        assert self.draft_probs is None or self.draft_probs.shape[0] == len(self.parents)

    @property
    def num_nodes(self) -> int:
        """Number of draft nodes, the root not counted."""
        return len(self.parents)

    @cached_property
    def is_chain(self) -> bool:
        """Whether every node is the only child of the one before it."""
        return self.parents == tuple(range(-1, self.num_nodes - 1))

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Distance of every node from the root, whose children have depth 1."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent < 0 else depths[parent] + 1)
        return tuple(depths)

    @cached_property
    def depth(self) -> int:
        """Length of the longest path: as many tokens as can be accepted."""
        return max(self.depths, default=0)

    @cached_property
    def draws(self) -> tuple[int, ...]:
        """A number for every node that no other node of one depth has, nor any at one position in another step.

        Random numbers are told apart by it; see `autospec.engine.sampling.uniform`.
        """
        counts: Counter[int] = Counter()
        draws = []
        for depth in self.depths:
            draws.append(draw_of(depth, counts[depth]))
            counts[depth] += 1
        return tuple(draws)

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """Of the root and then of every node, the indices of its children in the order in which they were drawn."""
        found: list[list[int]] = [[] for _ in range(self.num_nodes + 1)]
        for node, parent in enumerate(self.parents):
            found[parent + 1].append(node)
        return tuple(map(tuple, found))

    @cached_property
    def tokens(self) -> tuple[int, ...]:
        """The token of every node, read from its tensor once."""
        return tuple(self.token_ids.tolist())

    @cached_property
    def _index(self) -> dict[tuple[int, int], int]:
        edges = zip(self.parents, self.tokens, strict=True)
        index: dict[tuple[int, int], int] = {}
        for node, edge in enumerate(edges):
            index.setdefault(edge, node)  # drawn with replacement, a token may stand twice: the first counts
        return index

    def child(self, node: int, token_id: int) -> int | None:
        """Return the child of a node (-1: of the root) that is a token; None where there is none."""
        return self._index.get((node, token_id))

    def ancestor_mask(self) -> Tensor | None:
        """Return which nodes each sees, the root as row 0: [n + 1, n + 1] bool; None for a chain (causal)."""
        if self.is_chain:
            return None
        mask = torch.eye(self.num_nodes + 1, dtype=torch.bool)
        for node, parent in enumerate(self.parents, start=1):
            mask[node] |= mask[parent + 1]
        return mask


def draw_of(depth: int, place: int) -> int:
    """Return the number by which draws at one absolute position are told apart.

    Args:
        depth: Distance from the root, from 1; a position drafted again in a later step has another.
        place: Among all draws at this depth.
    """
    return depth - 1 + MAX_DRAFT_LENGTH * place


def chain(token_ids: Tensor | Sequence[int], draft_probs: Tensor | None = None) -> TokenTree:
    """Make a tree of width 1 out of tokens in order; there may be none."""
    if not isinstance(token_ids, Tensor):
        token_ids = torch.tensor(list(token_ids), dtype=torch.int64)
    return TokenTree(token_ids, tuple(range(-1, token_ids.shape[0] - 1)), draft_probs)


@dataclass(slots=True)
class Trie:
    """Continuations that share their beginnings, with a weight for every node; grows, and is cut to a budget.

    Args:
        token_ids: Of every node.
        parents: Of every node; -1 is the root.
        weights: Of every node; a child's is never above its parent's, so that the heaviest nodes hang together.
    """

    token_ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    _index: dict[tuple[int, int], int] = field(default_factory=dict)

    def insert(self, token_ids: Iterable[int], weights: Iterable[float]) -> None:
        """Add a path from the root, with the weight of each of its nodes; where nodes meet, weights add up.

        SpecInfer (2305.09781) merges the drafts of several models like this, REST (2311.08252) retrieved spans.
        """
        parent = -1
        for token_id, weight in zip(token_ids, weights, strict=False):
            node = self._index.get((parent, token_id))
            if node is None:
                node = self._index[parent, token_id] = len(self.token_ids)
                self.token_ids.append(token_id)
                self.parents.append(parent)
                self.weights.append(0.0)
            self.weights[node] += weight
            parent = node

    def insert_tree(self, tree: TokenTree, weights: Sequence[float]) -> None:
        """Add a whole draft, with the weight of each of its nodes."""
        places: list[int] = []
        for node, (token_id, parent) in enumerate(zip(tree.token_ids.tolist(), tree.parents, strict=True)):
            above = -1 if parent < 0 else places[parent]
            place = self._index.get((above, token_id))
            if place is None:
                place = self._index[above, token_id] = len(self.token_ids)
                self.token_ids.append(token_id)
                self.parents.append(above)
                self.weights.append(0.0)
            self.weights[place] += weights[node]
            places.append(place)

    def best(self, num_nodes: int, max_depth: int) -> TokenTree:
        """Return the heaviest nodes that hang together, siblings with the heaviest first."""
        children: list[list[int]] = [[] for _ in range(len(self.token_ids) + 1)]
        for node, parent in enumerate(self.parents):
            children[parent + 1].append(node)
        frontier = [(-self.weights[node], node, 1) for node in children[0]]
        heapq.heapify(frontier)
        kept: list[int] = []
        while frontier and len(kept) < num_nodes:
            _, node, depth = heapq.heappop(frontier)
            kept.append(node)
            if depth < max_depth:
                for child in children[node + 1]:
                    heapq.heappush(frontier, (-self.weights[child], child, depth + 1))
        places = {node: place for place, node in enumerate(kept)} | {-1: -1}
        token_ids = torch.tensor([self.token_ids[node] for node in kept], dtype=torch.int64)
        return TokenTree(token_ids, tuple(places[self.parents[node]] for node in kept))


def empty_tree() -> TokenTree:
    """Make the draft of a drafter that has nothing to propose."""
    return chain(torch.empty(0, dtype=torch.int64))
