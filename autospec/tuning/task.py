"""Everything one tuning run works with, in one place. Passive."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import autospec
from autospec.config import SamplingParams
from autospec.errors import ConfigError
from autospec.records import Prompt, Workload
from autospec.runners.base import Runner
from autospec.tuning.events import OnEvent, Tracker
from autospec.tuning.goals import GOALS, Goal
from autospec.tuning.settings import StudySettings
from autospec.tuning.space import SearchSpace

if TYPE_CHECKING:
    from autospec.engine.decoder import SpeculativeDecoder
    from autospec.profiling import HardwareProfile, ThreadChoice
    from autospec.tuning.log import MeasurementLog
    from autospec.tuning.measuring import Measurer
    from autospec.tuning.preparing import Preparation


_SITUATION_SHARE = 0.12  # of the minutes, for each batch size or length of prompts that is asked for
_MOST_SITUATIONS_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Task:
    """One run.

    Args:
        decoder: The models; only described here, never called.
        runner: What measures.
        workload: Prompts.
        space: What may be tried.
        settings: How.
        output_dir: Where everything is written.
        machine: Fingerprint of the device.
        tracker: Where trials are logged.
        on_event: Told what happens.
        command: How the run was started, for the policy.
        now: Seconds from an arbitrary start.
        prepare: Makes a guide to the space, by recording and profiling; None searches without.
        hardware: The profile to predict from, or the folder of outputs below which `profile` keeps them; None
            measures one.
        threads: By which numbers the number of threads was chosen; kept in the profile that is measured.

    Raises:
        ConfigError: The space names drafters the decoder has not or leaves nothing to try under the workload's
            decoding, or the workload lacks prompts, or tokens that the objective compares.
    """

    decoder: SpeculativeDecoder
    runner: Runner
    workload: Workload
    space: SearchSpace
    settings: StudySettings
    output_dir: Path
    machine: Mapping[str, str | int]
    tracker: Tracker
    on_event: OnEvent
    command: str
    now: Callable[[], float] = time.perf_counter
    prepare: Callable[[Task, MeasurementLog, Measurer, Sequence[Prompt]], Preparation | None] | None = None
    hardware: HardwareProfile | Path | None = None
    threads: ThreadChoice | None = None

    def __post_init__(self) -> None:
        least, num_new = self.goal.yardstick.least_new_tokens, self.workload.max_new_tokens
        if num_new < least:
            raise ConfigError(
                f"`study.objective={self.settings.objective}` needs `max_new_tokens >= {least}`, but the workload has "
                f"{num_new}"
            )
        self.space.check(self.decoder.drafters, self.settings.quality.allows_lossy)
        self.space.under(self.workload.sampling)
        if not self.workload.tune or not self.workload.held_out:
            num_tune, num_held_out = len(self.workload.tune), len(self.workload.held_out)
            raise ConfigError(
                f"a workload must have tune and held-out prompts, but {self.workload.name!r} has {num_tune} and "
                f"{num_held_out}"
            )

    @property
    def goal(self) -> Goal:
        """What is looked for."""
        return GOALS[self.settings.objective]

    @property
    def situation_minutes(self) -> float:
        """Most minutes for what a workload asks besides one prompt at a time; 0 without a limit."""
        asked = len(self.workload.batch_sizes) - (1 in self.workload.batch_sizes) + len(self.workload.context_lengths)
        return self.settings.minutes * min(_MOST_SITUATIONS_SHARE, asked * _SITUATION_SHARE)

    @property
    def minutes(self) -> float:
        """Most minutes for everything else; 0 without a limit."""
        return self.settings.minutes - self.situation_minutes

    def identity(self) -> dict[str, Any]:
        """Return what must be the same for a run to be gone on with."""
        target = self.decoder.target
        prompts = (*self.workload.tune, *self.workload.held_out)
        return {
            "version": autospec.__version__,
            "target": [target.name, target.revision, str(target.dtype)],
            "compile": target.compiles,
            "drafters": {name: drafter.source for name, drafter in sorted(self.decoder.drafters.items())},
            "machine": dict(self.machine),
            "workload": self.workload.content_hash,
            "space": self.space.content_hash,
            "settings": self.settings.to_json(),
            "references": [one.reference for one in prompts] if self.settings.quality.scorer else None,
        }


def describe(sampling: SamplingParams) -> str:
    """Return decoding settings for a line of a terminal."""
    if sampling.is_greedy:
        return "greedy"
    words = [f"temperature {sampling.temperature:g}"]
    if sampling.top_p < 1.0:
        words.append(f"top-p {sampling.top_p:g}")
    if sampling.top_k:
        words.append(f"top-k {sampling.top_k}")
    return ", ".join(words)
