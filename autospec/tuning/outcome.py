"""From what was confirmed, or known so far, to a policy and a result.

Takes configurations as decided; adds the figures that belong to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from autospec.comparison import Estimate, speedup
from autospec.policy import Choice, Policy, build_policy, evidence_from, reproduction
from autospec.records import Measurement
from autospec.tuning.confirm import Confirmation, Row
from autospec.tuning.log import Failure
from autospec.tuning.pareto import pareto_set
from autospec.tuning.pool import OFF, Leaderboard
from autospec.tuning.predicted import Predicted
from autospec.tuning.quality import LossLimit
from autospec.tuning.result import Throughput, TokenIdentity, TuningResult
from autospec.tuning.task import Task

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


def complete_result(task: Task, confirmation: Confirmation, run: Circumstances) -> TuningResult:
    """Return the result of a run that came to its end."""
    confirmed = [one for one in run.measurements if one.stage == "confirm"]
    used = [one for one in confirmed if one.config == confirmation.config_of(one.category)]
    return _result(task, confirmation, run, _policy(task, confirmation, confirmed), used)


def partial_result(task: Task, board: Leaderboard | None, run: Circumstances) -> TuningResult:
    """Return what an interrupted run knows: the best of the search, if its interval on tune prompts is above 1.0."""
    best = board.best(board.prompts).config if board else OFF
    estimate = speedup(board.pool.ratios(best, board.prompts)) if board and not best.is_off else _NOTHING
    row = Row(best, estimate) if estimate.low > 1.0 else Row(OFF, _NOTHING)
    confirmation = Confirmation(row.speedup, row, {}, {}, ())
    used = [one for one in run.measurements if one.stage == "search" and one.config == row.config]
    policy = _build(task, Choice(row.config), {})
    return replace(_result(task, confirmation, run, policy, used), finished=False)


def _result(
    task: Task, confirmation: Confirmation, run: Circumstances, policy: Policy, used: Sequence[Measurement]
) -> TuningResult:
    """Add the figures; `used` are the measurements under the configurations of the policy."""
    return TuningResult(
        policy=policy,
        measurements=run.measurements,
        stop_reason=run.stop_reason,
        finished=True,
        confirmation=confirmation,
        decode_speedup=_decode_speedup(confirmation, used, run.measurements),
        throughput=_throughput(confirmation, used, run.measurements),
        identity=TokenIdentity.of(run.measurements),
        noise_floor=run.noise_floor,
        num_live_trials=run.num_trials,
        num_replayed_trials=run.predicted.num_priced if run.predicted else 0,
        wall_seconds=run.wall_seconds,
        failures=run.failures,
        pareto=pareto_set(run.measurements, LossLimit(task.settings.quality.max_loss)),
        predicted=run.predicted,
    )


def _policy(task: Task, confirmation: Confirmation, confirmed: Sequence[Measurement]) -> Policy:
    by_category = {
        name: _choice(row, [one for one in confirmed if one.category == name and one.config == row.config])
        for name, row in confirmation.categories.items()
    }
    overall = confirmation.overall
    return _build(task, _choice(overall, [one for one in confirmed if one.config == overall.config]), by_category)


def _choice(row: Row, measurements: Sequence[Measurement]) -> Choice:
    """Return a configuration with its evidence, whose interval is the one that it was judged by."""
    if row.config.is_off:
        return Choice(OFF)
    return Choice(row.config, replace(evidence_from(measurements), speedup=row.speedup))


def _build(task: Task, overall: Choice, by_category: dict[str, Choice]) -> Policy:
    return build_policy(
        task.decoder,
        task.workload,
        task.machine,
        overall,
        by_category,
        reproduction(task.command, task.settings.seed),
    )


def _decode_speedup(
    confirmation: Confirmation, used: Sequence[Measurement], measurements: Sequence[Measurement]
) -> Estimate:
    """Return the speedup without prefills; prompts for which speculation is off count as 1."""
    if all(one.config.is_off for one in used):
        return Estimate(1.0, 1.0, 1.0, confirmation.speedup.num_prompts)
    ratios: dict[str, list[float]] = {prompt_id: [0.0] for prompt_id in _off_prompts(confirmation, measurements)}
    for one in used:
        if not one.config.is_off:
            ratios.setdefault(one.prompt_id, []).append(one.log_decode_speedup)
    return speedup(ratios)


def _throughput(
    confirmation: Confirmation, used: Sequence[Measurement], measurements: Sequence[Measurement]
) -> Throughput:
    """Return total tokens over total seconds of the policy and the baseline.

    Where speculation is off, the policy's timing is the baseline's of any measurement on that prompt; where it is off
    for all and nothing was confirmed, of the whole run.
    """
    on = [one for one in used if not one.config.is_off]
    off_prompts = _off_prompts(confirmation, measurements)
    off = [one for one in measurements if one.stage == "confirm" and one.prompt_id in off_prompts]
    if not on and not off:
        off = list(measurements)
    baseline_seconds = sum(one.baseline_seconds for one in (*on, *off))
    baseline_tokens = sum(one.baseline_num_tokens for one in (*on, *off))
    if not baseline_seconds:
        return Throughput(0.0, 0.0)
    seconds = sum(one.seconds for one in on) + sum(one.baseline_seconds for one in off)
    tokens = sum(one.num_tokens for one in on) + sum(one.baseline_num_tokens for one in off)
    return Throughput(baseline_tokens / baseline_seconds, tokens / seconds)


def _off_prompts(confirmation: Confirmation, measurements: Sequence[Measurement]) -> set[str]:
    """Return held-out prompts of categories for which speculation is off."""
    return {
        one.prompt_id for one in measurements if one.stage == "confirm" and confirmation.config_of(one.category).is_off
    }
