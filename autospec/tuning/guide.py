"""What a study tries next by prediction: first the best and most different, then whatever may still be better.

Predictions are corrected by every trial that is measured. Knows no models: what predicts is given.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from autospec.config import SpecConfig
from autospec.errors import MeasurementError
from autospec.records import Measurement
from autospec.tuning.combining import Beliefs, Floats

if TYPE_CHECKING:
    from autospec.cost_model import Prediction

_KINDS = 3  # kinds of configuration that are tried besides the best one
_NEAR = 0.15  # nats by which the best of another kind may be behind to be worth a trial
_GAIN = 0.01  # nats by which something must promise to beat the best that was measured
_PRICED_AGAIN = 100  # of the best, for prompts of another length


class PredictsBatches(Protocol):
    """What a guide asks of batches; `autospec.cost_model.batches.BatchPrices` is one."""

    def log_speedups(self, configs: Sequence[SpecConfig]) -> list[float | None]:
        """Return what is predicted; None for what cannot be told."""
        ...


class Predicts(Protocol):
    """What a guide asks; `autospec.cost_model.Predictor` is one."""

    categories: tuple[str, ...]

    def predict(self, configs: Sequence[SpecConfig]) -> list[Prediction | None]:
        """Return predictions, corrected by what was learnt."""
        ...

    def unrecorded(self, configs: Sequence[SpecConfig]) -> list[SpecConfig]:
        """Price what needs no recording, and return the rest."""
        ...

    def recordings(self, configs: Sequence[SpecConfig]) -> list[tuple[float, list[SpecConfig]]]:
        """Return the rest in groups that are recorded together, with about the seconds that takes."""
        ...

    def correct(self, measurements: Iterable[Measurement]) -> None:
        """Learn from measurements."""
        ...

    def joint(self, configs: Sequence[SpecConfig]) -> tuple[Floats, Floats]:
        """Return corrected log ratios of configurations that can be predicted, and their covariance."""
        ...

    def for_batches(self, batch_size: int) -> PredictsBatches:
        """Return what predicts batches.

        Raises:
            MeasurementError: Nothing is known of such batches.
        """
        ...

    def for_length(self, prompt_length: int) -> Predicts:
        """Return what predicts the same texts behind prompts of another length.

        Raises:
            MeasurementError: Nothing is known of such lengths.
        """
        ...


class Guide:
    """Ranks candidates.

    Args:
        predictor: What prices them.
        candidates: What may be tried; those that cannot be priced are left to the sampler.
        is_whole: They are the whole space.
        num_left: Of the space, besides these, what there was no time to record.
        every_drafter: Begin with the best of every drafter that pays, however far behind: where memory counts too, of
            which nothing is predicted, each has its own.
    """

    def __init__(
        self,
        predictor: Predicts,
        candidates: Iterable[SpecConfig],
        is_whole: bool,
        every_drafter: bool = False,
        num_left: int = 0,
    ) -> None:
        self._predictor, self._every_drafter = predictor, every_drafter
        asked = [config for config in dict.fromkeys(candidates) if not config.is_off]
        prices = [price for price in predictor.predict(asked) if price is not None]
        self.candidates = [price.config for price in prices]
        self.num_asked, self.num_priced, self.num_left = len(asked) + num_left, len(prices), num_left
        self.num_expected = sum(not price.is_exact for price in prices)
        self.is_complete = is_whole and self.num_priced == self.num_asked

    def ranked(self) -> list[Prediction]:
        """Return all predictions, the best first."""
        priced = [price for price in self._predictor.predict(self.candidates) if price is not None]
        return sorted(priced, key=lambda one: (-one.log_ratio, one.config.config_hash))

    def opening(self) -> tuple[SpecConfig, ...]:
        """Return what to try first: the best, the best of other kinds that are near, of categories and of drafters."""
        ranked = self.ranked()
        if not ranked or ranked[0].log_ratio <= 0.0:
            return ()
        best = {_kind(ranked[0].config): ranked[0].config}
        for one in ranked:
            if one.log_ratio < max(ranked[0].log_ratio - _NEAR, 0.0) or len(best) > _KINDS:
                break
            best.setdefault(_kind(one.config), one.config)
        return tuple(dict.fromkeys((*best.values(), *self._specialists(ranked), *self._drafters(ranked))))

    def _drafters(self, ranked: Sequence[Prediction]) -> list[SpecConfig]:
        """Return the best of every drafter that promises something, if these are asked for."""
        best: dict[str, SpecConfig] = {}
        for one in ranked:
            if self._every_drafter and one.log_ratio > 0.0:
                best.setdefault(one.config.drafter, one.config)
        return list(best.values())

    def _specialists(self, ranked: Sequence[Prediction]) -> list[SpecConfig]:
        """Return the best of each category that promises more there than the best of all."""
        found = []
        for category in sorted(set(self._predictor.categories)):
            own = np.array([one == category for one in self._predictor.categories])
            leader = max(ranked, key=lambda one: float(one.log_ratios[own].mean()))
            if leader.log_ratios[own].mean() > ranked[0].log_ratios[own].mean() + _GAIN:
                found.append(leader.config)
        return found

    def next(self, tried: Collection[SpecConfig], best_value: float) -> SpecConfig | None:
        """Return what may still be better than the best that was measured; None where nothing may.

        Upper ends of one standard deviation are compared, so that kinds that were never measured get their chance.

        Args:
            tried: What was tried.
            best_value: Log ratio of the best so far.
        """
        ranked = [one for one in self.ranked() if one.config not in tried]
        hopeful = max(ranked, key=lambda one: one.log_ratio + one.spread, default=None)
        if hopeful is None or hopeful.log_ratio + hopeful.spread < best_value + _GAIN:
            return None
        return hopeful.config

    def believed(self, config: SpecConfig, measured: float) -> float:
        """Return the log ratio that prediction and measurements together make likeliest; without one what is given.

        Args:
            config: One that was measured, and learnt.
            measured: Its mean, for configurations that cannot be priced.
        """
        (price,) = self._predictor.predict([config])
        return measured if price is None else price.log_ratio

    def beliefs(self, configs: Iterable[SpecConfig]) -> Beliefs:
        """Return what is known of configurations beforehand, those left out that cannot be priced; after `learn`."""
        known = [one for one in configs if not one.is_off and self._predictor.predict([one]) != [None]]
        return Beliefs(tuple(known), *(self._predictor.joint(known) if known else (np.zeros(0), np.zeros((0, 0)))))

    def ranked_for(self, batch_size: int, prompt_length: int | None = None) -> list[SpecConfig]:
        """Return configurations by what is predicted of a situation, the best first; none where nothing can be told.

        Args:
            batch_size: Prompts side by side.
            prompt_length: Tokens of a prompt; None: those of the trace.
        """
        asked = self.candidates
        try:
            predictor = self._predictor if prompt_length is None else self._predictor.for_length(prompt_length)
            if batch_size > 1:
                values = predictor.for_batches(batch_size).log_speedups(asked)
            else:
                asked = [one.config for one in self.ranked()[:_PRICED_AGAIN]]
                values = [None if one is None else one.log_ratio for one in predictor.predict(asked)]
        except MeasurementError:
            return []
        priced = zip(asked, values, strict=True)
        known = sorted(((config, value) for config, value in priced if value is not None), key=lambda one: -one[1])
        return [config for config, _ in known]

    def learn(self, measurements: Iterable[Measurement]) -> None:
        """Correct predictions by all measurements of the search."""
        self._predictor.correct(measurements)


def _kind(config: SpecConfig) -> tuple[str, str, str]:
    return config.drafter, config.tree_shape, config.stop_rule
