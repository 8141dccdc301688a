"""A tuning study told line by line: the plan, one line for each trial, the later phases.

Turns the events of `autospec.tuning` into lines of a `Terminal`; knows nothing of how they come about.
"""

from __future__ import annotations

from collections.abc import Iterator

from autospec.cli.console import Terminal, minutes, ratio
from autospec.tuning.events import (
    OVER_LOSS,
    OVER_MEMORY,
    Event,
    Guided,
    Measured,
    NoiseMeasured,
    PhaseStarted,
    PlanMade,
    StudyPlan,
    TrialDone,
    TrialReport,
    Warned,
)
from autospec.yardsticks import SPEED

_PHASES = {
    "record": "recording what drafters would draft on tune prompts",
    "profile": "profiling what steps cost here",
    "search": "search: one line for each trial",
    "finalist": "final choice, on fresh repeats of tune prompts",
    "confirm": "confirmation, on held-out prompts that nothing has seen",
    "situation": "choice on tune prompts",
    "situation_confirm": "confirmation on held-out prompts",
}


class Narrator:
    """Tells a study as it goes.

    Args:
        terminal: Where to.
    """

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._trials = 0

    def __call__(self, event: Event) -> None:
        """Tell one event."""
        match event:
            case PlanMade(plan):
                self._trials = plan.settings.trials
                self._terminal.lines(plan_lines(plan))
            case PhaseStarted(phase, num_measurements, configs):
                self._terminal.line()
                self._terminal.line(_phase(phase))
                for config in configs:
                    self._terminal.line(f"  {config.short()}")
                if phase in ("finalist", "confirm") and not configs:
                    self._terminal.line("  nothing: no configuration is left")
                self._terminal.begin(phase, num_measurements)
            case Guided():
                self._terminal.lines(guided_lines(event))
            case Measured():
                self._terminal.advance()
            case NoiseMeasured(noise_floor):
                self._terminal.line(f"noise of one timing (baseline against itself): {noise_floor:.1%}")
            case TrialDone(report):
                self._terminal.line(trial_line(report, self._trials))
            case Warned(message):
                self._terminal.line(f"warning: {message}")


def _phase(name: str) -> str:
    """Say what a phase does; of a situation, in which one."""
    kind, _, situation = name.partition(": ")
    return f"{situation}: {_PHASES[kind]}" if situation else _PHASES[kind]


def guided_lines(told: Guided) -> Iterator[str]:
    """Say what is predicted."""
    num_others = told.num_asked - told.num_priced - told.num_left
    expected = f", {told.num_expected:,} of them by expected steps" if told.num_expected else ""
    left = f"; {num_others:,} others only measuring can tell" if num_others else ""
    left += f"; {told.num_left:,} were left, because recording their drafts takes too long" if told.num_left else ""
    yield (
        f"priced {told.num_priced:,} of {told.num_asked:,} configurations{expected}{left}; "
        f"noise of a profiled step {told.noise:.1%}"
    )
    for config, value in told.best:
        yield f"  predicted {value:.2f}x  {config.short()}{' (expected)' * (config in told.expected)}"


def plan_lines(plan: StudyPlan) -> Iterator[str]:
    """Say what is going to be done, and the arithmetic of its time."""
    settings, machine = plan.settings, plan.fingerprint
    size = "more than can be counted" if plan.space_size is None else f"{plan.space_size:,} configurations"
    drafters = ", ".join(name if name == source else f"{name} = {source}" for name, source in plan.drafters.items())
    categories, form = ", ".join(plan.categories), plan.dtype + ", compiled" * plan.compile
    yield "plan"
    yield f"  target      {plan.target}"
    yield f"  drafters    {drafters or 'none'}"
    yield (
        f"  device      {plan.device}, {form}: {machine.get('device_name', 'unknown')}, "
        f"{machine.get('num_cores', '?')} cores, {machine.get('num_threads', '?')} threads"
    )
    yield f"  workload    {plan.workload} ({categories}), {plan.decoding}, {plan.max_new_tokens} new tokens"
    yield f"  space       {size}"
    yield f"  objective   {settings.objective}"
    yield f"  trials      up to {settings.trials}, sampler {settings.sampler}, seed {settings.seed}"
    yield (
        f"  time        {plan.seconds_per_prompt:.2f} s for a prompt with its baseline x {plan.num_search_prompts} "
        f"prompts = {minutes(plan.seconds_per_trial)} a trial at most"
    )
    yield (
        f"              search {minutes(plan.search_seconds)} at most ({settings.trials} trials and the baseline's: "
        f"{minutes(plan.seconds_per_trial * (settings.trials + 1))})"
    )
    yield (
        f"              choice on {plan.num_finalist_prompts} prompts, confirmation on {plan.num_held_out_prompts}: "
        f"{minutes(plan.confirm_seconds)}"
    )
    yield f"              estimated {plan.estimated_minutes:.1f} minutes, budget {_budget(settings.minutes)}"
    if plan.num_logged:
        yield f"  resumed     {plan.num_logged} measurements are in the log already"


def _budget(value: float) -> str:
    return f"{value:g} minutes" if value else "no limit"


def trial_line(report: TrialReport, trials: int) -> str:
    """Return the line of one trial: number, configuration, speed, speedup, state, best so far.

    Where something else than speed decides, that too, and it is what the best so far is told by.
    """
    number = "baseline" if report.config.is_off and report.number == 0 else f"{report.num_trials}/{trials}"
    best = report.best_config.short()
    if not report.best_config.is_off:
        best = f"{report.best_ratio:.2f}x {best}"
    state = f"{report.state} ({report.reason})" if report.reason else report.state
    if report.reason.startswith((OVER_MEMORY, OVER_LOSS)):
        state = report.reason
    again = f" (again, {report.repeat + 1})" if report.repeat else ""
    if report.quality is not None and report.quality.loss is not None and report.state == "complete":
        state += f", loss {report.quality.loss.value:.3f}" * (OVER_LOSS not in state)
    decisive = "" if report.yardstick == SPEED else f"{report.yardstick.title} {ratio(report.ratio):<20}  "
    return (
        f"{number:>8}  {report.config.short() + again:<42}  {report.tokens_per_second:7.1f} tok/s  "
        f"{ratio(report.speedup):<20}  {decisive}{state:<9}  best {best}"
    )
