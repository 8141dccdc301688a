"""What was counted while text was generated: steps, tokens drafted and kept, seconds of each phase."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self


@dataclass(slots=True)
class StepStats:
    """Counts and seconds of one generation, added up step by step.

    Args:
        num_steps: Target forwards after the prefill (draft, verify, accept, commit).
        num_drafted: Draft tokens verified.
        num_accepted: Draft tokens kept.
        num_new_tokens: Tokens emitted, the one from the prefill included.
        num_step_tokens: Tokens emitted by steps; fewer than accepted plus steps where an output ended inside a draft.
        position_tested: How often position i of a draft was reached, all before it having been accepted.
        position_accepted: How often position i was accepted.
        prefill_seconds: Prompt through the target (and through the drafter, as part of its first draft: see
            `draft_seconds`), up to the first token.
        draft_seconds: Spent in drafters, their prefill included; in a batch a row has an equal part of each step's.
        verify_seconds: Spent in target forwards after the prefill; in a batch as `draft_seconds`.
        accept_seconds: Spent in accepting and committing.
        total_seconds: The whole call for this prompt.
        gap_seconds: Of each step, how long after the tokens before them its own came, all of them at once: the
            inter-token latencies of the call. The first is counted from the prefill's token and holds the start of
            the drafter. What a reader of a stream does between steps is in them.
    """

    num_steps: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    num_new_tokens: int = 0
    num_step_tokens: int = 0
    position_tested: list[int] = field(default_factory=list)
    position_accepted: list[int] = field(default_factory=list)
    prefill_seconds: float = 0.0
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0
    accept_seconds: float = 0.0
    total_seconds: float = 0.0
    gap_seconds: list[float] = field(default_factory=list)

    def add_step(self, num_drafted: int, num_accepted: int, num_tested: int) -> None:
        """Count one step.

        Args:
            num_drafted: Draft tokens verified.
            num_accepted: Draft tokens kept, along one path.
            num_tested: Positions for which there was a candidate behind what had been accepted before them.
        """
        self.num_steps += 1
        self.num_drafted += num_drafted
        self.num_accepted += num_accepted
        self.num_step_tokens += num_accepted + 1
        missing = num_tested - len(self.position_tested)
        self.position_tested.extend([0] * missing)
        self.position_accepted.extend([0] * missing)
        for position in range(num_tested):
            self.position_tested[position] += 1
            self.position_accepted[position] += position < num_accepted

    def drop(self, num_tokens: int) -> None:
        """Take back tokens of the last step that stand behind the end of the output."""
        self.num_new_tokens -= num_tokens
        self.num_step_tokens -= num_tokens

    def merge(self, other: StepStats) -> None:
        """Add the counts and seconds of another generation."""
        missing = len(other.position_tested) - len(self.position_tested)
        self.position_tested.extend([0] * missing)
        self.position_accepted.extend([0] * missing)
        for position, (tested, accepted) in enumerate(
            zip(other.position_tested, other.position_accepted, strict=True)
        ):
            self.position_tested[position] += tested
            self.position_accepted[position] += accepted
        for name in ("num_steps", "num_drafted", "num_accepted", "num_new_tokens", "num_step_tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("prefill", "draft", "verify", "accept", "total"):
            key = f"{name}_seconds"
            setattr(self, key, getattr(self, key) + getattr(other, key))
        self.gap_seconds.extend(other.gap_seconds)

    @property
    def tokens_per_step(self) -> float:
        """Tokens emitted per step, correction or bonus included; 1 when there was no step."""
        return self.num_step_tokens / self.num_steps if self.num_steps else 1.0

    @property
    def acceptance_rate(self) -> float:
        """Accepted over drafted; 0 when nothing was drafted."""
        return self.num_accepted / self.num_drafted if self.num_drafted else 0.0

    @property
    def position_acceptance(self) -> tuple[float, ...]:
        """P(position i accepted given that all before it were), for every position that was ever reached."""
        pairs = zip(self.position_accepted, self.position_tested, strict=True)
        return tuple(accepted / tested for accepted, tested in pairs if tested)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Build from `to_json`."""
        return cls(**values)
