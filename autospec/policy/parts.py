"""The parts of a policy: the workload it was tuned on, the rows of its table and the evidence for each.

Passive data and its way from JSON; the values are checked by `schema` before they come here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from autospec.comparison import Bound, Estimate
from autospec.config import SpecConfig


@dataclass(frozen=True, slots=True)
class TunedWorkload:
    """The workload the policy was tuned on."""

    name: str
    content_hash: str
    categories: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Build from checked JSON values."""
        return cls(**{**values, "categories": tuple(values["categories"])})


@dataclass(frozen=True, slots=True)
class Quality:
    """What was seen of the output.

    Args:
        num_identical: Measured outputs equal to plain decoding's token for token.
        num_excused: Differences excused by a tie of the target.
        verdict: `identical` up to excused ties, `different`, or `not compared` where the acceptance rule promises
            the target's distribution but not the same tokens, or is lossy.
        loss: Of a lossy rule, nats per token by which outputs are less probable under the target than its own
            (negative where they are more), with a bound on its size; None under lossless rules.
        agreement: Chance that the target would emit an output's token at its place, with a lower bound.
        score_drop: What outputs lose in the score of the task, with an upper bound; None without a scorer.
    """

    num_identical: int
    num_excused: int
    verdict: str
    loss: Bound | None = None
    agreement: Bound | None = None
    score_drop: Bound | None = None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Build from checked JSON values."""
        bounds = {name: values[name] and Bound.from_json(values[name]) for name in ("loss", "score_drop")}
        agreement = values["agreement"] and Bound.from_json(values["agreement"], unknown=-math.inf)
        return cls(**{**values, **bounds, "agreement": agreement})

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        bounds = {name: getattr(self, name) for name in ("loss", "agreement", "score_drop")}
        return {**asdict(self), **{name: bound and bound.to_json() for name, bound in bounds.items()}}


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was measured for one row, on held-out prompts.

    Args:
        baseline_tokens_per_second: Total tokens over total seconds under plain decoding.
        tokens_per_second: The same under the configuration.
        speedup: Whole call, prefill included, paired by prompt.
        decode_speedup: The same without the prefills; None where an older policy did not record it.
        tokens_per_step: Tokens emitted per target forward.
        acceptance_rate: Accepted over drafted.
        position_acceptance: P(position i accepted given all before it were).
        num_prompts: Prompts measured.
        num_measurements: Timed comparisons, repeats included.
        quality: What was seen of the output.
        objective: What the study looked for.
        p95_latency_ratio: Plain decoding's p95 inter-token latency over that under the configuration; None
            where it was not recorded.
    """

    baseline_tokens_per_second: float
    tokens_per_second: float
    speedup: Estimate
    decode_speedup: Estimate | None
    tokens_per_step: float
    acceptance_rate: float
    position_acceptance: tuple[float, ...]
    num_prompts: int
    num_measurements: int
    quality: Quality
    objective: str = "tokens_per_second"
    p95_latency_ratio: Estimate | None = None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Build from checked JSON values."""
        latency = values["p95_latency_ratio"]
        built = {
            **values,
            "speedup": Estimate.from_json(values["speedup"]),
            "decode_speedup": values["decode_speedup"] and Estimate.from_json(values["decode_speedup"]),
            "p95_latency_ratio": latency and Estimate.from_json(latency),
            "position_acceptance": tuple(values["position_acceptance"]),
            "quality": Quality.from_json(values["quality"]),
        }
        return cls(**built)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            **asdict(self),
            "speedup": self.speedup.to_json(),
            "decode_speedup": self.decode_speedup and self.decode_speedup.to_json(),
            "p95_latency_ratio": self.p95_latency_ratio and self.p95_latency_ratio.to_json(),
            "position_acceptance": list(self.position_acceptance),
            "quality": self.quality.to_json(),
        }


@dataclass(frozen=True, slots=True)
class Row:
    """One situation and what to do in it.

    Args:
        config: What to do.
        batch_size: Batches of at most this many; None is any.
        context_length: Contexts of at most this many tokens; None is any.
        category: Requests of this category; None is any.
        evidence: Why; None where nothing was measured.
    """

    config: SpecConfig
    batch_size: int | None = None
    context_length: int | None = None
    category: str | None = None
    evidence: Evidence | None = None

    @property
    def situation(self) -> tuple[int | None, int | None, str | None]:
        """Batch size, context length and category; no two rows of a policy have the same."""
        return (self.batch_size, self.context_length, self.category)

    def covers(self, batch_size: int, context_length: int | None, category: str | None) -> bool:
        """Return whether the row speaks about this situation."""
        if self.category is not None and self.category != category:
            return False
        if self.batch_size is not None and batch_size > self.batch_size:
            return False
        if self.context_length is None:
            return True
        return context_length is not None and context_length <= self.context_length

    @property
    def specificity(self) -> tuple[int, bool, float, float]:
        """Sort key: more conditions first, a category before sizes, tighter sizes before wider ones."""
        given = sum(condition is not None for condition in self.situation)
        return (
            given,
            self.category is not None,
            -(self.batch_size or float("inf")),
            -(self.context_length or float("inf")),
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Build from checked JSON values."""
        return cls(
            **{
                **values,
                "config": SpecConfig.from_json(values["config"]),
                "evidence": values["evidence"] and Evidence.from_json(values["evidence"]),
            }
        )

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "batch_size": self.batch_size,
            "context_length": self.context_length,
            "category": self.category,
            "config": self.config.to_json(),
            "evidence": self.evidence and self.evidence.to_json(),
        }


@dataclass(frozen=True, slots=True)
class Reproduction:
    """How the policy was made.

    Args:
        command: Command line.
        seed: Seed of the study.
        autospec_version: Version of autospec.
        created: Date and time, ISO 8601.
    """

    command: str
    seed: int
    autospec_version: str
    created: str
