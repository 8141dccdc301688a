"""Which point of a space is tried next: what was cut short, what is enqueued, then what the sampler would try.

Every few trials it proposes for one category alone; a space that is exhausted ends it. Measures and tells nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from autospec.config import SpecConfig
from autospec.tuning.guide import Guide
from autospec.tuning.objective import was_skipped
from autospec.tuning.pool import Leaderboard
from autospec.tuning.samplers import NUM_STARTUP_TRIALS, make_sampler, propose
from autospec.tuning.settings import StudySettings
from autospec.tuning.space import SearchSpace

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
# Suggestions in a row that need no measurement, before one is drawn that does; fewer each time it comes to that, so
# that a sampler that has nothing new to say does not make a study quadratic.
MAX_ASKS = 10
_SPECIALIST_TURN = 3  # every third trial is for a category whose best is not the best of all


class Proposer:
    """Proposes trials of a study.

    Args:
        study: The Optuna study.
        space: What may be tried, for the workload's decoding settings.
        settings: Sampler and seed.
        board: What the search knows so far.
        guide: To what is predicted; None leaves everything to the sampler.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: SearchSpace,
        settings: StudySettings,
        board: Leaderboard,
        guide: Guide | None = None,
    ) -> None:
        self._study, self._space, self._settings, self._board, self._guide = study, space, settings, board, guide
        self.tried: set[SpecConfig] = set()
        self._num_drawn = 0
        self.end = "space exhausted"

    def stale(self) -> FrozenTrial | None:
        """Return the trial that was running when an earlier process ended."""
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return running[0] if running else None

    def is_waiting(self) -> bool:
        """Return whether something is enqueued."""
        return bool(self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def ask(self, num_trials: int) -> optuna.Trial | None:
        """Return the next trial: cut short, enqueued, or filled by the sampler; None where nothing is left.

        Args:
            num_trials: How many were measured so far, the baseline's not counted.
        """
        trials = self._study.get_trials(deepcopy=False)
        stale = self.stale()
        if stale is not None:
            self._study.sampler = self._sampler(stale.number)
            return optuna.trial.Trial(self._study, stale._trial_id)  # what was suggested before stays so
        waiting = [trial.number for trial in trials if trial.state == TrialState.WAITING]
        number = min(waiting, default=len(trials))
        if not waiting and not self._propose(trials, num_trials):
            return None
        self._study.sampler = self._sampler(number)
        return self._study.ask()

    def _propose(self, trials: list[FrozenTrial], num_trials: int) -> bool:
        """Enqueue a point where the sampler shall not choose it; return False where nothing is left to try."""
        if self._guide is not None:
            # What the best of several noisy means says of itself is too much; nothing would seem better.
            measured = self._board.ranked(self._board.prompts)
            best = max([0.0, *(self._guide.believed(one.config, one.value) for one in measured)])  # off is one, too
            config = self._guide.next(self.tried, best)
            found = None if config is None else self._space.to_params(config)
            if found is not None:
                self._study.enqueue_trial(dict(found))
                return True
            if self._guide.is_complete:
                self.end = "converged: nothing is predicted to be faster"
                return False
        if _num_skipped_last(trials) >= max(1, MAX_ASKS // (1 + self._num_drawn)):
            self._num_drawn += 1
            params: Mapping[str, Any] | None = self._draw_unseen(len(trials))
            if params is None:
                return False
        else:
            params = self._propose_specialist(trials, num_trials)
            if params is None and self._settings.sampler == "gp":
                complete = [(trial, trial.values) for trial in trials[1:] if trial.state == TrialState.COMPLETE]
                params = propose(self._sampler(len(trials), "gp"), complete, self._space, self._study.directions)
        if params is not None:
            self._study.enqueue_trial(dict(params))
        return True

    def _sampler(self, number: int, kind: str = "tpe") -> BaseSampler:
        return make_sampler(kind, self._settings.seed, number)

    def _draw_unseen(self, number: int) -> Mapping[str, Any] | None:
        space, rng = self._space, np.random.default_rng([self._settings.seed, number])
        if space.unseen(self.tried) is False:
            return None
        for _ in range(1000):
            params = space.draw(rng)
            if params is not None and space.config(params) not in self.tried:
                return params
        return None

    def _propose_specialist(self, trials: list[FrozenTrial], num_trials: int) -> Mapping[str, Any] | None:
        """Return what the sampler would try for one category alone, where its best is not that of all, in turns."""
        turn, waits = divmod(num_trials, _SPECIALIST_TURN)
        if num_trials < NUM_STARTUP_TRIALS or waits:
            return None
        overall = self._board.best(self._board.prompts).config
        leaders = {name: self._board.best(self._board.of_category(name)).config for name in self._board.categories}
        special = [name for name, config in leaders.items() if not config.is_off and config != overall]
        if not special:
            return None
        prompts = self._board.of_category(special[turn % len(special)])
        measured = [trial for trial in trials[1:] if trial.state in FINISHED and not was_skipped(trial)]
        values = [self._board.pool.value(self._space.config(trial.params), prompts) for trial in measured]
        known = [(trial, [value]) for trial, value in zip(measured, values, strict=True) if value is not None]
        return propose(self._sampler(len(trials), self._settings.sampler), known, self._space)


def _num_skipped_last(trials: list[FrozenTrial]) -> int:
    def skipped() -> Iterator[FrozenTrial]:
        for trial in reversed(trials):
            if not was_skipped(trial):
                return
            yield trial

    return sum(1 for _ in skipped())
