"""The search: one Optuna study that proposes, measures and learns until its budget is spent or it has converged.

Trial 0 measures the baseline against itself, then come what other engines use by default, then the sampler. The
journal holds what was proposed and told, the log what was measured; both together bring a killed search back to where
it was. Knows no policy and no held-out prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial, TrialState

from autospec.comparison import NOISE_REPEATS, NOISE_WARNING, noise_action, noise_floor
from autospec.config import SpecConfig
from autospec.errors import ConfigError, MeasurementError
from autospec.policy import quality_from
from autospec.records import Measurement
from autospec.tuning.events import Measured, NoiseMeasured, OnEvent, TrialDone, TrialReport, Warned
from autospec.tuning.goals import Goal
from autospec.tuning.guide import Guide
from autospec.tuning.limits import Limits, gigabytes
from autospec.tuning.measuring import Measurer, count_repeats
from autospec.tuning.objective import Objective, Outcome, is_feasible, reason_of, tell, was_skipped
from autospec.tuning.pool import OFF, Leaderboard
from autospec.tuning.proposing import FINISHED, Proposer
from autospec.tuning.settings import StudySettings
from autospec.tuning.space import SearchSpace
from autospec.yardsticks import YARDSTICKS


@dataclass(frozen=True, slots=True)
class SearchParts:
    """What a search works with.

    Args:
        study: The Optuna study.
        space: What may be tried, for the workload's decoding settings.
        settings: Budget and limits.
        goal: What is looked for.
        measurer: Runner and log.
        board: Empty; the search fills it.
        defaults: Configurations to try first.
        seconds: Time the search may take.
        guide: To what is predicted; None searches without.
        on_event: Told of noise and trials.
        on_trial: Told of every trial once it has ended.
    """

    study: optuna.Study
    space: SearchSpace
    settings: StudySettings
    goal: Goal
    measurer: Measurer
    board: Leaderboard
    defaults: tuple[SpecConfig, ...]
    seconds: float
    guide: Guide | None
    on_event: OnEvent
    on_trial: Callable[[TrialReport], None]


# Of a guided study, once what it began with is measured: by then little is left to find.
GUIDED_PATIENCE = 6


class Search:
    """Runs the study.

    Args:
        parts: What it works with.
    """

    def __init__(self, parts: SearchParts) -> None:
        self._parts, self._study, self._board = parts, parts.study, parts.board
        self._goal, self._limits = parts.goal, Limits(parts.settings, parts.goal)
        self._objective = Objective(parts.measurer, parts.board, parts.goal, self._limits)
        self._proposer = Proposer(parts.study, parts.space, parts.settings, parts.board, parts.guide)
        self._reference, self._front, self._improved_at = 0.0, set[SpecConfig](), 0
        self.num_trials = 0
        self.noise_floor: float | None = None

    def run(self) -> str:
        """Search until there is a reason to stop, and return it."""
        self._enqueue()
        self._replay()
        log = self._parts.measurer.log
        while log.decision("stop_reason") is None:
            reason = "" if self._proposer.stale() else self._stop_reason()
            if not reason and self._next_trial():
                continue
            log.record("stop_reason", reason or self._proposer.end)
        return str(log.decision("stop_reason"))

    def _enqueue(self) -> None:
        if not self._study.get_trials(deepcopy=False):
            self._study.enqueue_trial({})
        opening = self._parts.guide.opening() if self._parts.guide else ()
        for config in (*opening, *self._parts.defaults):
            params = self._parts.space.to_params(config)
            if params is not None:
                self._study.enqueue_trial(dict(params), skip_if_exists=True)

    def _replay(self) -> None:
        """Take in the trials that had ended before this process began."""
        for frozen in self._study.get_trials(deepcopy=False):
            if frozen.state in FINISHED:
                for measurement in self._measurements(frozen.number):
                    self._board.pool.add(measurement)
                    self._parts.on_event(Measured(measurement))
                self._take_in(frozen)

    def _stop_reason(self) -> str:
        """Return why the search is over, or an empty string."""
        settings = self._parts.settings
        num_failed = len({one.config for one in self._parts.measurer.log.failures})
        if num_failed >= settings.max_failures:
            return f"{num_failed} configurations failed"
        if self.num_trials >= settings.trials:
            return "trials"
        if self.num_trials and self._parts.measurer.seconds("search") >= self._parts.seconds:
            return "minutes"
        patience = settings.patience
        if self._parts.guide is not None and not self._proposer.is_waiting():
            patience = min(patience, GUIDED_PATIENCE)
        if patience and self.num_trials - self._improved_at >= patience:
            return f"converged: no better for {patience} trials"
        return ""

    def _next_trial(self) -> bool:
        """Run one trial, or skip one that need not be measured; return False where nothing new is left."""
        trial = self._proposer.ask(self.num_trials)
        if trial is None:
            return False
        try:
            config = OFF if trial.number == 0 else self._parts.space.suggest(trial)
        except ConfigError as error:
            tell(self._study, trial, _broken("space", str(error)), skipped=True)
            return True
        known = self._known_outcome(trial, config)
        if known is not None:
            tell(self._study, trial, known, skipped=True)
            return True
        outcome = self._objective.evaluate(self._study, trial, config)
        tell(self._study, trial, outcome)
        self._take_in(self._study.get_trials(deepcopy=False)[trial.number])
        return True

    def _known_outcome(self, trial: optuna.Trial, config: SpecConfig) -> Outcome | None:
        """Return the outcome of a suggestion that is not measured: it failed before, or was measured often enough."""
        failure = self._parts.measurer.log.failure_of(config)
        if failure is not None and failure.trial != trial.number:
            return _broken("failed", f"failed before: {failure.reason}")
        num_repeats = count_repeats(self._parts.measurer.log, config, trial.number)
        if num_repeats >= self._parts.settings.max_repeats:
            # Told as failed: the sampler shall neither like nor dislike the point more than its measurements say.
            return Outcome(TrialState.FAIL, reason=f"measured {num_repeats} times before", constraints=())
        return None

    def _take_in(self, frozen: FrozenTrial) -> None:
        """Learn from a trial that has ended, and report it."""
        if was_skipped(frozen):
            return
        config = OFF if frozen.number == 0 else self._parts.space.config(frozen.params)
        measurements = self._measurements(frozen.number)
        self._proposer.tried.add(config)
        if frozen.number == 0:
            self._measure_noise(measurements)
            self._check_memory(measurements)
        else:
            self.num_trials += 1
            if frozen.state == TrialState.COMPLETE and is_feasible(frozen):
                self._board.enter(config)
        if self._parts.guide is not None:
            self._parts.guide.learn(self._searched())
        self._note_progress()
        report = self._report(frozen, config, measurements)
        self._parts.on_event(TrialDone(report))
        self._parts.on_trial(report)

    def _note_progress(self) -> None:
        """Keep when the best has last risen by more than noise, or the front has last got something new."""
        best, front = self._board.best(self._board.prompts), self._goal.front(self._board.configs, self._searched())
        if best.value > self._reference + self._value_error():
            self._reference, self._improved_at = best.value, self.num_trials
        if not self._front.issuperset(front):
            self._front.update(front)
            self._improved_at = self.num_trials

    def _measure_noise(self, measurements: list[Measurement]) -> None:
        log_ratio = self._goal.yardstick.log_ratio
        self.noise_floor = noise_floor({one.prompt_id: [log_ratio(one)] for one in measurements})
        self._objective.noise_floor = self.noise_floor
        self._parts.on_event(NoiseMeasured(self.noise_floor))
        action = noise_action(self.noise_floor)
        if action == "add repeats" and self._parts.settings.strict:
            raise MeasurementError(
                f"strict measurement needs a baseline that varies by at most {NOISE_REPEATS:.0%}, "
                f"but one timing varies by {self.noise_floor:.0%}"
            )
        if action != "none":
            message = (
                f"one timing of the baseline varies by {self.noise_floor:.0%}, more than {NOISE_WARNING:.0%}: "
                "intervals will be wide; close what else runs on this machine"
            )
            self._parts.on_event(Warned(message))

    def _check_memory(self, baseline: list[Measurement]) -> None:
        if self._limits.memory_excess(baseline) > 0:
            taken, limit = self._goal.memory_bytes(baseline), self._limits.max_memory_bytes
            message = (
                f"plain decoding alone takes {gigabytes(taken)}, over `study.max_memory_bytes` of {gigabytes(limit)} "
                f"({self._goal.memory}): nothing that is tried can be chosen"
            )
            self._parts.on_event(Warned(message))

    def _value_error(self) -> float:
        """Return the standard error that timing noise gives a trial's value."""
        return (self.noise_floor or 0.0) * math.sqrt(2.0 / len(self._board.prompts))

    def _report(self, frozen: FrozenTrial, config: SpecConfig, measurements: list[Measurement]) -> TrialReport:
        best = self._board.best(self._board.prompts)
        known = measurements if config.is_off else [one for one in self._searched() if one.config == config]
        is_failed = frozen.constraints.get("failed", 0.0) > 0.0
        return TrialReport(
            number=frozen.number,
            config=config,
            state="failed" if is_failed else frozen.state.name.lower(),
            params=dict(frozen.params),
            measurements=tuple(measurements),
            estimates={one.name: ratio for one in YARDSTICKS if (ratio := one.estimate(known)) is not None},
            repeat=count_repeats(self._parts.measurer.log, config, frozen.number),
            reason=reason_of(frozen),
            best_config=best.config,
            yardstick=self._goal.yardstick,
            best_ratio=math.exp(best.value),
            num_trials=self.num_trials,
            quality=quality_from(measurements) if measurements else None,
        )

    def _searched(self) -> list[Measurement]:
        return [one for one in self._parts.measurer.log.measurements if one.stage == "search"]

    def _measurements(self, number: int) -> list[Measurement]:
        return [one for one in self._searched() if one.trial == number]


def _broken(constraint: str, reason: str) -> Outcome:
    return Outcome(TrialState.PRUNED, reason=reason, constraints=((constraint, 1.0),))
