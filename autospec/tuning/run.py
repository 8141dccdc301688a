"""The whole of a tuning run: plan, search, final choice, confirmation, files. Goes on where a killed run ended.

What was decided is recorded before it is acted on, so that no decision is made twice. Knows no command line.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from autospec.errors import ConfigError
from autospec.policy.files import write_atomically
from autospec.rules import ACCEPT_RULES
from autospec.tuning.budget import Budget
from autospec.tuning.confirm import Confirmation, confirm
from autospec.tuning.defaults import engine_defaults
from autospec.tuning.events import PhaseStarted, PlanMade, StudyPlan, Warned
from autospec.tuning.extent import Extent
from autospec.tuning.finalists import Chosen, Finalists, choose, measure_all, spread_over
from autospec.tuning.identity import check_identity
from autospec.tuning.journal import open_study
from autospec.tuning.log import MEASUREMENTS_FILE, MeasurementLog
from autospec.tuning.measuring import Measurer
from autospec.tuning.outcome import Circumstances, complete_result, partial_result
from autospec.tuning.plan import make_plan
from autospec.tuning.pool import OFF, Leaderboard, Pool
from autospec.tuning.predicted import look_back, predictions_json
from autospec.tuning.quality import LossLimit
from autospec.tuning.result import TOKENS_PER_EXCUSE, TuningResult
from autospec.tuning.situations import SituationRow, Situations, lengths_of, situations_of
from autospec.tuning.study import Search, SearchParts
from autospec.tuning.task import Task

if TYPE_CHECKING:
    from autospec.tuning.preparing import Preparation

JOURNAL_FILE, POLICY_FILE = "study.journal", "policy.json"
RESULT_FILE, PREDICTIONS_FILE = "result.json", "predictions.json"
_NUM_WARM_UP_PROMPTS = 2
_PREPARING = ("record", "profile", "replay")  # phases whose time is the search's


def run_task(task: Task) -> TuningResult:
    """Run a task to its end, or until Ctrl-C; see `autospec.tune`."""
    try:
        task.output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"results must go to a folder that can be made, but {task.output_dir}: {error}") from error
    log = MeasurementLog(task.output_dir / MEASUREMENTS_FILE)
    try:
        check_identity(task, log)
        return _Run(task, log).run()
    finally:
        log.close()


class _Run:
    """One process's part of a run."""

    def __init__(self, task: Task, log: MeasurementLog) -> None:
        self._task, self._log = task, log
        self._measurer = Measurer(task.runner, log, task.on_event, task.now)
        self._extent, self._limit = Extent(task, self._measurer), LossLimit(task.settings.quality.max_loss)
        self._board: Leaderboard | None = None
        self._searching: Search | None = None
        self._prepared: Preparation | None = None
        self._confirmed: Confirmation | None = None

    def run(self) -> TuningResult:
        try:
            confirmation, situations = self._confirmation()
        except KeyboardInterrupt:
            known = self._circumstances("interrupted")
            if self._confirmed is None:
                result = partial_result(self._task, self._board, known)
            else:  # only batches and lengths of prompts were not judged
                result = replace(complete_result(self._task, self._confirmed, known), finished=False)
            self._task.tracker.interrupt(result, self._write(result))
            return result
        # From here on Ctrl-C must not put a partial result in place of the confirmed one.
        circumstances = self._circumstances(self._log.decision("stop_reason"))
        result = complete_result(self._task, confirmation, circumstances, situations)
        files = self._write(result)
        self._warn_of_excuses(result)
        self._task.tracker.finish(result, files)
        return result

    def _warn_of_excuses(self, result: TuningResult) -> None:
        identity = result.identity
        if identity.has_too_many_excuses:
            message = (
                f"at most 1 token in {TOKENS_PER_EXCUSE:,} may differ by a tie of the target, "
                f"but {identity.num_excused} of {identity.num_tokens:,} did"
            )
            self._task.on_event(Warned(message))

    def _confirmation(self) -> tuple[Confirmation, tuple[SituationRow, ...]]:
        with self._measurer.phase("warm_up"):
            plan, budget = self._plan()
        self._task.on_event(PlanMade(plan))
        self._task.tracker.start(plan)
        if self._task.prepare is not None:
            prompts = self._task.workload.tune[: budget.num_search]
            self._prepared = self._task.prepare(self._task, self._log, self._measurer, prompts)
        with self._measurer.phase("search"):
            board = self._search(plan, budget)
        with self._measurer.phase("finalist"):
            chosen = self._choose(board, plan)
        with self._measurer.phase("confirm"):
            self._confirmed = confirmation = self._confirm(chosen, plan)
        return confirmation, self._situations(board, confirmation, plan)

    def _situations(self, board: Leaderboard, confirmation: Confirmation, plan: StudyPlan) -> tuple[SituationRow, ...]:
        """Judge the batches and lengths of prompts that the workload asks for."""
        task, minutes = self._task, self._task.situation_minutes
        if not situations_of(task.workload):
            return ()
        judging = Situations(
            workload=task.workload,
            measurer=self._measurer,
            lengths=lengths_of(task.decoder),
            seconds_per_prompt=plan.seconds_per_prompt,
            on_event=task.on_event,
            yardstick=task.goal.yardstick,
            predicted=self._prepared.guide.ranked_for if self._prepared else lambda batch_size, prompt_length: (),
        )
        predicted = [one.config for one in self._prepared.guide.ranked()] if self._prepared else []
        known = [*predicted, *(one.config for one in board.ranked(board.prompts))]
        # What may be lost was judged one prompt at a time, and does not depend on who sits beside.
        confirmed = {confirmation.overall.config, *(row.config for row in confirmation.categories.values())}
        allowed = [one for one in known if one in confirmed or ACCEPT_RULES[one.accept_rule].is_lossless]
        ranked = [confirmation.overall.config, *allowed]
        return judging.judge(ranked, minutes * 60 if task.settings.minutes else math.inf)

    def _plan(self) -> tuple[StudyPlan, Budget]:
        seconds = float(self._log.decide("seconds_per_prompt", self._warm_up))
        return make_plan(self._task, seconds, self._log.num_logged)

    def _warm_up(self) -> float:
        """Measure the baseline on a few prompts, keep nothing of it but how long that takes."""
        prompts = self._task.workload.tune[:_NUM_WARM_UP_PROMPTS]
        timed = [self._task.runner.measure(OFF, one, stage="warm_up", trial=-1, repeat=0) for one in prompts]
        return sum(one.seconds + one.baseline_seconds for one in timed) / len(timed)

    def _search(self, plan: StudyPlan, budget: Budget) -> Leaderboard:
        task = self._task
        prompts = task.workload.tune[: budget.num_search]
        task.on_event(PhaseStarted("search", len(prompts) * (1 + task.settings.trials)))
        self._board = Leaderboard(Pool(yardstick=task.goal.yardstick), prompts)
        sampling = task.workload.sampling
        drafters = {name: drafter.has_probs for name, drafter in task.decoder.drafters.items()}
        self._searching = Search(
            SearchParts(
                study=open_study(task.output_dir / JOURNAL_FILE, task.goal.directions),
                space=self._prepared.space if self._prepared else task.space.under(sampling),
                settings=task.settings,
                goal=task.goal,
                measurer=self._measurer,
                board=self._board,
                defaults=engine_defaults(drafters, sampling.is_greedy),
                seconds=max(0.0, budget.search_seconds - sum(map(self._measurer.seconds, _PREPARING))),
                guide=self._prepared.guide if self._prepared else None,
                on_event=task.on_event,
                on_trial=task.tracker.log_trial,
            )
        )
        self._searching.run()
        return self._board

    @property
    def _noise_floor(self) -> float:
        """What the search measured; 0 before it has."""
        return (self._searching and self._searching.noise_floor) or 0.0

    def _choose(self, board: Leaderboard, plan: StudyPlan) -> Chosen:
        """Measure the finalists again, on prompts that the search has not used as far as there are such."""
        guide = self._prepared.guide if self._prepared else None
        believed = guide.believed if guide else None
        recorded = self._log.decide(
            "finalists", lambda: self._extent.finalists(board, plan, self._noise_floor, believed)
        )
        finalists = Finalists.from_json(recorded["finalists"])
        prompts = self._extent.finalist_prompts(recorded["num_prompts"])
        repeats = int(recorded["repeats"])
        total = sum(len(finalists.of_prompt(prompt)) for prompt in prompts) * repeats
        self._task.on_event(PhaseStarted("finalist", total, finalists.configs))
        measured, failed = measure_all(self._measurer, prompts, finalists, "finalist", repeats)
        broken = self._limit.broken(finalists.configs, measured)
        for config, reason in broken.items():
            if config not in failed:
                self._task.on_event(Warned(f"{config.short()} is {reason} in the final choice, and left out"))
        out = failed | set(broken)
        beliefs = guide.beliefs(finalists.overall) if guide else None
        chosen = choose(finalists, Pool(measured, self._task.goal.yardstick), prompts, out, beliefs)
        front = self._task.goal.front([one for one in finalists.configs if one not in out], measured)
        return replace(chosen, beside=spread_over(front, self._task.settings.finalists))

    def _confirm(self, chosen: Chosen, plan: StudyPlan) -> Confirmation:
        """Measure what was chosen on held-out prompts, once."""
        recorded = self._log.decide("chosen", lambda: self._extent.confirmation(chosen, plan, self._noise_floor))
        chosen = Chosen.from_json(recorded["chosen"])
        prompts = self._task.workload.held_out[: recorded["num_prompts"]]
        repeats = int(recorded["repeats"])
        total = len(prompts) * len(chosen.configs) * repeats
        self._task.on_event(PhaseStarted("confirm", total, chosen.configs))
        measured, failed = measure_all(self._measurer, prompts, chosen, "confirm", repeats)
        kept, notes = self._limit.kept(chosen.without(failed), measured)
        confirmation = confirm(kept, Pool(measured, self._task.goal.yardstick), prompts)
        for note in (*notes, *confirmation.disputes()):
            self._task.on_event(Warned(note))
        return confirmation

    def _circumstances(self, stop_reason: str) -> Circumstances:
        return Circumstances(
            tuple(self._log.measurements),
            stop_reason,
            self._noise_floor,
            self._measurer.wall_seconds(),
            tuple(self._log.failures),
            look_back(self._prepared, self._log.measurements, self._noise_floor) if self._prepared else None,
        )

    def _write(self, result: TuningResult) -> list[Path]:
        """Write policy and result, and return all files of the run; one interrupted early has no journal."""
        folder = self._task.output_dir
        result.policy.save(folder / POLICY_FILE)
        text = json.dumps(result.to_json(), indent=2, allow_nan=False) + "\n"
        write_atomically(folder / RESULT_FILE, text)
        if self._prepared is not None:
            write_atomically(folder / PREDICTIONS_FILE, json.dumps(predictions_json(self._prepared)) + "\n")
        names = (POLICY_FILE, RESULT_FILE, MEASUREMENTS_FILE, JOURNAL_FILE, PREDICTIONS_FILE)
        files = [folder / name for name in names]
        return [path for path in files if path.exists()]
