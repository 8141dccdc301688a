"""What a step yields, what decides it, and the rule that needs neither probabilities nor coins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from autospec.engine.sampling import Use, pick, uniform
from autospec.engine.tree import TokenTree


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one step yields for one row.

    Args:
        path: Accepted nodes of the draft, in order of depth.
        next_id: The correction or bonus token.
    """

    path: tuple[int, ...]
    next_id: int

    @property
    def num_accepted(self) -> int:
        """Number of draft tokens kept."""
        return len(self.path)


class Chance(Protocol):
    """Where the randomness of one step comes from; a test can put every outcome in its place."""

    def keeps(self, node: int, prob: float) -> bool:
        """Toss the coin of a node, which is asked once: True with a probability."""
        ...

    def correction(self, probs: Tensor) -> int:
        """Draw the token of this step that comes after a rejection."""
        ...

    def bonus(self, probs: Tensor, depth: int) -> int:
        """Draw the token behind a node of a depth where nothing more was drafted."""
        ...


@dataclass(frozen=True, slots=True)
class CountedChance:
    """Counter-based randomness: every number belongs to a seed, a position, a use and a node.

    The bonus has the number with which plain decoding draws at its position, because only one bonus is ever drawn
    there. The correction's position is known only afterwards, so it has one number a step, told apart by the root's.

    Args:
        seed: Of the prompt.
        position: Absolute position of the first drafted token.
        tree: The draft.
    """

    seed: int
    position: int
    tree: TokenTree

    def keeps(self, node: int, prob: float) -> bool:
        """Toss the coin of a node; see `Chance`."""
        return self.coin(node) < prob

    def correction(self, probs: Tensor) -> int:
        """Draw after a rejection; see `Chance`."""
        return _drawn(probs, uniform(self.seed, self.position, Use.CORRECTION))

    def bonus(self, probs: Tensor, depth: int) -> int:
        """Draw behind a draft; see `Chance`."""
        return _drawn(probs, uniform(self.seed, self.position + depth, Use.TARGET))

    def coin(self, node: int) -> float:
        """Return the number in [0, 1) of a node's coin."""
        at = self.position + self.tree.depths[node] - 1
        return uniform(self.seed, at, Use.ACCEPT, self.tree.draws[node])


def _drawn(probs: Tensor, number: float) -> int:
    return int(pick(probs, torch.tensor(number, dtype=torch.float64)))


def accept_matching(tree: TokenTree, target_ids: Sequence[int]) -> Verdict:
    """Follow the children that are the target's own choice.

    Exact matching: greedy decoding, or sample-and-match where `target_ids` were drawn from the target. Lossless for
    any drafter and any tree, because every emitted token is the target's.

    Args:
        tree: The draft.
        target_ids: The target's choice behind the root and then behind every node.
    """
    path, node = list[int](), tree.child(-1, target_ids[0])
    while node is not None:
        path.append(node)
        node = tree.child(node, target_ids[node + 1])
    return Verdict(tuple(path), target_ids[path[-1] + 1 if path else 0])
