"""What a drafter thinks behind every position of recorded texts: rows of candidates, joined to trees.

Arrays that grow; knows tokens and probabilities, no model. A node is a row of the drafter's best candidates behind
some tokens. Nodes 0 .. positions - 1 stand behind the recorded text itself. Where the target takes a candidate of a
language model, the node behind it is the next position's; heads that draft on the target's features think otherwise
behind their own draft, whose features they only guess.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autospec.config import SpecConfig

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
        caps: [positions] the deepest draft that the drafter makes there.
    """

    def __init__(self, rows: Rows, children: Ints, parents: Ints, ranks: Ints, caps: Ints) -> None:
        self.rows, self.children, self.parents, self.ranks, self.caps = rows, children, parents, ranks, caps

    @classmethod
    def of_positions(cls, rows: Rows, caps: Ints) -> DraftForest:
        """Make it of the rows behind the text: [positions]."""
        num_positions, width = rows.tokens.shape
        nothing = np.full(num_positions, -1, dtype=np.int32)
        return cls(rows, np.full((num_positions, width), -1, dtype=np.int32), nothing, nothing.copy(), caps)

    def join_text(self, next_tokens: Ints, has_next: NDArray[np.bool_]) -> None:
        """Put the next position behind the candidate that the target takes.

        Right where a drafter thinks the same behind a token of its own draft as behind that token in the text.

        Args:
            next_tokens: [positions] what the target wrote there.
            has_next: [positions] whether the position after it is of the same text.
        """
        num_positions = len(next_tokens)
        taken = (self.rows.tokens[:num_positions] == next_tokens[:, None]) & has_next[:, None]
        places, ranks = np.nonzero(taken)
        self.children[places, ranks] = places + 1

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


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a drafter draws behind every position, under sampling; and how likely it draws what the target wrote.

    Args:
        tokens: [positions, depth] the chain that it draws there; -1 behind its end.
        probs: [positions, depth] of its tokens, in the filters of sampling.
        entropies: [positions, depth] of the rows they were drawn from.
        lengths: [positions] of the chains.
        own: [positions] probability that the drafter gives the target's own token, given the true text before it; NaN
            where it is not known.
        coupled: [positions] probability that both choose alike with the same noise, given that the target chose its
            own token; NaN where it is not known.
    """

    tokens: Ints
    probs: Floats
    entropies: Floats
    lengths: Ints
    own: Floats
    coupled: Floats


Draft = tuple[list[int], list[int]]


class DraftStore:
    """Whole drafts, tokens and parents, by position and longest path asked for.

    Args:
        config: Under which they were made.
        drafts: What is known.
    """

    def __init__(self, config: SpecConfig, drafts: Mapping[tuple[int, int], Draft] | None = None) -> None:
        self.config, self.drafts = config, dict(drafts or {})

    @property
    def tensors(self) -> dict[str, Ints]:
        """Position, limit and size of every draft [drafts, 3]; tokens and parents of one behind the other."""
        places = [(*place, len(draft[0])) for place, draft in self.drafts.items()]
        return {
            "places": np.array(places, dtype=np.int32).reshape(-1, 3),
            "tokens": np.array([token for draft in self.drafts.values() for token in draft[0]], dtype=np.int32),
            "parents": np.array([parent for draft in self.drafts.values() for parent in draft[1]], dtype=np.int32),
        }

    @classmethod
    def of(cls, config: SpecConfig, places: Ints, tokens: Ints, parents: Ints) -> DraftStore:
        """Make it of its tensors."""
        drafts, start = dict[tuple[int, int], Draft](), 0
        for position, limit, size in places.tolist():
            own = slice(start, start + size)
            drafts[position, limit] = tokens[own].tolist(), parents[own].tolist()
            start += size
        return cls(config, drafts)
