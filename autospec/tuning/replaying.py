"""The replayed study: which configurations of a space are priced before a live one begins.

A space that can be counted is priced whole. Of a larger one an Optuna study asks for configurations and is told what
is predicted of them, thousands within seconds. What the trace lacks is recorded last, as far as there is time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import optuna
from optuna.trial import TrialState

from autospec.config import SpecConfig
from autospec.errors import ConfigError
from autospec.tuning.guide import Predicts
from autospec.tuning.settings import StudySettings
from autospec.tuning.space import SearchSpace

_RECORDING_SHARE = 0.5  # of the time
_STARTUP_SHARE = 0.4  # of the trials, drawn before the sampler learns
_DRAWS = 4  # of which one is priced
_MAX_ASKS = 5  # times as many as trials: the sampler also proposes what breaks constraints


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
    found = _Replayed(predictor, space, settings)
    while found.num_trials < settings.replayed_trials and found.num_asked < _MAX_ASKS * settings.replayed_trials:
        # Where something waits to be recorded, there must be time for it.
        if now() > start + seconds * (1.0 - _RECORDING_SHARE * bool(found.waiting)) or not found.step():
            break
    waiting = list(found.waiting)
    left = set(price(predictor, waiting, start + seconds - now(), now))
    return [*found.priced, *(config for config in waiting if config not in left)], len(left)


class _Replayed:
    """An Optuna study of predictions, begun with draws that differ much from each other.

    Args:
        predictor: What prices.
        space: For the workload's decoding.
        settings: How many trials at most, and the seed.
    """

    def __init__(self, predictor: Predicts, space: SearchSpace, settings: StudySettings) -> None:
        self._predictor, self._space = predictor, space
        self._num_drawn = math.ceil(_STARTUP_SHARE * settings.replayed_trials)
        self._rng, self._kinds = np.random.default_rng(settings.seed), Counter[tuple[str, str]]()
        self.priced, self.waiting = dict[SpecConfig, None](), dict[SpecConfig, None]()
        self.num_trials = self.num_asked = 0
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = optuna.samplers.TPESampler(seed=settings.seed, n_startup_trials=0)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)

    def step(self) -> bool:
        """Price one configuration more; return False where the space has none."""
        self.num_asked += 1
        return self._draw() if self.num_trials < self._num_drawn else self._suggest()

    def _draw(self) -> bool:
        """Price the draw of a few of whose drafter and shape the fewest were priced."""
        drawn = [params for _ in range(_DRAWS) if (params := self._space.draw(self._rng)) is not None]
        if not drawn:
            return False
        made = [self._space.config(params) for params in drawn]
        config, params = min(zip(made, drawn, strict=True), key=lambda one: self._kinds[_kind(one[0])])
        value = self._value(config)
        known = {name: self._space.distributions[name] for name in params}
        state = TrialState.PRUNED if value is None else TrialState.COMPLETE
        self._study.add_trial(optuna.trial.create_trial(state=state, value=value, params=params, distributions=known))
        return True

    def _suggest(self) -> bool:
        trial = self._study.ask()
        try:
            config = self._space.suggest(trial)
        except ConfigError:
            self._study.tell(trial, state=TrialState.PRUNED)
            return True
        value = self._value(config)
        if value is None:
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, value)
        return True

    def _value(self, config: SpecConfig) -> float | None:
        self.num_trials += 1
        self._kinds[_kind(config)] += 1
        if config in self.waiting or self._predictor.unrecorded([config]):
            self.waiting[config] = None
            return None
        self.priced[config] = None
        (found,) = self._predictor.predict([config])
        return None if found is None else found.log_ratio


def _kind(config: SpecConfig) -> tuple[str, str]:
    return config.drafter, config.tree_shape
