"""When a trial is decided before its last prompt.

A trial ends early when it is worse than the best so far on paired prompts, unless it may still be the best of some
category: a drafter that wins on one kind of text only must live to show it.
"""

from __future__ import annotations

import math
import statistics

from autospec.config import SpecConfig
from autospec.tuning.journal import MIN_PROMPTS
from autospec.tuning.pool import Leaderboard

MIN_CATEGORY_PROMPTS = 2
_CONFIDENCE = 0.95
_OUT_OF_REACH = 2.0  # standard errors


def is_decided(board: Leaderboard, config: SpecConfig, noise_floor: float) -> bool:
    """Return whether the upper confidence bound of a configuration lies below the best, on the prompts of both.

    Args:
        board: The best so far, and what was measured of this one.
        config: What is being measured.
        noise_floor: Coefficient of variation of one timing; the spread is never taken to be less than it allows.
    """
    differences = board.pool.differences(config, board.best(board.prompts).config, board.prompts)
    if len(differences) < MIN_PROMPTS:
        return False
    from scipy.special import stdtrit

    quantile = float(stdtrit(len(differences) - 1, _CONFIDENCE))
    return statistics.fmean(differences) + quantile * _standard_error(differences, noise_floor) < 0.0


def is_hopeless(board: Leaderboard, config: SpecConfig, noise_floor: float) -> bool:
    """Return whether a configuration is out of reach of the best of every category.

    False while a category has been seen on fewer than two prompts; prompts beyond those of a trial do not exist, so a
    category with one prompt is judged on that one.
    """
    for category in board.categories:
        prompts = board.of_category(category)
        differences = board.pool.differences(config, board.best(prompts).config, prompts)
        if len(differences) < min(MIN_CATEGORY_PROMPTS, len(prompts)):
            return False
        error = _timing_error(len(differences), noise_floor)
        if statistics.fmean(differences) + _OUT_OF_REACH * error >= 0.0:
            return False
    return True


def _standard_error(differences: list[float], noise_floor: float) -> float:
    spread = statistics.stdev(differences) / math.sqrt(len(differences))
    return max(spread, _timing_error(len(differences), noise_floor))


def _timing_error(num_prompts: int, noise_floor: float) -> float:
    """Return the standard error that timing noise alone gives a mean difference: four timings enter each."""
    return 2.0 * noise_floor / math.sqrt(num_prompts)
