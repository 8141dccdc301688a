"""The drafts of several prompts, grown side by side: what their models must run goes into one forward.

Knows drafters and caches, not how drafts are verified.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from autospec.engine.cache import KVCache
from autospec.engine.drafters.base import Drafter, DraftsTogether, drafts_together
from autospec.engine.growth import Asking, Growing, growing
from autospec.engine.model import CausalLM
from autospec.engine.rows import RowTokens
from autospec.engine.tree import TokenTree, empty_tree

Blaming = Callable[[str], AbstractContextManager[None]]


def propose_all(asked: Sequence[tuple[Drafter, int, Blaming]]) -> list[TokenTree]:
    """Return what each drafter proposes, in order.

    Args:
        asked: Forked drafters, the most tokens along a path of each, and what says whose method it was that failed.
    """
    drafts = [
        _Draft(cast("DraftsTogether", drafter), limit) if drafts_together(drafter) else None
        for drafter, limit, _ in asked
    ]
    waiting = [draft for draft in drafts if draft is not None and draft.is_open]
    while waiting:
        for model, cache, group in _groups(waiting):
            answers = model.forward_rows([draft.ask() for draft in group], cache)
            for draft, (logits, _) in zip(group, answers, strict=True):
                draft.answer(logits)
        waiting = [draft for draft in waiting if draft.is_open]
    trees = []
    for (drafter, limit, blaming), grown in zip(asked, drafts, strict=True):
        if grown is None:
            with blaming("propose"):
                trees.append(drafter.propose(limit))
        else:
            trees.append(grown.tree)
    return trees


@dataclass(slots=True)
class _Question:
    tree: Growing
    nodes: list[int]


class _Draft:
    """One draft, and what it waits for."""

    def __init__(self, drafter: DraftsTogether, limit: int) -> None:
        self.drafter, self.tree = drafter, empty_tree()
        self._question: _Question | None = None
        how = drafter.begin(limit)
        if how is not None:
            self._asking: Asking = growing(how)
            self._advance(None)

    @property
    def is_open(self) -> bool:
        return self._question is not None

    def ask(self) -> RowTokens:
        assert self._question is not None
        return self.drafter.ask(self._question.tree, self._question.nodes)

    def answer(self, logits: Tensor) -> None:
        self._advance(self.drafter.read(logits))

    def _advance(self, logits: Tensor | None) -> None:
        try:
            self._question = _Question(*(next(self._asking) if logits is None else self._asking.send(logits)))
        except StopIteration as finished:
            self._question, self.tree = None, finished.value
            self.drafter.end()


def _groups(drafts: Sequence[_Draft]) -> list[tuple[CausalLM, KVCache, list[_Draft]]]:
    """Return what can run together: drafts of one model in one cache."""
    groups: dict[tuple[int, int], tuple[CausalLM, KVCache, list[_Draft]]] = {}
    for draft in drafts:
        model, cache = draft.drafter.model, draft.drafter.cache.whole
        groups.setdefault((id(model), id(cache)), (model, cache, []))[2].append(draft)
    return list(groups.values())
