"""What a drafter is: something that proposes a `TokenTree` and is told what was committed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar, runtime_checkable

from torch import Tensor

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.cache import KVCache
from autospec.engine.growth import Growing, Growth
from autospec.engine.termination import Stopping
from autospec.engine.tree import TokenTree
from autospec.errors import ConfigError

D = TypeVar("D")


@dataclass(frozen=True, slots=True)
class DraftPlan:
    """What a drafter must know of one generation before it starts.

    Args:
        config: Its knobs and the stopping rule.
        sampling: How the drafter samples, with the target's filters; draws are counter-based.
        seed: Seed of this prompt.
        capacity: Most tokens prompt, output and one draft can reach together.
        stopping: The stopping rule's state, which the decoder keeps.
        target_cache: The target's own cache: keys and values of all committed tokens but the last. A drafter that
            runs the target's layers may write behind them, and takes that back before it returns.
    """

    config: SpecConfig
    sampling: SamplingParams
    seed: int
    capacity: int
    stopping: Stopping
    target_cache: KVCache

    def growth(self, position: int, max_depth: int) -> Growth:
        """Return how to grow the draft whose first token stands at an absolute position."""
        return Growth(self.config, self.sampling, self.seed, position, max_depth, self.stopping)


def no_slots(config: SpecConfig) -> int:
    """Run nothing in the target's cache; see `Needs`."""
    return 0


@dataclass(frozen=True, slots=True)
class Needs:
    """What a drafter must be told of the target's forwards besides the tokens.

    Args:
        hidden_layers: Indices of hidden states, 0 the embeddings, -1 the last, normalised one.
        logits: The target's own logits at committed positions.
        target_slots: For how many nodes that the drafter runs in the target's cache it needs room there, besides those
            along one path of its draft.
    """

    hidden_layers: tuple[int, ...] = ()
    logits: bool = False
    target_slots: Callable[[SpecConfig], int] = no_slots

    @property
    def anything(self) -> bool:
        """Whether there is something to tell after forwards."""
        return self.logits or bool(self.hidden_layers)


@dataclass(frozen=True, slots=True)
class Trail:
    """What the target computed at committed positions, one row for each token that it was run on.

    Args:
        position: Absolute position of the first row; the row of position i sees tokens 0 .. i.
        logits: [n, vocab] of the next token, or None where nobody needs them.
        hidden: [n, width * number of layers] the hidden states asked for, side by side, or None.
    """

    position: int
    logits: Tensor | None
    hidden: Tensor | None


@runtime_checkable
class ChecksConfig(Protocol):
    """A drafter that cannot run every configuration which its attributes allow; others need not have this."""

    def check(self, config: SpecConfig) -> None:
        """Refuse a configuration, before anything runs.

        Raises:
            ConfigError: It cannot be run.
        """
        ...


@runtime_checkable
class Forks(Protocol):
    """A drafter that serves the prompts of a batch; others serve one prompt at a time."""

    def fork(self, num_rows: int) -> Sequence[Drafter]:
        """Return drafters for so many prompts at the same time, which share what does not depend on the prompt."""
        ...


class ForkedByCopy:
    """For drafters that make everything anew which depends on the prompt when one starts."""

    def fork(self, num_rows: int) -> list[Self]:
        """Return shallow copies; see `Forks`."""
        return [copy(self) for _ in range(num_rows)]


@dataclass(frozen=True, slots=True)
class Question(Generic[D]):
    """What a growing draft waits for.

    Args:
        drafter: Whose draft it is.
        tree: The draft so far.
        nodes: Behind which logits are wanted.
    """

    drafter: D
    tree: Growing
    nodes: Sequence[int]


@runtime_checkable
class DraftsTogether(Protocol):
    """A forked drafter that is run for the rows of a batch at once; see `autospec.engine.drafting`.

    Attributes:
        shared: What those have in common that run at once, each the same object: weights, and a cache of all rows.
    """

    @property
    def shared(self) -> tuple[object, ...]: ...

    def begin(self, max_length: int) -> Growth | None:
        """Return how to grow the draft that `propose` would; None where there is none."""
        ...

    @classmethod
    def expand_all(cls, questions: Sequence[Question[Any]]) -> list[Tensor]:
        """Return for each question what `Expander.expand` would: [nodes, vocab] float32 logits.

        Args:
            questions: Of different drafters that share what they run.
        """
        ...

    def end(self) -> None:
        """The draft is grown."""
        ...


@runtime_checkable
class Drafter(Protocol):
    """Proposes drafts for one prompt at a time.

    What it proposes is a function of prompt, committed text and configuration, never of where earlier steps began.
    It must be right after steps in which it was not asked.

    Attributes:
        source: Where it comes from, so that it can be made again: an id, a path, a kind, or `kind:path`.
        has_probs: Whether it can say how probable its tokens are, which most stopping rules need.
        shapes: Tree shapes it can draft.
        needs: What it must be told of the target.
    """

    source: str
    has_probs: bool
    shapes: tuple[str, ...]
    needs: Needs

    def start(self, prompt_ids: Sequence[int], plan: DraftPlan) -> None:
        """Forget the last prompt and begin a new one; nothing learnt before may remain."""
        ...

    def propose(self, max_length: int) -> TokenTree:
        """Draft at most `max_length` tokens along a path behind everything committed; an empty tree is allowed.

        A draft that cannot be verified ends the generation; see `autospec.engine.draft_checks.check_draft`.
        """
        ...

    def commit(self, token_ids: Sequence[int], trail: Trail | None = None) -> None:
        """Take the tokens that have become part of the text, after every step and after the prefill.

        Args:
            token_ids: In order.
            trail: What the target computed at the positions before each of them, from that of the last token known
                before on; after the prefill, at all positions of the prompt. None where nothing is needed.
        """
        ...


def drafts_together(drafter: object) -> bool:
    """Return whether a drafter is run for all rows of a batch at once; see `DraftsTogether`."""
    return all(hasattr(type(drafter), name) for name in ("shared", "begin", "expand_all", "end"))


def fork(drafter: Drafter, name: str, num_rows: int) -> Sequence[Drafter]:
    """Return drafters for the prompts of a batch.

    Args:
        drafter: What is forked.
        name: How configurations call it, for the message.
        num_rows: Prompts at a time.

    Raises:
        ConfigError: It serves one prompt at a time.
    """
    if not isinstance(drafter, Forks):
        raise ConfigError(f"drafters of a batch must have the method `fork`, but {name!r} serves one prompt at a time")
    return drafter.fork(num_rows)
