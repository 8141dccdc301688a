"""REST (2311.08252): what followed the longest known ending of the text in a datastore of one's own files."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
import torch

from autospec.config import SpecConfig
from autospec.engine.datastore import MAX_SUFFIX, SEPARATOR, Datastore, Ids
from autospec.engine.drafters.base import DraftPlan, ForkedByCopy, Needs, Trail
from autospec.engine.tree import TokenTree, empty_tree

MAX_HITS = 5000


class DatastoreDrafter(ForkedByCopy):
    """Looks for the longest suffix, up to 16 tokens, that the datastore knows, and merges what follows its hits.

    A trie holds the tokens that most hits agree on, `tree_nodes` of them, at most `tree_width` behind one node; a
    chain takes the most frequent token every time. Of equally frequent tokens the one with the lower id comes first.
    Of more than 5000 hits an even sample is looked at. The datastore does not change, and nothing else is remembered.

    Args:
        store: What is looked through.
        source: Where it came from, as `datastore:path`.
    """

    has_probs = False
    shapes: tuple[str, ...] = ("chain", "trie")
    needs = Needs()

    def __init__(self, store: Datastore, source: str = "datastore") -> None:
        self.source, self._store = source, store
        self._context: list[int] = []
        self._config = SpecConfig()

    def start(self, prompt_ids: Sequence[int], plan: DraftPlan) -> None:
        self._context, self._config = [], plan.config
        self.commit(prompt_ids)

    def propose(self, max_length: int) -> TokenTree:
        if max_length < 1:
            return empty_tree()
        size, hits = self._store.longest(self._context)
        if not hits:
            return empty_tree()
        if self._config.tree_shape == "chain":
            num_nodes, width = max_length, 1
        else:
            num_nodes, width = self._config.tree_nodes, self._config.tree_width
        return most_frequent(self._store.continuations(hits, size, max_length, MAX_HITS), num_nodes, width)

    def commit(self, token_ids: Sequence[int], trail: Trail | None = None) -> None:
        self._context = [*self._context, *token_ids][-MAX_SUFFIX:]


def most_frequent(continuations: Ids, num_nodes: int, width: int) -> TokenTree:
    """Return the trie of the beginnings that most rows share, the most frequent first.

    Args:
        continuations: [hits, length] token ids; `SEPARATOR` where a row has ended.
        num_nodes: Most nodes.
        width: Most children of one node.
    """
    token_ids, parents, order = list[int](), list[int](), 0
    frontier = [(-len(continuations), 0, -1, 0, -1, continuations)]  # (-rows, order, parent, depth, token, the rows)
    while frontier and len(parents) < num_nodes:
        _, _, node, depth, token, rows = heapq.heappop(frontier)
        if depth:
            token_ids.append(token)
            parents.append(node)
            node = len(parents) - 1
        if depth == continuations.shape[1]:
            continue
        tokens, counts = np.unique(rows[:, depth], return_counts=True)
        found = sorted((-int(count), int(token)) for token, count in zip(tokens, counts, strict=True))
        for minus_count, child in [one for one in found if one[1] != SEPARATOR][:width]:
            order += 1
            heapq.heappush(frontier, (minus_count, order, node, depth + 1, child, rows[rows[:, depth] == child]))
    return TokenTree(torch.tensor(token_ids, dtype=torch.int64), tuple(parents))
