"""Puts whole drafts that show what their drafter thought into a forest, node by node."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from autospec.config import SamplingParams
from autospec.engine.tree import TokenTree
from autospec.replay.forest import DraftForest
from autospec.replay.running import rows_of


class Grafts:
    """Nodes that join a forest together, because a forest grows slowly.

    Args:
        forest: It holds the rows of all positions.
        sampling: By which candidates are ranked.
    """

    def __init__(self, forest: DraftForest, sampling: SamplingParams) -> None:
        self._forest, self._sampling = forest, sampling
        self._edges: dict[tuple[int, int], int] = {}
        self._rows: list[Tensor] = []
        self._tokens: dict[int, list[int]] = {}

    def add(self, position: int, tree: TokenTree) -> None:
        """Take a draft behind a position, with `draft_logits`; what a node has no candidates for is left out."""
        assert tree.draft_logits is not None
        places = {-1: position}
        for node, (parent, token) in enumerate(zip(tree.parents, tree.token_ids.tolist(), strict=True)):
            family = tree.children[node + 1]
            if not family or parent not in places:
                continue
            above = places[parent]
            candidates = self._candidates(above)
            if token not in candidates:
                continue
            edge = above, candidates.index(token)
            behind = int(self._forest.children[edge]) if above < self._forest.num_nodes else -1
            if behind < 0:
                behind = self._edges.get(edge, -1)
            if behind < 0:
                behind = self._edges[edge] = self._forest.num_nodes + len(self._rows)
                row = tree.draft_logits[family[0]].float()
                self._rows.append(row)
                top = rows_of(row[None], self._forest.width, self._sampling)
                self._tokens[behind] = top.tokens[0].tolist()
            places[node] = behind

    def _candidates(self, node: int) -> list[int]:
        if node not in self._tokens:
            self._tokens[node] = self._forest.rows.tokens[node].tolist()
        return self._tokens[node]

    def join(self) -> None:
        """Append all nodes to the forest."""
        if self._edges:
            edges = np.array(list(self._edges), dtype=np.int32)
            rows = rows_of(torch.stack(self._rows), self._forest.width, self._sampling)
            self._forest.add(edges[:, 0], edges[:, 1], rows)
        self._edges, self._rows, self._tokens = {}, [], {}
