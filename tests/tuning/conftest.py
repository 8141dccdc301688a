"""A world without models: a runner whose speeds are planted, with seeded log-normal noise and a clock of its own."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from autospec.config import SamplingParams, SpecConfig
from autospec.records import Measurement, Prompt, StepStats, Workload
from autospec.tuning.events import Event, NullTracker
from autospec.tuning.settings import StudySettings
from autospec.tuning.space import SearchSpace
from autospec.tuning.task import Task

PLAIN_GAP, NUM_GAPS, TARGET_BYTES = 0.005, 20, 24
DRAFTER_BYTES = {"draft": 3}  # of a drafter that has weights
Speed = Callable[[SpecConfig, str], float]  # configuration and category to speedup


def peak(config: SpecConfig, category: str) -> float:
    """A speedup that is highest, 2.0, for `draft` at length 6, and below 1 for `ngram`."""
    if config.drafter == "ngram":
        return 0.8
    return 2.0 * math.exp(-0.02 * (config.draft_length - 6) ** 2)


@dataclass
class FakeRunner:
    """Measures nothing: seconds come from planted speeds. Same arguments, same measurement, in any process.

    Gaps are 5 ms under plain decoding; `gaps` says what they are under a drafter, 1 % longer for each draft token.
    """

    speed: Speed = peak
    gaps: dict[str, float] = field(default_factory=dict)
    noise: float = 0.01
    prompt_spread: float = 0.05
    failures: dict[str, Exception] = field(default_factory=dict)
    hook: Callable[[int], None] = lambda count: None
    calls: list[tuple[str, str, str, int]] = field(default_factory=list)
    seconds: float = 0.0

    def now(self) -> float:
        return self.seconds

    def measure(self, config: SpecConfig, prompt: Prompt, *, stage: str, trial: int, repeat: int) -> Measurement:
        if stage != "warm_up":
            self.hook(len(self.calls))
            self.calls.append((config.config_hash, prompt.prompt_id, stage, repeat))
        if config.drafter in self.failures:
            raise self.failures[config.drafter]
        rng = self._rng(config.config_hash, prompt.prompt_id, stage, str(repeat))
        own = self._rng(config.config_hash, prompt.prompt_id).normal(0.0, self.prompt_spread)
        ratio = 1.0 if config.is_off else self.speed(config, prompt.category) * math.exp(own)
        noise, baseline_noise = rng.normal(0.0, self.noise, size=2)
        baseline_seconds, seconds = 0.25 * math.exp(baseline_noise), 0.25 / ratio * math.exp(noise)
        self.seconds += seconds + baseline_seconds
        stats = StepStats(
            num_steps=20, num_drafted=80, num_accepted=27, num_new_tokens=48, num_step_tokens=47, total_seconds=seconds
        )
        jitter = self._rng(config.config_hash, prompt.prompt_id, stage, str(repeat), "gaps")
        jitter = jitter.lognormal(0.0, self.noise, (2, NUM_GAPS))
        gap = self.gaps.get(config.drafter, PLAIN_GAP) * (1.0 + 0.01 * config.draft_length)
        stats.gap_seconds = (gap * jitter[0]).round(6).tolist()
        return Measurement(
            config=config,
            prompt_id=prompt.prompt_id,
            category=prompt.category,
            stage=stage,
            trial=trial,
            repeat=repeat,
            seconds=seconds,
            baseline_seconds=baseline_seconds,
            num_tokens=48,
            baseline_num_tokens=48,
            prefill_seconds=0.02,
            baseline_prefill_seconds=0.02,
            stats=stats,
            identical=True,
            peak_memory_bytes=1000 * max(1, config.draft_length),
            baseline_gap_seconds=tuple((PLAIN_GAP * jitter[1]).round(6).tolist()),
            footprint_bytes=TARGET_BYTES + sum(DRAFTER_BYTES.get(name, 0) for name in config.drafter_names),
            baseline_footprint_bytes=TARGET_BYTES,
        )

    def _rng(self, *words: str) -> np.random.Generator:
        return np.random.default_rng(zlib.crc32("|".join(words).encode()))


def make_workload(categories: tuple[str, ...] = ("code", "prose"), per_category: int = 12) -> Workload:
    def prompts(split: str) -> tuple[Prompt, ...]:
        return tuple(
            Prompt(prompt_id=f"{split}-{category}-{index}", category=category, text=f"{split} {category} {index}")
            for index in range(per_category)
            for category in categories
        )

    return Workload(name="planted", tune=prompts("tune"), held_out=prompts("held_out"))


def make_task(output_dir: Path, runner: FakeRunner | None = None, **changes: Any) -> Task:
    """A task of 8 prompts a trial without a time limit; `changes` go to the task, other names to the settings."""
    own = {
        name: changes.pop(name) for name in ("workload", "space", "tracker", "on_event", "prepare") if name in changes
    }
    drafters = {
        "draft": SimpleNamespace(has_probs=True, source="draft-model"),
        "ngram": SimpleNamespace(has_probs=False, source="ngram"),
    }
    model = SimpleNamespace(config=SimpleNamespace())
    target = SimpleNamespace(
        name="target-model", revision=None, device="cpu", dtype="torch.float32", model=model, compiles=False
    )
    runner = runner or FakeRunner()
    settings = StudySettings(
        **{
            "trials": 12,
            "minutes": 0.0,
            "prompts_per_trial": 8,
            "finalists": 2,
            "finalist_prompts": 8,
            "max_repeats": 2,
            **changes,
        }
    )
    return Task(
        decoder=SimpleNamespace(target=target, drafters=drafters, text=None),  # type: ignore[arg-type]
        runner=runner,
        workload=own.get("workload", make_workload()),
        space=own.get("space") or SearchSpace.load("chain"),
        settings=settings,
        output_dir=output_dir,
        machine={"device_name": "planted"},
        tracker=own.get("tracker", NullTracker()),
        on_event=own.get("on_event", ignore_event),
        command="test",
        now=runner.now,
        prepare=own.get("prepare"),
    )


def ignore_event(event: Event) -> None:
    """Take an event and do nothing."""


def sampled(workload: Workload) -> Workload:
    return Workload(workload.name, workload.tune, workload.held_out, SamplingParams(temperature=0.8, top_p=0.95))


@pytest.fixture(autouse=True, scope="session")
def _no_fsync() -> Iterator[None]:
    """What the kernel holds survives a kill; waiting for the disk would only make tests slow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def fakes() -> SimpleNamespace:
    return SimpleNamespace(
        FakeRunner=FakeRunner, make_workload=make_workload, make_task=make_task, peak=peak, sampled=sampled
    )
