"""Real steps of the engine, repeated behind one context and timed by phase.

What is timed is `Session.step` itself, drafts and target in turn, because loops of one of them alone measure something
else: a forward of a small draft model right behind one of its target, whose weights have just been through the caches,
takes up to twice as long as in a loop of its own (benchmarks/LOG.md).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

from autospec.engine.drafters import DraftPlan, Needs, Trail
from autospec.engine.session import Session
from autospec.engine.tree import TokenTree

MAX_GROWTH = 48  # tokens by which a text may grow before its context is another one


class Watch(Protocol):
    """What reads the time; `autospec.clock.Clock` does, and waits for the device before."""

    def now(self) -> float:
        """Return seconds from an arbitrary start."""
        ...


@contextmanager
def without_collector() -> Iterator[None]:
    """Run without the pauses of the garbage collector."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@dataclass(frozen=True, slots=True)
class StepTimes:
    """One step.

    Args:
        num_nodes: Draft tokens verified.
        draft: Seconds in the drafter.
        verify: Seconds of the target's forward, with its inputs and masks.
        host: Seconds of all else: acceptance, commits, Python.
    """

    num_nodes: int
    draft: float
    verify: float
    host: float


class ScriptDrafter:
    """Drafts words of the workload that stand elsewhere, at no cost and of any length.

    Nearly all of them are rejected, so that the text hardly grows; and still no forward sees tokens that nobody wrote,
    which would send a mixture of experts to experts that no text asks for.

    Args:
        token_ids: What it drafts, over and over.
    """

    source, has_probs, needs = "script", False, Needs()
    shapes: tuple[str, ...] = ("chain",)

    def __init__(self, token_ids: Sequence[int]) -> None:
        self._token_ids, self._place = torch.tensor(token_ids, dtype=torch.int64), 0

    def start(self, prompt_ids: Sequence[int], plan: DraftPlan) -> None:
        """Begin a text, which has no part in what is drafted."""

    def propose(self, max_length: int) -> TokenTree:
        """Draft exactly `max_length` tokens."""
        places = (torch.arange(max_length) + self._place) % len(self._token_ids)
        self._place += max_length
        return TokenTree(self._token_ids[places], tuple(range(-1, max_length - 1)))

    def commit(self, token_ids: Sequence[int], trail: Trail | None = None) -> None:
        """Take note of nothing."""


class Probe:
    """Repeats steps of one session.

    Args:
        session: Behind its prefill.
        context_length: Tokens of its prompt.
        watch: The clock that the session was given.
    """

    def __init__(self, session: Session, context_length: int, watch: Watch) -> None:
        self._session, self._watch, self.context_length = session, watch, context_length

    def restart(self) -> float:
        """Go back to the context and take a first step, with a draft of one token.

        Returns:
            Seconds until that draft was there, the prompt through the drafter included.
        """
        self._session.rewind()
        self._session.step(1)
        return self._session.stats.draft_seconds

    def step(self, limit: int) -> StepTimes:
        """Take a step whose draft may be `limit` deep; where the text has grown too long, from the beginning."""
        session = self._session
        if session.room <= limit or session.num_tokens - self.context_length > MAX_GROWTH:
            self.restart()
        stats = session.stats
        before = stats.draft_seconds, stats.verify_seconds, stats.num_drafted
        started = self._watch.now()
        session.step(limit)
        whole = self._watch.now() - started
        draft, verify = stats.draft_seconds - before[0], stats.verify_seconds - before[1]
        return StepTimes(stats.num_drafted - before[2], draft, verify, max(whole - draft - verify, 0.0))
