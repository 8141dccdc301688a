"""What proposes configurations. Every draw depends on seed and trial alone, so a resumed study goes the same way."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, create_trial

from autospec.errors import ConfigError
from autospec.tuning.space import SearchSpace

NUM_STARTUP_TRIALS = 8


def make_sampler(kind: str, seed: int, number: int) -> BaseSampler:
    """Return a sampler for one trial.

    Args:
        kind: `tpe` or `gp`.
        seed: Seed of the study.
        number: Number of the trial.
    """
    own_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    if kind == "gp":
        return GPSampler(seed=own_seed, n_startup_trials=NUM_STARTUP_TRIALS, warn_independent_sampling=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        # Grouped: knobs that exist together are drawn together, and trial 0, which has none, hides none.
        return TPESampler(seed=own_seed, n_startup_trials=NUM_STARTUP_TRIALS, multivariate=True, group=True)


def propose(
    sampler: BaseSampler,
    trials: Iterable[tuple[FrozenTrial, Sequence[float]]],
    space: SearchSpace,
    directions: Sequence[StudyDirection] = (StudyDirection.MAXIMIZE,),
) -> dict[str, Any]:
    """Return what a sampler would try next if these trials had these values.

    It is asked in a passing study of its own: for what is best in one category, or for a sampler that cannot take
    trial 0, which has no knobs.

    Args:
        sampler: Made for this one question.
        trials: Trials and the values to go by.
        space: What may be tried.
        directions: Of the values.
    """
    view = optuna.create_study(directions=list(directions), sampler=sampler)
    view.add_trials(
        [
            create_trial(params=trial.params, distributions=trial.distributions, values=list(values))
            for trial, values in trials
        ]
    )
    asked = view.ask()
    try:
        space.suggest(asked)
    except ConfigError:
        return dict(asked.params)  # breaks a constraint, which the study itself will find
    return dict(asked.params)
