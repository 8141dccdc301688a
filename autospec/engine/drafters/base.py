"""What a drafter is: something that proposes a `TokenTree` and is told what was committed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.tree import TokenTree


@dataclass(frozen=True, slots=True)
class DraftPlan:
    """What a drafter must know of one generation before it starts.

    Args:
        config: Its knobs and the stopping rule.
        sampling: The filters that target and drafter share; draws are counter-based.
        seed: Seed of this prompt.
        capacity: Most tokens prompt, output and one draft can reach together.
    """

    config: SpecConfig
    sampling: SamplingParams
    seed: int
    capacity: int


@runtime_checkable
class Drafter(Protocol):
    """Proposes drafts for one prompt at a time.

    What it proposes is a function of prompt, committed text and configuration, never of where earlier steps began.
    It must be right after steps in which it was not asked. `has_probs` tells whether its trees can say how probable a
    token was, which the confidence rule needs.
    """

    source: str
    has_probs: bool

    def start(self, prompt_ids: Sequence[int], plan: DraftPlan) -> None:
        """Forget the last prompt and begin a new one; nothing learnt before may remain."""
        ...

    def propose(self, max_length: int) -> TokenTree:
        """Draft at most `max_length` tokens along a path behind everything committed; an empty tree is allowed."""
        ...

    def commit(self, token_ids: Sequence[int]) -> None:
        """Take the tokens that have become part of the text, after every step."""
        ...
