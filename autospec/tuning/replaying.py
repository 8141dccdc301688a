"""The replayed study: which configurations of a space are priced before a live one begins.

A space that can be counted is priced whole. Of a larger one an Optuna study asks for configurations and is told what
is predicted of them, thousands within seconds. What the trace lacks is recorded last, as far as there is time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import optuna
from optuna.trial import TrialState

from autospec.config import SpecConfig
from autospec.errors import ConfigError
from autospec.tuning.guide import Predicts
from autospec.tuning.settings import StudySettings
from autospec.tuning.space import SearchSpace

_RECORDING_SHARE = 0.5  # of the time
_STARTUP_SHARE = 0.4  # of the trials, drawn before the sampler learns


def is_priced_whole(space: SearchSpace, settings: StudySettings) -> bool:
    """Return whether a space is small enough to be priced configuration by configuration."""
    size = space.size()
    return size is not None and size <= settings.replayed_trials


def price(
    predictor: Predicts, configs: Sequence[SpecConfig], seconds: float, now: Callable[[], float]
) -> list[SpecConfig]:
    """Price configurations, first those that need no recording; return those for whose recording there is no time.

    What is recorded together tells of many: the groups that cost least for each configuration come first.

    Args:
        predictor: What prices, and keeps the prices.
        configs: To be priced.
        seconds: Time that may be taken.
        now: Seconds from an arbitrary start.
    """
    end, left = now() + seconds, list[SpecConfig]()
    groups = predictor.recordings(predictor.unrecorded(configs))
    for cost, group in sorted(groups, key=lambda one: one[0] / len(one[1])):
        if now() + cost > end:
            left += group
        else:
            predictor.predict(group)
    return left


def replay_study(
    predictor: Predicts, space: SearchSpace, settings: StudySettings, seconds: float, now: Callable[[], float]
) -> tuple[list[SpecConfig], int]:
    """Price configurations of a space that is too large to be priced whole.

    Args:
        predictor: What prices.
        space: For the workload's decoding.
        settings: How many trials at most, and the seed.
        seconds: Time it may take.
        now: Seconds from an arbitrary start.

    Returns:
        What was priced, and how many were left because there was no time to record what they draft.
    """
    start = now()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(
            seed=settings.seed, n_startup_trials=math.ceil(_STARTUP_SHARE * settings.replayed_trials)
        ),
    )
    configs, waiting = dict[SpecConfig, None](), dict[SpecConfig, None]()
    for _ in range(settings.replayed_trials):
        # Where something waits to be recorded, there must be time for it.
        if now() > start + seconds * (1.0 - _RECORDING_SHARE * bool(waiting)):
            break
        trial = study.ask()
        try:
            config = space.suggest(trial)
        except ConfigError:
            study.tell(trial, state=TrialState.PRUNED)
            continue
        waits = bool(predictor.unrecorded([config]))
        (found,) = [None] if waits else predictor.predict([config])
        (waiting if waits else configs)[config] = None
        if found is None:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, found.log_ratio)
    left = set(price(predictor, list(waiting), start + seconds - now(), now))
    return [*configs, *(config for config in waiting if config not in left)], len(left)
