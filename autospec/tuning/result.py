"""What a tuning run hands back, and its form in `result.json`. Passive; decides nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from autospec.comparison import Estimate
from autospec.policy import Policy, Quality
from autospec.records import Measurement
from autospec.tuning.confirm import Confirmation, CrossCheck, Judged
from autospec.tuning.goals import GOALS
from autospec.tuning.log import Failure
from autospec.tuning.pareto import ParetoRow
from autospec.tuning.predicted import Predicted
from autospec.tuning.situations import SituationRow
from autospec.yardsticks import DECISIVE, LATENCY, SPEED, Yardstick

TOKENS_PER_EXCUSE = 10_000  # an excused difference in fewer tokens is worth a warning


@dataclass(frozen=True, slots=True)
class Throughput:
    """Total tokens over total seconds, whole calls, on the prompts that the speedup rests on.

    Args:
        baseline_tokens_per_second: Plain decoding.
        tokens_per_second: The policy, each prompt under the configuration of its category.
    """

    baseline_tokens_per_second: float
    tokens_per_second: float

    @property
    def ratio(self) -> float:
        """The policy's over the baseline's; 1 where nothing was measured."""
        return self.tokens_per_second / self.baseline_tokens_per_second if self.baseline_tokens_per_second else 1.0


@dataclass(frozen=True, slots=True)
class Latency:
    """The 95th percentile of all gaps between arrivals of tokens together, on the same prompts; 0 where not known.

    Args:
        baseline_seconds: Plain decoding, which brings one token at a time.
        seconds: The policy, which brings several at once.
    """

    baseline_seconds: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """A policy and plain decoding, by one yardstick.

    Args:
        yardstick: Which.
        ratio: Over all prompts; above 1 the policy is better.
        categories: The same by category.
        overall: Of the one configuration for all, whatever the category.
    """

    yardstick: Yardstick
    ratio: Estimate
    categories: Mapping[str, Estimate]
    overall: Estimate


@dataclass(frozen=True, slots=True)
class TokenIdentity:
    """Lossless rules compared with plain decoding, over all measurements of a run.

    Args:
        num_compared: Outputs that had to be equal, every one of a batch.
        num_tokens: Tokens in them.
        num_excused: Outputs with a first difference that a tie of the target excuses.
        num_different: Outputs with one that nothing excuses; in float32 such a configuration fails instead.
        median_gap: Of how close plain decoding was to another token at first differences; None where none is known.
        largest_gap: The largest of them.
    """

    num_compared: int
    num_tokens: int
    num_excused: int
    num_different: int
    median_gap: float | None = None
    largest_gap: float | None = None

    @classmethod
    def of(cls, measurements: Sequence[Measurement]) -> TokenIdentity:
        """Count."""
        compared = [one for one in measurements if one.identical is not None and not one.config.is_off]
        gaps = [one.difference_gap for one in compared if one.difference_gap is not None]
        return cls(
            num_compared=sum(one.num_outputs for one in compared),
            num_tokens=sum(one.num_tokens for one in compared),
            num_excused=sum(one.num_excused for one in compared),
            num_different=sum(one.num_unlike for one in compared),
            median_gap=median(gaps) if gaps else None,
            largest_gap=max(gaps, default=None),
        )

    @property
    def divergence_rate(self) -> float:
        """Share of outputs with a first difference, excused or not; 0 where nothing was compared."""
        return (self.num_excused + self.num_different) / self.num_compared if self.num_compared else 0.0

    @property
    def has_too_many_excuses(self) -> bool:
        """Whether more than one token in 10,000 is excused: ties alone do not explain that."""
        return self.num_excused * TOKENS_PER_EXCUSE > self.num_tokens

    def to_json(self) -> dict[str, int | float | None]:
        """Return the fields and the divergence rate as JSON values."""
        return {**asdict(self), "divergence_rate": self.divergence_rate}


@dataclass(frozen=True, slots=True)
class TuningResult:
    """The outcome of a run.

    Args:
        objective: What was looked for.
        policy: What to use.
        measurements: Everything measured, in order.
        stop_reason: Why the search ended; `interrupted` for a run that Ctrl-C ended.
        finished: False for an interrupted run: its figures are of tune prompts, and the policy has no evidence.
        confirmation: What held-out prompts say, or, in an interrupted run, what tune prompts said so far.
        comparisons: By every yardstick. Intervals by that of the objective are those that decided, adjusted for the
            number of claims; by the others they are plain 95 % intervals, and nothing is claimed.
        decode_speedup: As `speedup`, without the prefills.
        throughput: Total tokens over total seconds.
        latency: How long a reader waits for the next tokens, nearly at worst.
        identity: Lossless rules compared with plain decoding.
        noise_floor: Coefficient of variation of one timing of what decides: the baseline measured against itself.
        num_live_trials: Trials measured on the engine, the baseline's own included.
        num_replayed_trials: Configurations priced from a trace.
        wall_seconds: By phase.
        failures: Configurations that could not be measured, in the order in which they failed.
        pareto: The Pareto set of speed and quality, under `pareto` of memory too, on tune and on held-out prompts.
        predicted: How far predictions were off; None where nothing was predicted.
        situations: What stands for batches and lengths of prompts.
    """

    objective: str
    policy: Policy
    measurements: tuple[Measurement, ...]
    stop_reason: str
    finished: bool
    confirmation: Confirmation
    comparisons: tuple[Comparison, ...]
    decode_speedup: Estimate
    throughput: Throughput
    latency: Latency
    identity: TokenIdentity
    noise_floor: float
    num_live_trials: int
    num_replayed_trials: int
    wall_seconds: Mapping[str, float]
    failures: tuple[Failure, ...] = ()
    pareto: tuple[ParetoRow, ...] = ()
    predicted: Predicted | None = None
    situations: tuple[SituationRow, ...] = ()

    @property
    def yardstick(self) -> Yardstick:
        """That of the objective."""
        return DECISIVE[self.objective]

    @property
    def weighs_memory(self) -> bool:
        """Whether memory was looked at beside speed and quality."""
        return GOALS[self.objective].weighs_memory

    def by(self, yardstick: Yardstick) -> Comparison:
        """Return what the policy is worth by a yardstick."""
        return next(one for one in self.comparisons if one.yardstick == yardstick)

    @property
    def speedup(self) -> Estimate:
        """Of the policy, over all held-out prompts."""
        return self.by(SPEED).ratio

    @property
    def quality(self) -> Quality | None:
        """What was seen of the outputs of the configuration for all, on held-out prompts."""
        evidence = self.policy.rows[0].evidence
        return None if evidence is None else evidence.quality

    @property
    def categories(self) -> Mapping[str, Estimate]:
        """The same by category."""
        return self.by(SPEED).categories

    def to_json(self) -> dict[str, Any]:
        """Return the content of `result.json`."""
        confirmation, throughput, decisive = self.confirmation, self.throughput, self.yardstick.name
        return {
            "objective": self.objective,
            "speedup": self.speedup.to_json(),
            "categories": {name: one.to_json() for name, one in self.categories.items()},
            "decode_speedup": self.decode_speedup.to_json(),
            "baseline_tokens_per_second": throughput.baseline_tokens_per_second,
            "tokens_per_second": throughput.tokens_per_second,
            "tokens_per_second_ratio": throughput.ratio,
            "configs": {
                "all": confirmation.overall.config.to_json(),
                "categories": {name: row.config.to_json() for name, row in confirmation.categories.items()},
            },
            "overall_speedup": self.by(SPEED).overall.to_json(),
            "p95_inter_token_latency": self._latency(),
            "bootstrap": {
                decisive: _ends(confirmation.bootstrap),
                "categories": {name: _ends(row.bootstrap) for name, row in confirmation.categories.items()},
                f"overall_{decisive}": _ends(confirmation.overall.bootstrap),
            },
            "situations": [one.to_json() for one in self.situations],
            "claims": {name: _claim(one) for name, one in confirmation.claims.items()},
            "cross_checks": [_cross_check(one) for one in confirmation.cross_checks],
            "token_identity": self.identity.to_json(),
            "pareto": [row.to_json() for row in self.pareto],
            "noise_floor": self.noise_floor,
            "num_live_trials": self.num_live_trials,
            "num_replayed_trials": self.num_replayed_trials,
            "stop_reason": self.stop_reason,
            "finished": self.finished,
            "failures": [_failure(one) for one in self.failures],
            "cost_model_error": None if self.predicted is None else self.predicted.to_json(),
            "wall_seconds": dict(self.wall_seconds),
        }

    def _latency(self) -> dict[str, Any]:
        compared = self.by(LATENCY)
        return {
            "ratio": compared.ratio.to_json(),
            "categories": {name: one.to_json() for name, one in compared.categories.items()},
            "overall": compared.overall.to_json(),
            **asdict(self.latency),
        }


def _ends(estimate: Estimate | None) -> dict[str, float | int | None] | None:
    """Return the ends of an interval; None for speculation off, which needs no check."""
    if estimate is None:
        return None
    values = estimate.to_json()
    return {"low": values["low"], "high": values["high"]}


def _claim(judged: Judged) -> dict[str, Any]:
    claim = judged.claim
    return {
        **claim.estimate.to_json(),
        "bootstrap": _ends(judged.bootstrap),
        "p_value": claim.p_value,
        "adjusted_p_value": claim.adjusted_p_value,
        "interval_confidence": claim.interval_confidence,
        "stands": judged.stands,
    }


def _failure(failure: Failure) -> dict[str, Any]:
    return {
        "config": failure.config.to_json(),
        "stage": failure.stage,
        "prompt_id": failure.prompt_id,
        "reason": failure.reason,
    }


def _cross_check(check: CrossCheck) -> dict[str, Any]:
    return {
        "category": check.category,
        "config": check.config.to_json(),
        "other_category": check.other_category,
        "other_config": check.other_config.to_json(),
        "ratio": check.ratio.to_json(),
    }
