"""What a drafter thinks behind every position of recorded texts: rows of candidates, joined to trees.

Arrays that grow; knows tokens and probabilities, no model. A node is a row of the drafter's best candidates behind
some tokens. Nodes 0 .. positions - 1 stand behind the recorded text itself. Where the target takes a candidate, the
node behind it is the next position's, because a draft is a function of the text before it (law 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Rows:
    """The drafter's rows behind nodes.

    Args:
        tokens: [n, width] the candidates, the most probable first.
        logprobs: [n, width] their log-probabilities; -inf where a token cannot come.
        entropies: [n] of the whole row, in nats.
    """

    tokens: Ints
    logprobs: Floats
    entropies: Floats

    @classmethod
    def join(cls, parts: Sequence[Rows]) -> Rows:
        """Return all rows of several."""
        names = ("tokens", "logprobs", "entropies")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


class DraftForest:
    """Rows of nodes, and which node stands behind each candidate.

    Args:
        rows: Of the positions, and of other nodes behind them.
        children: [n, width] the node behind each candidate; -1 where it was not recorded.
        parents: [n] the node before each; -1 for positions.
        ranks: [n] as which candidate of its parent it was recorded.
    """

    def __init__(self, rows: Rows, children: Ints, parents: Ints, ranks: Ints) -> None:
        self.rows, self.children, self.parents, self.ranks = rows, children, parents, ranks

    @classmethod
    def of_positions(cls, rows: Rows, next_tokens: Ints, has_next: NDArray[np.bool_]) -> DraftForest:
        """Make it of the rows behind the text.

        Args:
            rows: [positions].
            next_tokens: [positions] what the target wrote there.
            has_next: [positions] whether the position after it is of the same text.
        """
        num_positions, width = rows.tokens.shape
        children = np.full((num_positions, width), -1, dtype=np.int32)
        places, ranks = np.nonzero((rows.tokens == next_tokens[:, None]) & has_next[:, None])
        children[places, ranks] = places + 1
        nothing = np.full(num_positions, -1, dtype=np.int32)
        return cls(rows, children, nothing, nothing.copy())

    @property
    def num_nodes(self) -> int:
        """Number of rows."""
        return len(self.parents)

    @property
    def width(self) -> int:
        """Candidates of a row."""
        return int(self.rows.tokens.shape[1])

    def add(self, parents: Ints, ranks: Ints, rows: Rows) -> None:
        """Append the rows behind candidates of nodes."""
        first, num_new = self.num_nodes, len(parents)
        self.rows = Rows.join([self.rows, rows])
        fresh = np.full((num_new, self.width), -1, dtype=np.int32)
        children = np.concatenate([self.children, fresh])
        children[parents, ranks] = np.arange(first, first + num_new, dtype=np.int32)
        self.children = children
        self.parents = np.concatenate([self.parents, parents.astype(np.int32)])
        self.ranks = np.concatenate([self.ranks, ranks.astype(np.int32)])

    def path(self, node: int) -> tuple[int, list[int]]:
        """Return the position behind which a node stands, and the tokens from there to it."""
        tokens = list[int]()
        while (parent := int(self.parents[node])) >= 0:
            tokens.append(int(self.rows.tokens[parent, self.ranks[node]]))
            node = parent
        return node, tokens[::-1]
