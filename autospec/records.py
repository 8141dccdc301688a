"""What was asked (`Prompt`, `Workload`) and what was observed (`Generation`, `Measurement`; `StepStats` in both).

Passive records that go to JSON and back; they know no model and measure nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from autospec.config import SamplingParams, SpecConfig
from autospec.errors import ConfigError
from autospec.stats import StepStats

__all__ = ["Generation", "Measurement", "OutputQuality", "Prompt", "StepStats", "Workload", "p95", "size_faults"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, not yet rendered: either `text`, or `messages` for the tokenizer's chat template.

    Args:
        prompt_id: Unique within its workload.
        category: The named part of the workload it belongs to.
        text: Plain text, empty where `messages` are given.
        messages: (role, content) pairs.
        reference: The right answer, for scorers that compare with one; empty where there is none.
        companions: Prompts that are decoded side by side with it, where a batch is measured.
    """

    prompt_id: str
    category: str
    text: str = ""
    messages: tuple[tuple[str, str], ...] = ()
    reference: str = ""
    companions: tuple[Prompt, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return as JSON values what a model is asked, so without reference and companions."""
        left_out = ("reference", "companions")
        return {name: value for name, value in asdict(self).items() if name not in left_out}


def size_faults(batch_sizes: Sequence[int], context_lengths: Sequence[int]) -> list[str]:
    """Return what is wrong with the sizes for which a policy shall have rows."""
    return [
        f"`{name}` must be whole numbers of at least 1 that ascend, but got {list(values)}"
        for name, values in (("batch_sizes", batch_sizes), ("context_lengths", context_lengths))
        if list(values) != sorted(set(values)) or any(type(one) is not int or one < 1 for one in values)
    ]


@dataclass(frozen=True, slots=True)
class Workload:
    """Prompts to tune on and others to confirm on, with the decoding settings that belong to them.

    Args:
        name: Where it came from, for people.
        tune: Prompts the study may look at, in the seeded, category-balanced order in which they are measured.
        held_out: Prompts used once, at the end; no prompt is in both.
        sampling: Decoding settings.
        max_new_tokens: Tokens generated for each prompt.
        batch_sizes: Numbers of prompts decoded side by side for which a policy shall have a row; one at a time always.
        context_lengths: Ascending lengths of prompts, up to each of which a policy shall have a row.

    Raises:
        ConfigError: Sizes or lengths are none, or do not ascend.
    """

    name: str
    tune: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_new_tokens: int = 48
    batch_sizes: tuple[int, ...] = (1,)
    context_lengths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if faults := size_faults(self.batch_sizes, self.context_lengths):
            raise ConfigError(faults)

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of all categories, sorted."""
        return tuple(sorted({prompt.category for prompt in (*self.tune, *self.held_out)}))

    @property
    def content_hash(self) -> str:
        """Sixteen hexadecimal digits of the unrendered prompts, their split and the decoding settings."""
        parts = {
            "tune": [prompt.to_json() for prompt in self.tune],
            "held_out": [prompt.to_json() for prompt in self.held_out],
            "sampling": self.sampling.to_json(),
            "max_new_tokens": self.max_new_tokens,
            **({} if self.batch_sizes in ((), (1,)) else {"batch_sizes": list(self.batch_sizes)}),
            **({"context_lengths": list(self.context_lengths)} if self.context_lengths else {}),
        }
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def p95(values: Sequence[float]) -> float:
    """Return the 95th percentile, between two values by a straight line, as `numpy.percentile` does.

    Args:
        values: At least one.
    """
    ordered, place = sorted(values), 0.95 * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@dataclass(frozen=True, slots=True)
class Generation:
    """The outcome for one prompt.

    Args:
        token_ids: New tokens, the prompt not included; an end-of-text token that ended it is the last of them.
        text: Their text, cut before a stop string that ended it.
        stats: Counts and seconds.
        stop_reason: `length`, `eos` or `stop`.
        prompt_ids: The tokens of the rendered prompt.
    """

    token_ids: tuple[int, ...]
    text: str
    stats: StepStats
    stop_reason: str
    prompt_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class OutputQuality:
    """What an output under a lossy rule is worth beside plain decoding's on the same prompt; see `runners.quality`.

    Args:
        log_prob: Mean log-probability of its tokens under the target, in nats.
        baseline_log_prob: The same of plain decoding's output.
        agreement: Mean chance that the target would emit its token at its place; 0 or 1 for each where greedy.
        baseline_agreement: The same of plain decoding's output; 1 under greedy decoding, but for ties.
        score: What the task scorer gives; None without one.
        baseline_score: What it gives plain decoding's output.
    """

    log_prob: float
    baseline_log_prob: float
    agreement: float
    baseline_agreement: float
    score: float | None = None
    baseline_score: float | None = None

    @property
    def loss(self) -> float:
        """Nats per token by which the output is less probable than plain decoding's; negative where it is more."""
        return self.baseline_log_prob - self.log_prob


@dataclass(frozen=True, slots=True)
class Measurement:
    """One timed comparison: the same prompt under a configuration and under plain decoding, side by side.

    Args:
        config: What was measured.
        prompt_id: Which prompt.
        category: Its category.
        stage: `search`, `finalist` or `confirm`.
        trial: Number of the trial that asked for it; -1 outside the study.
        repeat: 0 for the first time this (config, prompt, stage) was measured, then 1, 2, ...
        seconds: Whole call under `config`, prefill included.
        baseline_seconds: Whole call under plain decoding.
        num_tokens: New tokens under `config`.
        baseline_num_tokens: New tokens under plain decoding.
        prefill_seconds: Part of `seconds` before the first token.
        baseline_prefill_seconds: Part of `baseline_seconds` before the first token.
        stats: Counts of the run under `config`.
        identical: Whether the tokens equal plain decoding's up to excused ties; None where the rule does not
            promise it (sampling under `rejection` and `block`).
        num_excused: Differences excused by a tie of the target.
        peak_memory_bytes: Highest memory seen; on a CPU that of the whole process, so it says little of one
            configuration; 0 where it is not known.
        difference_index: First token that is not plain decoding's, an excused one too; None where there is none.
        difference_gap: How close plain decoding was there to another token; see `SpeculativeDecoder.tie_gap`. None
            where nothing differs, where one output merely ended first, and in logs from before it was kept.
        quality: Of the output; None under lossless rules.
        baseline_gap_seconds: Under plain decoding, as `stats.gap_seconds` is under `config`; empty in older logs.
        footprint_bytes: Weights of the target and of the drafters that `config` names, and the caches of this call,
            counted from their tensors; 0 where it is not known.
        baseline_footprint_bytes: The same of plain decoding.
        num_outputs: Prompts decoded side by side in this call.
        num_different: Outputs of them with a difference that nothing excuses; in logs from before batches were
            counted 0, whatever `identical` says: see `num_unlike`.
    """

    config: SpecConfig
    prompt_id: str
    category: str
    stage: str
    trial: int
    repeat: int
    seconds: float
    baseline_seconds: float
    num_tokens: int
    baseline_num_tokens: int
    prefill_seconds: float
    baseline_prefill_seconds: float
    stats: StepStats
    identical: bool | None
    num_excused: int = 0
    peak_memory_bytes: int = 0
    difference_index: int | None = None
    difference_gap: float | None = None
    quality: OutputQuality | None = None
    baseline_gap_seconds: tuple[float, ...] = ()
    footprint_bytes: int = 0
    baseline_footprint_bytes: int = 0
    num_outputs: int = 1
    num_different: int = 0

    @property
    def num_unlike(self) -> int:
        """Outputs that differ from plain decoding's without an excuse."""
        return max(self.num_different, int(self.identical is False))

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What makes a measurement lost or repeated: configuration hash, prompt, stage, repeat."""
        return (self.config.config_hash, self.prompt_id, self.stage, self.repeat)

    @property
    def log_speedup(self) -> float:
        """Log of baseline seconds per token over seconds per token, whole call."""
        return math.log(self.baseline_seconds / self.baseline_num_tokens) - math.log(self.seconds / self.num_tokens)

    @property
    def log_decode_speedup(self) -> float:
        """The same without the prefills, per token after the first; 0 where either side had no token after it."""
        if min(self.num_tokens, self.baseline_num_tokens) < 2:
            return 0.0
        decode = (self.seconds - self.prefill_seconds) / (self.num_tokens - 1)
        baseline = (self.baseline_seconds - self.baseline_prefill_seconds) / (self.baseline_num_tokens - 1)
        return math.log(baseline) - math.log(decode)

    @property
    def has_gaps(self) -> bool:
        """Whether it is known on both sides when tokens came; not so in older logs, nor of a single token."""
        return bool(self.stats.gap_seconds and self.baseline_gap_seconds)

    @property
    def log_latency_ratio(self) -> float:
        """Log of the baseline's p95 inter-token latency over that under `config`; 0 where it is not known."""
        if not self.has_gaps:
            return 0.0
        return math.log(p95(self.baseline_gap_seconds)) - math.log(p95(self.stats.gap_seconds))

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, the configuration's hash among them."""
        values = asdict(self)
        values["config"] = self.config.to_json()
        values["config_hash"] = self.config.config_hash
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Build from `to_json`; a configuration that does not match its hash is a `ConfigError`."""
        rest = dict(values)
        config, stats = SpecConfig.from_json(rest.pop("config")), StepStats.from_json(rest.pop("stats"))
        if config.config_hash != rest.pop("config_hash"):
            raise ConfigError(f"a measurement's hash must match its configuration, but {config} does not")
        quality = rest.pop("quality", None)
        gaps = tuple(rest.pop("baseline_gap_seconds", ()))
        quality = quality and OutputQuality(**quality)
        return cls(config=config, stats=stats, quality=quality, baseline_gap_seconds=gaps, **rest)
