"""Prompt lookup: copy what followed the last time the text ended like this.

Saxena's prompt lookup decoding, with the most recent match instead of the first, and short spans allowed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from autospec.engine.drafters.base import DraftPlan, Needs, Trail
from autospec.engine.tree import TokenTree, chain, empty_tree


class NgramDrafter:
    """Looks for the longest suffix, between `ngram_max` and `ngram_min` tokens, that occurred before.

    In the text ``a b c d a b`` with `ngram_max` 2 the suffix ``a b`` was seen at the start, so ``c d a b`` is drafted;
    with a draft length of 2, ``c d``.
    """

    source = "ngram"
    has_probs = False
    shapes: tuple[str, ...] = ("chain",)
    needs = Needs()

    def __init__(self) -> None:
        self._context: list[int] = []
        self._sizes: range = range(0)
        self._ends: dict[tuple[int, ...], int] = {}

    def start(self, prompt_ids: Sequence[int], plan: DraftPlan) -> None:
        self._context, self._ends = [], {}
        self._sizes = range(plan.config.ngram_max, plan.config.ngram_min - 1, -1)
        self.commit(prompt_ids)

    def propose(self, max_length: int) -> TokenTree:
        context = self._context
        for size in self._sizes:
            end = self._ends.get(tuple(context[-size:])) if size <= len(context) else None
            if end is not None:
                return chain(torch.tensor(context[end : end + max_length], dtype=torch.int64))
        return empty_tree()

    def commit(self, token_ids: Sequence[int], trail: Trail | None = None) -> None:
        context = self._context
        for token_id in token_ids:
            # The n-grams that end here get their continuation only now, so a suffix never finds itself.
            for size in self._sizes:
                if size <= len(context):
                    self._ends[tuple(context[-size:])] = len(context)
            context.append(token_id)
