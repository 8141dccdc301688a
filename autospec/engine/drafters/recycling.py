"""Token Recycling (2408.08696): the target's own top candidates behind each token, remembered and followed.

Learns from committed positions only, where the original also learns from rejected nodes: what is proposed must be a
function of the text (law 5).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import torch

from autospec.config import SpecConfig
from autospec.engine.drafters.base import DraftPlan, ForkedByCopy, Needs, Trail
from autospec.engine.tree import TokenTree

NUM_CANDIDATES = 8

Candidates = tuple[tuple[int, float], ...]


class RecyclingDrafter(ForkedByCopy):
    """Holds, for every token of the text, the target's top tokens behind its last occurrence, and their probabilities.

    A draft follows the table from the last token: rank paths by rank, a chain by the first rank, a best-first tree by
    the product of the probabilities that the target had there. The table is empty when a prompt begins; the last token
    of the text joins it a step later, when the target has been run on it.
    """

    source = "recycling"
    has_probs = False
    shapes: tuple[str, ...] = ("chain", "static", "optimal", "best_first")
    needs = Needs(logits=True)

    def __init__(self) -> None:
        self._context: list[int] = []
        self._table: dict[int, Candidates] = {}
        self._config = SpecConfig()

    def start(self, prompt_ids: Sequence[int], plan: DraftPlan) -> None:
        self._context, self._table, self._config = list(prompt_ids), {}, plan.config

    def propose(self, max_length: int) -> TokenTree:
        match self._config.tree_shape:
            case "chain":
                paths: Sequence[tuple[int, ...]] = [(0,) * depth for depth in range(1, max_length + 1)]
            case "best_first":
                return self._likely(max_length)
            case _:
                paths = sorted((path for path in self._config.tree_paths if len(path) <= max_length), key=len)
        return self._ranked(paths)

    def commit(self, token_ids: Sequence[int], trail: Trail | None = None) -> None:
        self.extend(token_ids)
        if trail is None or trail.logits is None:
            return
        logprobs = trail.logits.float().log_softmax(dim=-1)
        top = logprobs.topk(min(NUM_CANDIDATES, logprobs.shape[-1]), dim=-1)
        self.learn(trail.position, top.indices.tolist(), top.values.tolist())

    def extend(self, token_ids: Sequence[int]) -> None:
        """Append tokens to the text."""
        self._context.extend(token_ids)

    def learn(self, position: int, candidates: list[list[int]], logprobs: list[list[float]]) -> None:
        """Remember what the target thought behind the tokens from a position on, the most probable first."""
        tokens = self._context[position : position + len(candidates)]
        for token, ids, values in zip(tokens, candidates, logprobs, strict=True):
            self._table[token] = tuple(zip(ids, values, strict=True))

    def _ranked(self, paths: Sequence[tuple[int, ...]]) -> TokenTree:
        """Follow paths of ranks, each after its beginning, as far as the table knows them."""
        token_ids, parents = list[int](), list[int]()
        nodes: dict[tuple[int, ...], int] = {(): -1}
        for path in paths:
            if path[:-1] not in nodes:
                continue
            parent = nodes[path[:-1]]
            behind = self._behind(token_ids[parent] if parent >= 0 else self._context[-1])
            if path[-1] < len(behind):
                nodes[path] = len(parents)
                token_ids.append(behind[path[-1]][0])
                parents.append(parent)
        return TokenTree(torch.tensor(token_ids, dtype=torch.int64), tuple(parents))

    def _likely(self, max_length: int) -> TokenTree:
        """Take the most probable paths, `tree_nodes` of them, at most `tree_width` behind one node."""
        token_ids, parents, order = list[int](), list[int](), 0
        frontier = [(0.0, 0, -1, 0, self._context[-1])]  # (-log-probability of the path, order, parent, depth, token)
        while frontier and len(parents) < self._config.tree_nodes:
            cost, _, node, depth, token = heapq.heappop(frontier)
            if depth:
                token_ids.append(token)
                parents.append(node)
                node = len(parents) - 1
            if depth < max_length:
                for child, logprob in self._behind(token)[: self._config.tree_width]:
                    order += 1
                    heapq.heappush(frontier, (cost - logprob, order, node, depth + 1, child))
        return TokenTree(torch.tensor(token_ids, dtype=torch.int64), tuple(parents))

    def _behind(self, token: int) -> Candidates:
        return self._table.get(token, ())
