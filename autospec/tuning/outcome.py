"""From what was confirmed, or known so far, to a policy and a result.

Takes configurations as decided; adds the figures that belong to them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autospec.comparison import Estimate, speedup
from autospec.policy import Choice, Policy, build_policy, evidence_from, reproduction
from autospec.policy import Row as PolicyRow
from autospec.records import Measurement, p95
from autospec.tuning.confirm import Confirmation, Row
from autospec.tuning.limits import Limits
from autospec.tuning.log import Failure
from autospec.tuning.pareto import pareto_set
from autospec.tuning.pool import OFF, Leaderboard
from autospec.tuning.predicted import Predicted
from autospec.tuning.result import Comparison, Latency, Throughput, TokenIdentity, TuningResult
from autospec.tuning.situations import CHOICE, JUDGEMENT, SituationRow
from autospec.tuning.task import Task
from autospec.yardsticks import YARDSTICKS, Yardstick

_NOTHING = Estimate(1.0, 1.0, 1.0, 0)


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What is known of a run besides its confirmation.

    Args:
        measurements: All of it.
        stop_reason: Why the search ended.
        noise_floor: Of the search.
        wall_seconds: By phase.
        failures: Configurations that could not be measured.
        predicted: What was predicted, where something was.
    """

    measurements: tuple[Measurement, ...]
    stop_reason: str
    noise_floor: float
    wall_seconds: dict[str, float]
    failures: tuple[Failure, ...] = ()
    predicted: Predicted | None = None

    @property
    def num_trials(self) -> int:
        """Trials of which something was measured."""
        return len({one.trial for one in self.measurements if one.stage == "search"})


def complete_result(
    task: Task, confirmation: Confirmation, run: Circumstances, situations: Sequence[SituationRow] = ()
) -> TuningResult:
    """Return the result of a run that came to its end."""
    confirmed = [one for one in run.measurements if one.stage == "confirm"]
    used = [one for one in confirmed if one.config == confirmation.config_of(one.category)]
    policy = _policy(task, confirmation, confirmed, [one.policy_row for one in situations])
    return replace(_result(task, confirmation, run, policy, used), situations=tuple(situations))


def partial_result(task: Task, board: Leaderboard | None, run: Circumstances) -> TuningResult:
    """Return what an interrupted run knows: the best of the search, if its interval on tune prompts is above 1.0."""
    best = board.best(board.prompts).config if board else OFF
    estimate = speedup(board.pool.ratios(best, board.prompts)) if board and not best.is_off else _NOTHING
    row = Row(best, estimate) if estimate.low > 1.0 else Row(OFF, _NOTHING)
    confirmation = Confirmation(row.ratio, row, {}, {}, ())
    used = [one for one in run.measurements if one.stage == "search" and one.config == row.config]
    policy = _build(task, Choice(row.config), {})
    return replace(_result(task, confirmation, run, policy, used), finished=False)


def _result(
    task: Task, confirmation: Confirmation, run: Circumstances, policy: Policy, used: Sequence[Measurement]
) -> TuningResult:
    """Add the figures; `used` are the measurements under the configurations of the policy."""
    figures = _Figures(confirmation, used, run.measurements)
    return TuningResult(
        objective=task.settings.objective,
        policy=policy,
        measurements=run.measurements,
        stop_reason=run.stop_reason,
        finished=True,
        confirmation=confirmation,
        comparisons=tuple(figures.comparison(one, task.goal.yardstick) for one in YARDSTICKS),
        decode_speedup=figures.ratio(lambda one: one.log_decode_speedup),
        throughput=figures.throughput(),
        latency=figures.latency(),
        identity=TokenIdentity.of(run.measurements),
        noise_floor=run.noise_floor,
        num_live_trials=run.num_trials,
        num_replayed_trials=run.predicted.num_priced if run.predicted else 0,
        wall_seconds=run.wall_seconds,
        failures=run.failures,
        pareto=pareto_set(run.measurements, Limits(task.settings, task.goal), task.goal.axes),
        predicted=run.predicted,
    )


def _policy(
    task: Task, confirmation: Confirmation, confirmed: Sequence[Measurement], situations: Sequence[PolicyRow]
) -> Policy:
    by_category = {
        name: _choice(task, row, [one for one in confirmed if one.category == name and one.config == row.config])
        for name, row in confirmation.categories.items()
    }
    overall = confirmation.overall
    choice = _choice(task, overall, [one for one in confirmed if one.config == overall.config])
    return _build(task, choice, by_category, situations)


def _choice(task: Task, row: Row, measurements: Sequence[Measurement]) -> Choice:
    """Return a configuration with its evidence, in which the interval that it was judged by stands."""
    if row.config.is_off:
        return Choice(OFF)
    decisive: dict[str, Any] = {task.goal.yardstick.name: row.ratio}
    return Choice(row.config, replace(evidence_from(measurements), objective=task.settings.objective, **decisive))


def _build(
    task: Task, overall: Choice, by_category: dict[str, Choice], situations: Sequence[PolicyRow] = ()
) -> Policy:
    return build_policy(
        task.decoder,
        task.workload,
        task.machine,
        overall,
        by_category,
        reproduction(task.command, task.settings.seed),
        situations,
    )


class _Figures:
    """Figures of a policy on the prompts that it was confirmed on; in an interrupted run, searched on.

    Args:
        confirmation: What is used where.
        used: Measurements under what is used.
        measurements: Of the whole run.
    """

    def __init__(
        self, confirmation: Confirmation, used: Sequence[Measurement], measurements: Sequence[Measurement]
    ) -> None:
        self._confirmation, self._all = confirmation, measurements
        self._on = [one for one in used if not one.config.is_off]
        confirmed = [one for one in measurements if one.stage == "confirm"]
        self._off = [one for one in confirmed if confirmation.config_of(one.category).is_off]

    def comparison(self, yardstick: Yardstick, decisive: Yardstick) -> Comparison:
        """Return what the policy is worth by a yardstick; by the decisive one, with the intervals that decided."""
        rows, overall = self._confirmation.categories, self._confirmation.overall
        if yardstick == decisive:
            by_category = {name: row.ratio for name, row in rows.items()}
            return Comparison(yardstick, self._confirmation.ratio, by_category, overall.ratio)
        by_category = {name: self.ratio(yardstick.log_ratio, name) for name in rows}
        return Comparison(yardstick, self.ratio(yardstick.log_ratio), by_category, self._of_overall(yardstick))

    def ratio(self, log_ratio: Callable[[Measurement], float], category: str | None = None) -> Estimate:
        """Return a ratio over all prompts, or those of a category; prompts with speculation off count as 1."""
        on = [one for one in self._on if category in (None, one.category)]
        off = {one.prompt_id for one in self._off if category in (None, one.category)}
        if not on:
            rows = self._confirmation.categories
            known = self._confirmation.ratio if category is None else rows[category].ratio
            return Estimate(1.0, 1.0, 1.0, known.num_prompts)
        ratios: dict[str, list[float]] = {prompt_id: [0.0] for prompt_id in off}
        for one in on:
            ratios.setdefault(one.prompt_id, []).append(log_ratio(one))
        return speedup(ratios)

    def _of_overall(self, yardstick: Yardstick) -> Estimate:
        """Return what the configuration for all is worth by itself, on the prompts of all categories."""
        row = self._confirmation.overall
        confirmed = [one for one in self._all if one.stage == "confirm"] or self._on
        known = None if row.config.is_off else yardstick.estimate(one for one in confirmed if one.config == row.config)
        return known or Estimate(1.0, 1.0, 1.0, row.ratio.num_prompts)

    def throughput(self) -> Throughput:
        """Return total tokens over total seconds of the policy and the baseline."""
        on, off = self._on, self._timed_off()
        baseline_seconds = sum(one.baseline_seconds for one in (*on, *off))
        baseline_tokens = sum(one.baseline_num_tokens for one in (*on, *off))
        if not baseline_seconds:
            return Throughput(0.0, 0.0)
        seconds = sum(one.seconds for one in on) + sum(one.baseline_seconds for one in off)
        tokens = sum(one.num_tokens for one in on) + sum(one.baseline_num_tokens for one in off)
        return Throughput(baseline_tokens / baseline_seconds, tokens / seconds)

    def latency(self) -> Latency:
        """Return the 95th percentile of all gaps together, of the policy and the baseline."""
        on, off = self._on, self._timed_off()
        off_gaps = [gap for one in off for gap in one.baseline_gap_seconds]
        baseline = [*off_gaps, *(gap for one in on for gap in one.baseline_gap_seconds)]
        own = [*off_gaps, *(gap for one in on for gap in one.stats.gap_seconds)]
        return Latency(p95(baseline), p95(own)) if baseline and own else Latency(0.0, 0.0)

    def _timed_off(self) -> list[Measurement]:
        """Return those whose baseline stands for the policy where speculation is off.

        Where it is off for all and nothing was confirmed, those of the whole run, batches left out.
        """
        alone = [one for one in self._all if one.stage not in (CHOICE, JUDGEMENT)]
        return alone if not self._on and not self._off else self._off
