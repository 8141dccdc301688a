"""The replayed study: which configurations of a space are priced before a live one begins.

A space that can be counted is priced whole. Of a larger one an Optuna study asks for configurations and is told what
is predicted of them, thousands within seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import optuna
from optuna.trial import TrialState

from autospec.config import SpecConfig
from autospec.errors import ConfigError
from autospec.tuning.guide import Predicts
from autospec.tuning.settings import StudySettings
from autospec.tuning.space import SearchSpace

_STARTUP_SHARE = 0.4  # of the trials, drawn before the sampler learns


def is_priced_whole(space: SearchSpace, settings: StudySettings) -> bool:
    """Return whether a space is small enough to be priced configuration by configuration."""
    size = space.size()
    return size is not None and size <= settings.replayed_trials


def replay_study(
    predictor: Predicts, space: SearchSpace, settings: StudySettings, seconds: float, now: Callable[[], float]
) -> list[SpecConfig]:
    """Price configurations of a space that is too large to be priced whole, and return them.

    Args:
        predictor: What prices.
        space: For the workload's decoding.
        settings: How many trials at most, and the seed.
        seconds: Time it may take.
        now: Seconds from an arbitrary start.
    """
    end = now() + seconds
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(
            seed=settings.seed, n_startup_trials=math.ceil(_STARTUP_SHARE * settings.replayed_trials)
        ),
    )
    configs: list[SpecConfig] = []
    for _ in range(settings.replayed_trials):
        if now() > end:
            break
        trial = study.ask()
        try:
            config = space.suggest(trial)
        except ConfigError:
            study.tell(trial, state=TrialState.PRUNED)
            continue
        (price,) = predictor.predict([config])
        if price is None:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, price.log_ratio)
        configs.append(config)
    return configs
