"""On how many prompts, and how often, the final choice and the confirmation measure: what the time left allows.

Everything decided here is recorded in the log before it is acted on, by whoever asks. Measures nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from autospec.comparison import noise_action
from autospec.config import SpecConfig
from autospec.records import Prompt
from autospec.tuning.budget import MIN_PER_CATEGORY, affordable, fresh_prompts
from autospec.tuning.events import StudyPlan
from autospec.tuning.finalists import Chosen, pick_finalists
from autospec.tuning.measuring import Measurer
from autospec.tuning.pool import Leaderboard
from autospec.tuning.task import Task

_NOISY_REPEATS = 2  # added where the baseline's noise is over 20 %


class Extent:
    """Plans the phases behind the search.

    Args:
        task: What is tuned.
        measurer: Knows the time that was spent.
    """

    def __init__(self, task: Task, measurer: Measurer) -> None:
        self._task, self._measurer = task, measurer

    def finalists(
        self,
        board: Leaderboard,
        plan: StudyPlan,
        noise: float,
        believed: Callable[[SpecConfig, float], float] | None = None,
    ) -> dict[str, Any]:
        """Return who goes into the final choice, on how many prompts and how often, as JSON values.

        Args:
            board: The search's.
            plan: Of the study.
            noise: Of one timing.
            believed: See `pick_finalists`.
        """
        searched = [one for one in self._measurer.log.measurements if one.stage == "search"]
        front = self._task.goal.front(board.configs, searched)
        finalists = pick_finalists(board, self._task.settings.finalists, front, believed)
        prompts = self.finalist_prompts(plan.settings.finalist_prompts)
        configs_each = sum(len(finalists.of_prompt(prompt)) for prompt in prompts) / len(prompts)
        cost = plan.seconds_per_prompt * max(1.0, configs_each)
        least = min(plan.num_finalist_prompts, len(prompts))
        return {"finalists": finalists.to_json(), **self._of(prompts, cost, least, self._seconds_left() / 2, noise)}

    def finalist_prompts(self, num_prompts: int) -> tuple[Prompt, ...]:
        """Return tune prompts, first those that the search has not used."""
        tune_prompts = self._task.workload.tune
        num_used = min(self._task.settings.prompts_per_trial, len(tune_prompts))
        return fresh_prompts(tune_prompts, num_used, num_prompts)

    def confirmation(self, chosen: Chosen, plan: StudyPlan, noise: float) -> dict[str, Any]:
        """Return what is confirmed, on how many held-out prompts and how often, as JSON values."""
        prompts = self._task.workload.held_out
        least = min(len(prompts), MIN_PER_CATEGORY * max(1, len(self._task.workload.categories)))
        cost = plan.seconds_per_prompt * max(1, len(chosen.configs))
        return {"chosen": chosen.to_json(), **self._of(prompts, cost, least, self._seconds_left(), noise)}

    def _of(
        self, prompts: Sequence[Prompt], cost: float, least: int, seconds_left: float, noise: float
    ) -> dict[str, int]:
        """Return on how many prompts and how often to measure: first all prompts, then repeats against noise."""
        repeats = self._task.settings.repeats
        num_prompts = affordable(len(prompts), least, cost * repeats, seconds_left)
        if noise_action(noise) == "add repeats":
            fitting = seconds_left / (cost * num_prompts) if num_prompts else 0.0
            repeats = max(repeats, math.floor(min(fitting, repeats + _NOISY_REPEATS)))
        return {"num_prompts": num_prompts, "repeats": repeats}

    def _seconds_left(self) -> float:
        minutes = self._task.minutes
        return max(0.0, minutes * 60 - self._measurer.total_seconds()) if minutes else math.inf
