"""A study in which nothing is measured, for `benchmarks/scaling.py`: what is left is the tuner's own time."""

from __future__ import annotations

import json
import math
import tempfile
import time
import zlib
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from autospec import SearchSpace, SpecConfig, SpeculativeDecoder, StudySettings, WorkloadSource, load_workload
from autospec.records import Measurement, Prompt, StepStats, Workload
from autospec.runners import check_prompts
from autospec.tuning.budget import plan_budget
from autospec.tuning.events import Event, NullTracker, TrialDone
from autospec.tuning.run import run_task
from autospec.tuning.task import Task

NUM_NEW, BASELINE_SECONDS, NOISE, SPREAD = 48, 0.25, 0.01, 0.05
DRAFTERS = ("draft", "ngram", "suffix", "recycling", "early_exit", "lookahead")
WITH_PROBS = ("draft", "early_exit")
CATEGORIES = ("code", "prose", "table")


class PlantedRunner:
    """Returns measurements of planted speeds at once; the same for the same arguments."""

    def measure(self, config: SpecConfig, prompt: Prompt, *, stage: str, trial: int, repeat: int) -> Measurement:
        """Make one up; see `autospec.runners.base.Runner`."""
        own = _numbers(config.config_hash, prompt.prompt_id).normal(0.0, SPREAD)
        ratio = 1.0 if config.is_off else 1.6 * math.exp(own - 0.02 * (config.draft_length - 6) ** 2)
        noise = _numbers(config.config_hash, prompt.prompt_id, stage, repeat).normal(0.0, NOISE, 2)
        seconds, baseline = BASELINE_SECONDS / ratio * math.exp(noise[0]), BASELINE_SECONDS * math.exp(noise[1])
        counts = {"num_steps": 20, "num_drafted": 80, "num_accepted": 27, "num_step_tokens": NUM_NEW - 1}
        return Measurement(
            config=config,
            prompt_id=prompt.prompt_id,
            category=prompt.category,
            stage=stage,
            trial=trial,
            repeat=repeat,
            seconds=seconds,
            baseline_seconds=baseline,
            num_tokens=NUM_NEW,
            baseline_num_tokens=NUM_NEW,
            prefill_seconds=0.02,
            baseline_prefill_seconds=0.02,
            stats=StepStats(num_new_tokens=NUM_NEW, total_seconds=seconds, **counts),
            identical=True,
        )


def _numbers(*words: Any) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32("|".join(map(str, words)).encode()))


def _workload(per_category: int) -> Workload:
    def prompts(split: str) -> tuple[Prompt, ...]:
        return tuple(
            Prompt(prompt_id=f"{split}-{category}-{number}", category=category, text=f"{split} {category} {number}")
            for number in range(per_category)
            for category in CATEGORIES
        )

    return Workload("planted", prompts("tune"), prompts("held_out"), max_new_tokens=NUM_NEW)


class _Enough(Exception):
    """The time is over."""


def seconds_by_trial(num_trials: int, space: str, most_seconds: float) -> tuple[list[float], int]:
    """Run a study of so many trials, or as many as the time allows.

    Returns:
        For each trial how long proposing, telling and logging took, what was proposed and skipped before it included;
        and the number of proposals.
    """
    started = time.perf_counter()
    ends, proposals = [started], [0]

    def on_event(event: Event) -> None:
        if isinstance(event, TrialDone):
            ends.append(time.perf_counter())
            proposals.append(event.report.number)
            if ends[-1] - started > most_seconds:
                raise _Enough

    drafters = {name: SimpleNamespace(has_probs=name in WITH_PROBS, source=name) for name in DRAFTERS}
    model = SimpleNamespace(config=SimpleNamespace())
    target = SimpleNamespace(name="planted", revision=None, device="cpu", dtype="torch.float32", model=model)
    with tempfile.TemporaryDirectory() as folder, suppress(_Enough):
        run_task(
            Task(
                decoder=SimpleNamespace(target=target, drafters=drafters, text=None),  # type: ignore[arg-type]
                runner=PlantedRunner(),
                workload=_workload(8),
                space=SearchSpace.load(space),
                settings=StudySettings(trials=num_trials, minutes=0, patience=0, prompts_per_trial=6, guided=False),
                output_dir=Path(folder),
                machine={"device_name": "planted"},
                tracker=NullTracker(),
                on_event=on_event,
                command="scaling",
            )
        )
    return list(np.diff(ends))[1:], proposals[-1]  # the first is the baseline's, with what is made once


def seconds_by_workload(num_prompts: int, decoder: SpeculativeDecoder) -> dict[str, float]:
    """Return how long a workload of so many prompts takes to be read and split, hashed, rendered and planned for."""
    words = [f"word{number}" for number in range(500)]
    numbers = np.random.default_rng(0)
    seconds, started = dict[str, float](), time.perf_counter()

    def lap(what: str) -> None:
        nonlocal started
        seconds[what] = time.perf_counter() - started
        started = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prompts.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for number in range(num_prompts):
                text = " ".join(numbers.choice(words, 40))
                row = {"id": str(number), "category": CATEGORIES[number % 3], "prompt": f"{number} {text}"}
                file.write(json.dumps(row) + "\n")
        started = time.perf_counter()
        workload = load_workload(WorkloadSource(path))
        lap("reading and splitting")
    assert len(workload.content_hash) == 16
    lap("hashing")
    check_prompts(decoder, workload)
    lap("rendering and checking")
    plan_budget(workload, StudySettings(), BASELINE_SECONDS)
    lap("planning")
    return seconds
