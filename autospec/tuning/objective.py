"""One trial: a configuration is measured prompt by prompt until it is decided, and the value is told.

The prompts of the workload, in their order, are the steps. Continues a trial that was cut short from what the log has
of it. Knows nothing of how configurations are proposed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import optuna
from optuna.trial import TrialState

from autospec.config import SpecConfig
from autospec.records import Measurement, Prompt
from autospec.tuning.events import OVER_MEMORY
from autospec.tuning.measuring import ConfigurationFailed, Measurer, count_repeats
from autospec.tuning.pool import Leaderboard
from autospec.tuning.pruning import is_decided, is_hopeless
from autospec.tuning.quality import LossLimit
from autospec.tuning.settings import StudySettings

_REASON = "reason"
_SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a trial ended.

    Args:
        state: What Optuna is told.
        value: Log speedup of a complete trial.
        reason: Why it was not complete, or cannot be chosen although it is.
        constraints: Name to value; above 0 is broken.
    """

    state: TrialState
    value: float | None = None
    reason: str = ""
    constraints: tuple[tuple[str, float], ...] = (("failed", 0.0), ("quality", 0.0), ("memory", 0.0))


class Objective:
    """Measures trials.

    Args:
        measurer: Runner and log.
        board: What the search knows; measurements are added to its pool.
        settings: Limits.
    """

    def __init__(self, measurer: Measurer, board: Leaderboard, settings: StudySettings) -> None:
        self._measurer, self._board, self._settings = measurer, board, settings
        self._limit = LossLimit(settings.quality.max_loss)
        self.noise_floor = 0.0

    def evaluate(self, study: optuna.Study, trial: optuna.Trial, config: SpecConfig) -> Outcome:
        """Measure a configuration on the prompts of a trial, in order, until it is decided."""
        measurements: list[Measurement] = []
        logged = self._logged(trial.number)
        repeat = count_repeats(self._measurer.log, config, trial.number)
        prompts = self._board.prompts
        for step, prompt in enumerate(prompts):
            try:
                one = self._measurer.measure(config, prompt, stage="search", trial=trial.number, repeat=repeat)
            except ConfigurationFailed as error:
                return _failed(str(error))
            measurements.append(one)
            self._board.pool.add(one)
            self._report(study, trial, config, prompt, step)
            # What the log already holds was judged before; only the last of it may have been cut short before that.
            is_open = len(logged) <= step + 1 < len(prompts)
            if is_open and not config.is_off and self._is_over(trial, config):
                reasons = [f"decided after {step + 1} of {len(prompts)} prompts", *self._broken(config, measurements)]
                constraints = self._constraints(config, measurements)
                return Outcome(TrialState.PRUNED, reason="; ".join(reasons), constraints=constraints)
        value = self._board.pool.value(config, prompts) if not config.is_off else self._self_speedup(measurements)
        reason = "; ".join(self._broken(config, measurements))
        return Outcome(TrialState.COMPLETE, value, reason, constraints=self._constraints(config, measurements))

    def _logged(self, number: int) -> Sequence[Measurement]:
        measurements = self._measurer.log.measurements
        return [one for one in measurements if one.stage == "search" and one.trial == number]

    def _report(self, study: optuna.Study, trial: optuna.Trial, config: SpecConfig, prompt: Prompt, step: int) -> None:
        """Tell Optuna the mean over all measurements of this configuration on one prompt, once."""
        known = study.get_trials(deepcopy=False)[trial.number].intermediate_values
        if step not in known:
            trial.report(self._board.pool.means(config, [prompt])[prompt.prompt_id], step)

    def _is_over(self, trial: optuna.Trial, config: SpecConfig) -> bool:
        decided = is_decided(self._board, config, self.noise_floor) or trial.should_prune()
        return decided and is_hopeless(self._board, config, self.noise_floor)

    def _self_speedup(self, measurements: Sequence[Measurement]) -> float:
        return sum(one.log_speedup for one in measurements) / len(measurements)

    def _constraints(self, config: SpecConfig, measurements: Sequence[Measurement]) -> tuple[tuple[str, float], ...]:
        """Return quality and memory as Optuna wants them: above 0 is broken.

        Quality is the upper bound of a lossy rule's loss less what may be lost. A mismatch of a lossless rule in
        float32 fails the trial before it comes here. In half precision its tokens may differ, which is counted and
        reported and breaks nothing.
        """
        limit = self._settings.max_memory_bytes
        excess = peak_memory(measurements) - limit if limit else 0
        return (("failed", 0.0), ("quality", self._limit.excess(config, measurements)), ("memory", float(excess)))

    def _broken(self, config: SpecConfig, measurements: Sequence[Measurement]) -> list[str]:
        """Return a sentence for each limit that a trial breaks."""
        reasons = (self._over_memory(measurements), self._limit.reason(config, measurements))
        return [reason for reason in reasons if reason]

    def _over_memory(self, measurements: Sequence[Measurement]) -> str:
        """Return how a trial breaks the limit of memory, or nothing; trial 0 breaks none, it only measures."""
        limit, peak = self._settings.max_memory_bytes, peak_memory(measurements)
        return f"{OVER_MEMORY} ({gigabytes(peak)}, limit {gigabytes(limit)})" if 0 < limit < peak else ""


def peak_memory(measurements: Sequence[Measurement]) -> int:
    """Return the most bytes that any of them took."""
    return max((one.peak_memory_bytes for one in measurements), default=0)


def gigabytes(num_bytes: int) -> str:
    """Return a size for people."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e7 else f"{num_bytes:,} bytes"


def _failed(reason: str) -> Outcome:
    broken = (("failed", 1.0), ("quality", float(reason.startswith("MismatchError"))), ("memory", 0.0))
    return Outcome(TrialState.PRUNED, reason=reason, constraints=broken)


def tell(study: optuna.Study, trial: optuna.Trial, outcome: Outcome, skipped: bool = False) -> None:
    """Tell Optuna how a trial ended.

    A trial that failed is told as pruned with a broken constraint: from one told as failed the sampler learns nothing.

    Args:
        study: The study.
        trial: The trial.
        outcome: How it ended.
        skipped: Nothing was measured for it.
    """
    known = trial.constraints
    for name, value in outcome.constraints:
        if name not in known:
            trial.set_constraint(name, value)
    if outcome.reason:
        trial.set_user_attr(_SKIPPED if skipped else _REASON, outcome.reason)
    study.tell(trial, outcome.value, state=outcome.state)


def reason_of(trial: optuna.trial.FrozenTrial) -> str:
    """Return why a trial was not complete; empty where it was."""
    return str(trial.user_attrs.get(_REASON, ""))


def was_skipped(trial: optuna.trial.FrozenTrial) -> bool:
    """Return whether nothing was measured for a finished trial."""
    return _SKIPPED in trial.user_attrs


def is_feasible(trial: optuna.trial.FrozenTrial) -> bool:
    """Return whether a trial broke no constraint."""
    return all(value <= 0.0 for value in trial.constraints.values())
