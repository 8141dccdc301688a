"""Drafts as token trees. A chain is a tree of width 1.

Knows tokens, parents and masks; nothing of models, and not which nodes will be accepted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenTree:
    """The draft of one step for one row; the root (the last committed token) is not part of it.

    Args:
        token_ids: [n] int64, parents before children; siblings stand in the order in which they were drawn.
        parents: For every node the index of its parent; -1 is the root.
        draft_probs: [n, vocab] the full filtered distribution each node was drawn from (siblings share a row);
            None where nodes were chosen without drawing: they are one-hot.
    """

    token_ids: Tensor
    parents: tuple[int, ...]
    draft_probs: Tensor | None = None

    def __post_init__(self) -> None:
        assert self.token_ids.shape == (len(self.parents),), (self.token_ids.shape, self.parents)
        assert all(-1 <= parent < node for node, parent in enumerate(self.parents)), self.parents
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

    def ancestor_mask(self) -> Tensor | None:
        """Return which nodes each sees, the root as row 0: [n + 1, n + 1] bool; None for a chain (causal)."""
        if self.is_chain:
            return None
        mask = torch.eye(self.num_nodes + 1, dtype=torch.bool)
        for node, parent in enumerate(self.parents, start=1):
            mask[node] |= mask[parent + 1]
        return mask


def chain(token_ids: Tensor, draft_probs: Tensor | None = None) -> TokenTree:
    """Make a tree of width 1 out of tokens in order."""
    return TokenTree(token_ids, tuple(range(-1, token_ids.shape[0] - 1)), draft_probs)


def empty_tree() -> TokenTree:
    """Make the draft of a drafter that has nothing to propose."""
    return chain(torch.empty(0, dtype=torch.int64))
