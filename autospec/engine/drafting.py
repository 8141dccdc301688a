"""The drafts of several prompts, grown side by side: what drafters that share a model must run, they run at once.

Knows drafters, neither their models nor how drafts are verified.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import cast

from torch import Tensor

from autospec.engine.drafters.base import Drafter, DraftsTogether, Question, drafts_together
from autospec.engine.growth import Asking, growing
from autospec.engine.tree import TokenTree, empty_tree

Blaming = Callable[[str], AbstractContextManager[None]]


def propose_all(asked: Sequence[tuple[Drafter, int, Blaming]]) -> list[TokenTree]:
    """Return what each drafter proposes, in order.

    Args:
        asked: Forked drafters, the most tokens along a path of each, and what says whose method it was that failed.
    """
    drafts = [
        _Draft(cast("DraftsTogether", drafter), limit, blaming) if drafts_together(drafter) else None
        for drafter, limit, blaming in asked
    ]
    waiting = [draft for draft in drafts if draft is not None and draft.question is not None]
    while waiting:
        for group in _groups(waiting):
            _expand(group)
        waiting = [draft for draft in waiting if draft.question is not None]
    trees = []
    for (drafter, limit, blaming), grown in zip(asked, drafts, strict=True):
        if grown is None:
            with blaming("propose"):
                trees.append(drafter.propose(limit))
        else:
            trees.append(grown.tree)
    return trees


class _Draft:
    """One draft, and what it waits for."""

    def __init__(self, drafter: DraftsTogether, limit: int, blaming: Blaming) -> None:
        self.drafter, self.blaming, self.tree = drafter, blaming, empty_tree()
        self.question: Question[DraftsTogether] | None = None
        with blaming("begin"):
            how = drafter.begin(limit)
        if how is not None:
            self._asking: Asking = growing(how)
            self.answer(None)

    def answer(self, logits: Tensor | None) -> None:
        """Grow by the logits asked for, None at first, until others are needed or the draft is done."""
        with self.blaming("expand_all"):  # which gave the logits
            try:
                asked = next(self._asking) if logits is None else self._asking.send(logits)
                self.question = Question(self.drafter, *asked)
                return
            except StopIteration as finished:
                self.question, self.tree = None, finished.value
        with self.blaming("end"):
            self.drafter.end()


def _expand(group: Sequence[_Draft]) -> None:
    """Answer what drafts wait for whose drafters run at once; who fails then is named after the first of them."""
    questions = [draft.question for draft in group if draft.question is not None]
    with group[0].blaming("expand_all"):
        answers = group[0].drafter.expand_all(questions)
    for draft, logits in zip(group, answers, strict=True):
        draft.answer(logits)


def _groups(drafts: Sequence[_Draft]) -> list[list[_Draft]]:
    """Return which drafts grow at once: those whose drafters share what they run."""
    groups: dict[tuple[int, ...], list[_Draft]] = {}
    for draft in drafts:
        groups.setdefault(tuple(map(id, draft.drafter.shared)), []).append(draft)
    return list(groups.values())
