"""The parts of a hardware profile: measured points and what stands around them. Passive data, to JSON and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from autospec.config import SamplingParams
from autospec.errors import ProfileError
from autospec.profiling.curves import Timing
from autospec.profiling.fingerprint import fingerprint_hash
from autospec.sources import ModelSource


@dataclass(frozen=True, slots=True)
class TargetPoint:
    """Target forwards of one size.

    Args:
        batch_size: Rows.
        context_length: Cached tokens of each row.
        num_tokens: New tokens of each row, the root of the draft among them.
        forward: Seconds of the forward.
        host: Seconds of acceptance, commit and Python around it; None where no steps were taken.
        how: `step` where it was a part of real steps, `forward` where forwards ran one right behind the other.
    """

    batch_size: int
    context_length: int
    num_tokens: int
    forward: Timing
    host: Timing | None
    how: str


@dataclass(frozen=True, slots=True)
class PlainPoint:
    """Whole steps of the plain loop behind one context: seconds of a token."""

    batch_size: int
    context_length: int
    step: Timing


@dataclass(frozen=True, slots=True)
class PrefillPoint:
    """Prompts of one length through the target."""

    batch_size: int
    num_tokens: int
    prefill: Timing


@dataclass(frozen=True, slots=True)
class DraftPoint:
    """Steps of a drafter with drafts of one shape.

    Args:
        exit_layer: Of a target that drafts for itself; 0 for other drafters.
        batch_size: Rows.
        width: Rows of each draft forward but the first: 1 is a chain, more a comb of so many chains.
        context_length: Tokens before the step.
        depth: How deep it was to draft; drafters that look text up may have found less.
        num_tokens: Tokens the target verified, the root among them; the median where drafts differ.
        draft: Seconds in the drafter.
        verify: Seconds of the target's forward.
        host: Seconds of acceptance, commits and Python.
    """

    exit_layer: int
    batch_size: int
    width: int
    context_length: int
    depth: int
    num_tokens: int
    draft: Timing
    verify: Timing
    host: Timing


@dataclass(frozen=True, slots=True)
class DrafterContext:
    """What a drafter costs behind one context besides its drafts.

    Args:
        exit_layer: Of a target that drafts for itself; 0 for other drafters.
        batch_size: Rows.
        context_length: Tokens of the prompt.
        prefill: Seconds of the prompt through the target, hidden states and logits included where the drafter asks
            for them.
        first_draft: Seconds until its first token was there: the prompt through the drafter, and a draft of one.
        verify_extra: Seconds by which target forwards in its chains' steps took longer than the target's own steps.
        host_extra: The same for acceptance, commit and Python: above all the drafter's own commit.
    """

    exit_layer: int
    batch_size: int
    context_length: int
    prefill: Timing
    first_draft: Timing
    verify_extra: Timing
    host_extra: Timing


@dataclass(frozen=True, slots=True)
class DrafterCosts:
    """One drafter.

    Args:
        source: Where it comes from.
        has_probs: It runs a model; others look text up.
        default_exit_layer: What `exit_layer=0` of a configuration means; 0 where there is no such choice.
        weight_bytes: Of its own weights, those it shares with the target not counted.
        points: Its steps.
        contexts: What it costs besides.
    """

    source: ModelSource
    has_probs: bool
    default_exit_layer: int
    weight_bytes: int
    points: tuple[DraftPoint, ...]
    contexts: tuple[DrafterContext, ...]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Build from checked JSON values."""
        return cls(
            source=ModelSource(**values["source"]),
            has_probs=values["has_probs"],
            default_exit_layer=values["default_exit_layer"],
            weight_bytes=values["weight_bytes"],
            points=tuple(with_timings(DraftPoint, one) for one in values["points"]),
            contexts=tuple(with_timings(DrafterContext, one) for one in values["contexts"]),
        )


@dataclass(frozen=True, slots=True)
class ThreadPoint:
    """Forwards of the target under one number of threads.

    Args:
        num_threads: Of torch.
        plain: Seconds of a forward of one token.
        verify: Seconds of a forward of `ThreadChoice.num_verified`.
        slowdown: How many times as long a plain forward takes as under the fastest number; 1.0 for that one.
        slowdown_low: Lower end of its 95 % interval.
        slowdown_high: Upper end.
    """

    num_threads: int
    plain: Timing
    verify: Timing
    slowdown: float
    slowdown_low: float
    slowdown_high: float


@dataclass(frozen=True, slots=True)
class ThreadChoice:
    """Which number of threads was chosen, and by which numbers; see `autospec.profiling.threads`.

    Args:
        num_threads: The smallest whose plain forwards are not beyond noise slower than those of the fastest.
        context_length: Tokens cached before each forward.
        num_verified: Tokens of the larger forwards.
        points: By ascending number of threads.

    Raises:
        ProfileError: The chosen number was not measured, or points do not ascend.
    """

    num_threads: int
    context_length: int
    num_verified: int
    points: tuple[ThreadPoint, ...]

    def __post_init__(self) -> None:
        counts = [point.num_threads for point in self.points]
        if self.num_threads not in counts or counts != sorted(set(counts)):
            raise ProfileError(
                f"`threads.num_threads` must be one of the ascending numbers measured, {counts}, but got "
                f"{self.num_threads}"
            )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Build from checked JSON values."""
        points = tuple(with_timings(ThreadPoint, one) for one in values["points"])
        return cls(**{**values, "points": points})


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes.

    Args:
        target_weight_bytes: Of the target.
        kv_bytes_per_token: What each token takes in the target's cache.
        peak_bytes: Most that torch held on the device while it was measured; on a CPU what the process held then.
    """

    target_weight_bytes: int
    kv_bytes_per_token: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Noise:
    """How far the numbers can be believed.

    Args:
        spread: Coefficient of variation of one timing: the median of those of all target forwards that were measured
            at least three times.
        verdict: `quiet`, `noisy` (over 10 %: fine differences mean nothing), `too noisy` (over 20 %: measure again
            on an idle machine), or `unknown` where more than half of the forwards were measured fewer than three
            times: a stall would go unnoticed, so give it a larger budget.
    """

    spread: float
    verdict: str


def with_timings(cls: type[Any], values: Mapping[str, Any]) -> Any:
    """Build a point from JSON values: every object in it is a timing."""
    return cls(**{name: Timing(**value) if isinstance(value, Mapping) else value for name, value in values.items()})


def profile_key(
    fingerprint: Mapping[str, str | int],
    target: ModelSource,
    drafters: Mapping[str, ModelSource],
    sampling: SamplingParams,
    compile: bool = False,
) -> str:
    """Return what finds the profile of these models on this device again.

    Sixteen hexadecimal digits, and `-compiled` behind them where models are compiled.

    Args:
        fingerprint: Of the device, dtype and versions.
        target: The target.
        drafters: By name.
        sampling: Decoding settings; their seed costs nothing.
        compile: Whether the models run compiled.
    """
    models = [asdict(target), {name: asdict(drafters[name]) for name in sorted(drafters)}]
    decoding = asdict(replace(sampling, seed=0))
    text = json.dumps([fingerprint_hash(fingerprint), models, decoding], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16] + ("-compiled" if compile else "")


def threads_key(fingerprint: Mapping[str, str | int], target: ModelSource, compile: bool = False) -> str:
    """Return what finds the number of threads that was chosen for a target on this device again."""
    here = {name: value for name, value in fingerprint.items() if name != "num_threads"}
    return profile_key(here, target, {}, SamplingParams(), compile)


def twice(points: Iterable[Any]) -> bool:
    """Tell whether two points stand at one place: are alike in all numbers that are not timings."""
    places = [
        tuple(value for value in (getattr(point, one.name) for one in fields(point)) if isinstance(value, int))
        for point in points
    ]
    return len(set(places)) < len(places)
