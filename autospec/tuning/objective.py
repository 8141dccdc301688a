"""One trial: a configuration is measured prompt by prompt until it is decided, and the value is told.

The prompts of the workload, in their order, are the steps. Continues a trial that was cut short from what the log has
of it. Knows nothing of how configurations are proposed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import optuna
from optuna.trial import TrialState

from autospec.config import SpecConfig
from autospec.records import Measurement, Prompt
from autospec.tuning.goals import Goal
from autospec.tuning.limits import Constraints, Limits
from autospec.tuning.measuring import ConfigurationFailed, Measurer, count_repeats
from autospec.tuning.pool import Leaderboard
from autospec.tuning.pruning import is_decided, is_hopeless

_REASON = "reason"
_SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a trial ended.

    Args:
        state: What Optuna is told.
        values: Of a complete trial, as the goal of the study says.
        reason: Why it was not complete, or cannot be chosen although it is.
        constraints: Name to value; above 0 is broken.
    """

    state: TrialState
    values: tuple[float, ...] | None = None
    reason: str = ""
    constraints: Constraints = (("failed", 0.0), ("quality", 0.0), ("memory", 0.0))


class Objective:
    """Measures trials.

    Args:
        measurer: Runner and log.
        board: What the search knows; measurements are added to its pool.
        goal: Of the study.
        limits: Of quality and memory.
    """

    def __init__(self, measurer: Measurer, board: Leaderboard, goal: Goal, limits: Limits) -> None:
        self._measurer, self._board, self._goal, self._limits = measurer, board, goal, limits
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
            if self._goal.prunes:
                self._report(study, trial, config, prompt, step)
            # What the log already holds was judged before; only the last of it may have been cut short before that.
            is_open = self._goal.prunes and len(logged) <= step + 1 < len(prompts)
            if is_open and not config.is_off and self._is_over(trial, config):
                reason = f"decided after {step + 1} of {len(prompts)} prompts"
                return self._limited(Outcome(TrialState.PRUNED, reason=reason), config, measurements)
        value = self._of_baseline(measurements) if config.is_off else self._board.pool.value(config, prompts)
        assert value is not None, "every prompt was measured"
        outcome = Outcome(TrialState.COMPLETE, self._goal.values(value, measurements))
        return self._limited(outcome, config, measurements)

    def _limited(self, outcome: Outcome, config: SpecConfig, measurements: Sequence[Measurement]) -> Outcome:
        """Return an outcome with what it breaks of the limits."""
        reasons = [*filter(None, [outcome.reason]), *self._limits.reasons(config, measurements)]
        constraints = self._limits.constraints(config, measurements)
        return replace(outcome, reason="; ".join(reasons), constraints=constraints)

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

    def _of_baseline(self, measurements: Sequence[Measurement]) -> float:
        """Return the mean log ratio of the baseline against itself, which pools nothing."""
        return sum(map(self._goal.yardstick.log_ratio, measurements)) / len(measurements)


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
    study.tell(trial, outcome.values, state=outcome.state)


def reason_of(trial: optuna.trial.FrozenTrial) -> str:
    """Return why a trial was not complete; empty where it was."""
    return str(trial.user_attrs.get(_REASON, ""))


def was_skipped(trial: optuna.trial.FrozenTrial) -> bool:
    """Return whether nothing was measured for a finished trial."""
    return _SKIPPED in trial.user_attrs


def is_feasible(trial: optuna.trial.FrozenTrial) -> bool:
    """Return whether a trial broke no constraint."""
    return all(value <= 0.0 for value in trial.constraints.values())
