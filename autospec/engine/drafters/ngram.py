"""Prompt lookup: copy what followed the last times the text ended like this.

Saxena's prompt lookup decoding, with the most recent match instead of the first, and short spans allowed; as a trie,
several matches at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from autospec.config import SpecConfig
from autospec.engine.drafters.base import DraftPlan, ForkedByCopy, Needs, Trail
from autospec.engine.tree import TokenTree, Trie, chain, empty_tree


class NgramDrafter(ForkedByCopy):
    """Looks for the longest suffix, between `ngram_max` and `ngram_min` tokens, that occurred before.

    In the text ``a b c d a b`` with `ngram_max` 2 the suffix ``a b`` was seen at the start, so ``c d a b`` is drafted;
    with a draft length of 2, ``c d``. A trie holds what followed `tree_width` matches: those of the longest suffix
    from the most recent on, then those of the next shorter one.
    """

    source = "ngram"
    has_probs = False
    shapes: tuple[str, ...] = ("chain", "trie")
    needs = Needs()

    def __init__(self) -> None:
        self._context: list[int] = []
        self._sizes: range = range(0)
        self._ends: dict[tuple[int, ...], int] = {}
        self._earlier: dict[tuple[int, int], int] = {}  # (size, end of a match) -> end of the match before it
        self._config = SpecConfig()

    def start(self, prompt_ids: Sequence[int], plan: DraftPlan) -> None:
        self._context, self._ends, self._earlier = [], {}, {}
        self._config = plan.config
        self._sizes = range(plan.config.ngram_max, plan.config.ngram_min - 1, -1)
        self.commit(prompt_ids)

    def propose(self, max_length: int) -> TokenTree:
        if self._config.tree_shape == "trie":
            return self._merged(max_length)
        end = next(self._matches(), None)
        if end is None:
            return empty_tree()
        return chain(torch.tensor(self._context[end : end + max_length], dtype=torch.int64))

    def commit(self, token_ids: Sequence[int], trail: Trail | None = None) -> None:
        context, keeps_all = self._context, self._config.tree_shape == "trie"
        for token_id in token_ids:
            # The n-grams that end here get their continuation only now, so a suffix never finds itself.
            for size in self._sizes:
                if size <= len(context):
                    key = tuple(context[-size:])
                    if keeps_all and key in self._ends:
                        self._earlier[size, len(context)] = self._ends[key]
                    self._ends[key] = len(context)
            context.append(token_id)

    def _matches(self) -> Iterator[int]:
        """Yield where earlier occurrences of a suffix end: those of the longest first, the most recent first."""
        seen: set[int] = set()
        for size in self._sizes:
            end = self._ends.get(tuple(self._context[-size:])) if size <= len(self._context) else None
            while end is not None:
                if end not in seen:
                    seen.add(end)
                    yield end
                end = self._earlier.get((size, end))

    def _merged(self, max_length: int) -> TokenTree:
        trie = Trie()
        for rank, end in zip(range(self._config.tree_width), self._matches(), strict=False):
            # However many later matches agree, the first one stays the heaviest; near tokens come before far ones.
            span = self._context[end : end + max_length]
            trie.insert(span, [2.0**-rank / depth for depth in range(1, len(span) + 1)])
        return trie.best(self._config.tree_nodes, max_length)
