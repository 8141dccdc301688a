"""What a study tells while it runs: events for a terminal, reports for a tracker. Passive; prints and logs nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from autospec.comparison import Estimate
from autospec.config import SpecConfig
from autospec.records import Measurement
from autospec.tuning.settings import StudySettings
from autospec.yardsticks import SPEED, Yardstick

if TYPE_CHECKING:
    from autospec.policy import Quality
    from autospec.tuning.result import TuningResult

# How the reason of a trial begins that is complete, but took or lost too much.
OVER_MEMORY, OVER_LOSS = "over memory", "over quality.max_loss"


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """What a study is going to do, and the arithmetic of its budget.

    Args:
        target: Name of the target model, as a policy names it.
        drafters: Drafter name to where it comes from, likewise.
        device: Such as `cpu`, with what the fingerprint says of it in `fingerprint`.
        dtype: Such as `float32`.
        fingerprint: The machine and its software.
        workload: Name of the workload.
        workload_hash: Its content hash.
        categories: Its categories.
        decoding: Such as `greedy` or `temperature 0.8, top-p 0.95`.
        max_new_tokens: Tokens generated for each prompt.
        space_size: Number of distinct configurations; None where it is continuous or too large to count.
        settings: Settings of the study.
        seconds_per_prompt: One prompt under plain decoding twice, measured in the warm-up: an upper bound for a
            configuration that pays, with its baseline.
        num_search_prompts: Prompts of one trial.
        num_finalist_prompts: Prompts of the final choice.
        num_held_out_prompts: Most held-out prompts of the confirmation.
        search_seconds: Time the search may take; infinite without a limit.
        confirm_seconds: Time set aside for final choice and confirmation.
        num_logged: Measurements already in the log when a run is resumed.
        compile: Whether the models run compiled.
    """

    target: str
    drafters: Mapping[str, str]
    device: str
    dtype: str
    fingerprint: Mapping[str, str | int]
    workload: str
    workload_hash: str
    categories: tuple[str, ...]
    decoding: str
    max_new_tokens: int
    space_size: int | None
    settings: StudySettings
    seconds_per_prompt: float
    num_search_prompts: int
    num_finalist_prompts: int
    num_held_out_prompts: int
    search_seconds: float
    confirm_seconds: float
    num_logged: int
    compile: bool = False

    @property
    def seconds_per_trial(self) -> float:
        """A trial that is not ended early, with its baseline."""
        return self.seconds_per_prompt * self.num_search_prompts

    @property
    def estimated_minutes(self) -> float:
        """Search and confirmation, if no trial is ended early."""
        search = min(self.search_seconds, self.seconds_per_trial * (1 + self.settings.trials))
        return (search + self.confirm_seconds) / 60


@dataclass(frozen=True, slots=True)
class TrialReport:
    """One finished trial.

    Args:
        number: Its number in the study; a number may be missing where a suggestion was not measured.
        config: What was measured; off in trial 0, which measures the baseline against itself.
        state: `complete`, `pruned` (decided early) or `failed`.
        params: What the sampler chose, by knob.
        measurements: Of this trial, in order.
        estimates: Name of a yardstick to the ratio over all measurements of this configuration in the search.
        yardstick: That which decides.
        repeat: How often this configuration had been tried before.
        reason: Why it failed, was ended early or cannot be chosen; empty otherwise.
        best_config: Best so far, this trial included; off where nothing beats the baseline.
        best_ratio: Its ratio over the prompts of the search, by the yardstick.
        num_trials: How many trials were measured so far, the baseline's not counted.
        quality: What was seen of the outputs of this trial; None where nothing was measured.
    """

    number: int
    config: SpecConfig
    state: str
    params: Mapping[str, str | int | float]
    measurements: Sequence[Measurement]
    estimates: Mapping[str, Estimate]
    repeat: int
    reason: str
    best_config: SpecConfig
    best_ratio: float
    num_trials: int
    quality: Quality | None = None
    yardstick: Yardstick = SPEED

    @property
    def speedup(self) -> Estimate | None:
        """Over all measurements of this configuration in the search; None where there is none."""
        return self.estimates.get(SPEED.name)

    @property
    def ratio(self) -> Estimate | None:
        """The same by the yardstick that decides."""
        return self.estimates.get(self.yardstick.name)

    @property
    def tokens_per_second(self) -> float:
        """Total tokens over total seconds of this trial; 0 where nothing was measured."""
        seconds = sum(one.seconds for one in self.measurements)
        return sum(one.num_tokens for one in self.measurements) / seconds if seconds else 0.0

    @property
    def baseline_tokens_per_second(self) -> float:
        """The same for the interleaved baseline."""
        seconds = sum(one.baseline_seconds for one in self.measurements)
        return sum(one.baseline_num_tokens for one in self.measurements) / seconds if seconds else 0.0


@dataclass(frozen=True, slots=True)
class PlanMade:
    """The plan stands; comes first."""

    plan: StudyPlan


@dataclass(frozen=True, slots=True)
class PhaseStarted:
    """A phase begins.

    Args:
        phase: `record`, `profile`, `search`, `finalist` or `confirm`.
        num_measurements: Most measurements it will take, for a progress bar.
        configs: What the later phases measure.
    """

    phase: str
    num_measurements: int
    configs: tuple[SpecConfig, ...] = ()


@dataclass(frozen=True, slots=True)
class Guided:
    """Configurations were priced from one recording and one profile.

    Args:
        num_asked: How many.
        num_priced: Of them those that could be.
        best: The best of them, with what is predicted of their speedup.
        noise: Spread of the profile's timings.
        num_expected: Of those priced, how many whose steps are not replayed but expected.
        expected: Which of the best these are.
        num_left: Of those asked, how many there was no time to record.
    """

    num_asked: int
    num_priced: int
    best: tuple[tuple[SpecConfig, float], ...]
    noise: float
    num_expected: int = 0
    expected: tuple[SpecConfig, ...] = ()
    num_left: int = 0


@dataclass(frozen=True, slots=True)
class Measured:
    """One prompt was measured, or found in the log of a run that is resumed."""

    measurement: Measurement


@dataclass(frozen=True, slots=True)
class NoiseMeasured:
    """The baseline was measured against itself.

    Args:
        noise_floor: Coefficient of variation of one timing.
    """

    noise_floor: float


@dataclass(frozen=True, slots=True)
class TrialDone:
    """A trial has ended."""

    report: TrialReport


@dataclass(frozen=True, slots=True)
class Warned:
    """Something a person should know; the study goes on."""

    message: str


Event = PlanMade | PhaseStarted | Guided | Measured | NoiseMeasured | TrialDone | Warned
OnEvent = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Take an event and do nothing."""


class Tracker(Protocol):
    """Logs experiments; called outside every timed region."""

    def start(self, plan: StudyPlan) -> None:
        """Begin, before anything is measured."""
        ...

    def log_trial(self, report: TrialReport) -> None:
        """Log one trial; trials that had ended before a run was resumed come again, in order."""
        ...

    def finish(self, result: TuningResult, files: Sequence[Path]) -> None:
        """End; `files` are those written to the output folder."""
        ...

    def interrupt(self, result: TuningResult, files: Sequence[Path]) -> None:
        """End for now, by Ctrl-C and perhaps before `start`; a resumed run starts again and goes on."""
        ...


class NullTracker:
    """Tracks nothing."""

    def start(self, plan: StudyPlan) -> None:
        """Do nothing."""

    def log_trial(self, report: TrialReport) -> None:
        """Do nothing."""

    def finish(self, result: TuningResult, files: Sequence[Path]) -> None:
        """Do nothing."""

    def interrupt(self, result: TuningResult, files: Sequence[Path]) -> None:
        """Do nothing."""
