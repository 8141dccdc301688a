"""The arithmetic of a budget: how many prompts the final choice and the confirmation can have.

Pure functions of counts and seconds; measures nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from autospec.records import Prompt, Workload
from autospec.tuning.settings import StudySettings

MIN_PER_CATEGORY = 8  # held-out prompts that a confirmation keeps, however small the budget
_CATEGORY_FINALISTS = 2
_CONFIRM_SHARE = 0.45  # of the budget, at most, set aside for what comes after the search
_CONFIRMED = 3  # configurations that held-out prompts are planned for


@dataclass(frozen=True, slots=True)
class Budget:
    """What is planned.

    Args:
        search_seconds: Time the search may take; infinite without a limit.
        confirm_seconds: Time set aside for final choice and confirmation.
        num_search: Prompts of a trial.
        num_finalist: Prompts of the final choice.
        num_held_out: Prompts of the confirmation.
    """

    search_seconds: float
    confirm_seconds: float
    num_search: int
    num_finalist: int
    num_held_out: int


def plan_budget(workload: Workload, settings: StudySettings, seconds_per_prompt: float) -> Budget:
    """Share the minutes between search and what comes after it."""
    num_categories = max(1, len({prompt.category for prompt in workload.tune}))
    least_finalist = min(len(workload.tune), 2 * num_categories)
    num_finalist = min(settings.finalist_prompts, len(workload.tune))
    least_held_out = min(len(workload.held_out), MIN_PER_CATEGORY * num_categories)
    finalist_cost = seconds_per_prompt * settings.repeats * (settings.finalists + _CATEGORY_FINALISTS)
    held_out_cost = seconds_per_prompt * settings.repeats * _CONFIRMED
    needed = finalist_cost * num_finalist + held_out_cost * len(workload.held_out)
    reserve = min(needed, settings.minutes * 60 * _CONFIRM_SHARE) if settings.minutes else needed
    share = reserve / needed if needed else 1.0
    num_finalist = max(least_finalist, math.floor(num_finalist * share))
    num_held_out = max(least_held_out, math.floor(len(workload.held_out) * share))
    reserve = max(reserve, finalist_cost * num_finalist + held_out_cost * num_held_out)
    search = settings.minutes * 60 - reserve if settings.minutes else math.inf
    return Budget(
        search_seconds=max(search, 0.0),
        confirm_seconds=reserve,
        num_search=min(settings.prompts_per_trial, len(workload.tune)),
        num_finalist=num_finalist,
        num_held_out=num_held_out,
    )


def affordable(num_available: int, least: int, seconds_per_prompt: float, seconds_left: float) -> int:
    """Return how many prompts fit into what is left, but at least `least` where there are so many."""
    fitting = num_available if math.isinf(seconds_left) else math.floor(seconds_left / seconds_per_prompt)
    return min(num_available, max(least, fitting))


def fresh_prompts(prompts: tuple[Prompt, ...], num_used: int, num_wanted: int) -> tuple[Prompt, ...]:
    """Return prompts in order, beginning behind those the search used and going round where they do not suffice."""
    return (prompts[num_used:] + prompts[:num_used])[:num_wanted]
