"""Puts what a drafter thought while it grew drafts into a forest, node by node."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autospec.config import SamplingParams
from autospec.engine.drafters import Drafter
from autospec.engine.growth import MODEL_SHAPES, Growing
from autospec.replay.forest import DraftForest
from autospec.replay.running import rows_of


@dataclass(slots=True)
class Seen:
    """What a drafter was asked while it grew one draft.

    Args:
        tree: All that it grew, also what was cut later.
        rows: Node to the logits behind it, [vocab]; -1 is the root.
    """

    tree: Growing = field(default_factory=Growing)
    rows: dict[int, Tensor] = field(default_factory=dict)


def can_watch(drafter: Drafter) -> bool:
    """Tell whether a drafter grows its drafts by `autospec.engine.growth`, so that its rows can be seen."""
    can_expand = hasattr(drafter, "expand") and hasattr(drafter, "__dict__")
    return drafter.has_probs and set(MODEL_SHAPES) <= set(drafter.shapes) and can_expand


@contextmanager
def watched(drafter: Any) -> Iterator[Seen]:
    """See the rows of the draft that is grown inside."""
    seen, expand = Seen(), drafter.expand

    def watching(tree: Growing, nodes: Sequence[int]) -> Tensor:
        logits: Tensor = expand(tree, nodes)
        seen.tree = tree
        seen.rows.update(zip(nodes, logits.float().cpu(), strict=True))
        return logits

    drafter.expand = watching
    try:
        yield seen
    finally:
        del drafter.expand  # the class's own comes back


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

    def add(self, position: int, seen: Seen) -> None:
        """Take what was seen behind a position; a node that is none of its parent's candidates is left out."""
        places, tree = {-1: position}, seen.tree
        for node in sorted(seen.rows):
            if node < 0 or tree.parents[node] not in places:
                continue
            above, token = places[tree.parents[node]], tree.token_ids[node]
            candidates = self._candidates(above)
            if token in candidates:
                places[node] = self._place((above, candidates.index(token)), seen.rows[node])

    def _place(self, edge: tuple[int, int], row: Tensor) -> int:
        behind = int(self._forest.children[edge]) if edge[0] < self._forest.num_nodes else -1
        if behind < 0:
            behind = self._edges.get(edge, -1)
        if behind < 0:
            behind = self._edges[edge] = self._forest.num_nodes + len(self._rows)
            self._rows.append(row)
            self._tokens[behind] = rows_of(row[None], self._forest.width, self._sampling).tokens[0].tolist()
        return behind

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
