"""How far predictions are off on what they never saw: configurations that were left out, and prompts that were.

Takes a predictor and live measurements. `autospec.cost_model.errors` has the measures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autospec.config import SpecConfig
from autospec.cost_model.errors import mape, rank_correlation, regret
from autospec.cost_model.prediction import Prediction
from autospec.cost_model.predictor import Predictor
from autospec.cost_model.residual import Residual
from autospec.errors import MeasurementError
from autospec.records import Measurement

Floats = NDArray[np.float64]

_FOLDS = 5


@dataclass(frozen=True, slots=True)
class Agreement:
    """How predictions compare with what was measured.

    Args:
        num_pairs: Predicted and measured values that were compared.
        step_seconds_mape: Of the seconds of a step, as a multiple of plain decoding's; None where steps were not
            compared.
        tokens_per_second_mape: Mean of |predicted / measured - 1|, as a share; of what the predictor ranks by, where
            that is not speed.
        rank_correlation: Spearman's; the mean over folds that hold three configurations or more, None without one.
        regret: What choosing the first by prediction loses of the best measured, as a share; the mean over folds.
    """

    num_pairs: int
    step_seconds_mape: float | None
    tokens_per_second_mape: float
    rank_correlation: float | None
    regret: float

    @classmethod
    def of(cls, folds: Sequence[tuple[Floats, Floats]], steps: Floats | None = None) -> Agreement:
        """Compare.

        Args:
            folds: Of each, [configurations] predicted and [configurations] measured log ratios, of one set of
                prompts; what is ranked is ranked within a fold.
            steps: [any] logarithms of predicted over measured seconds of steps.

        Raises:
            MeasurementError: Nothing is to be compared.
        """
        pairs = [pair for pair in folds if len(pair[0])]
        if not pairs:
            raise MeasurementError("an error needs configurations that were predicted and measured, but got none")
        errors = np.concatenate([predicted - measured for predicted, measured in pairs])
        ranks = [one for one in (rank_correlation(*pair) for pair in pairs) if one is not None]
        return cls(
            num_pairs=len(errors),
            step_seconds_mape=None if steps is None or not len(steps) else mape(steps),
            tokens_per_second_mape=mape(errors),
            rank_correlation=float(np.mean(ranks)) if ranks else None,
            regret=float(np.mean([regret(*pair) for pair in pairs])),
        )


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """The error of a predictor on what it never saw.

    Args:
        uncorrected: Of predictions from trace and profile alone.
        by_config: Of each configuration, corrected by measurements of all others.
        by_prompt: Of prompts that neither the trace of a prediction nor its correction saw: what is predicted of the
            other prompts stands for them. None for fewer than two prompts.
    """

    uncorrected: Agreement
    by_config: Agreement
    by_prompt: Agreement | None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def cross_validate(predictor: Predictor, measurements: Iterable[Measurement]) -> CrossValidation:
    """Compare a predictor with measurements; what it has learnt already does not count.

    Args:
        predictor: Of the machine that measured.
        measurements: Live ones; those of speculation off, of prompts that are not in the trace and of configurations
            that cannot be predicted are left out.

    Raises:
        MeasurementError: None are left.
    """
    rows = {prompt_id: row for row, prompt_id in enumerate(predictor.prompt_ids)}
    known = [
        one
        for one in measurements
        if not one.config.is_off and one.prompt_id in rows and predictor.uncorrected(one.config) is not None
    ]
    table = _Table(predictor, known, rows)
    shifts = table.left_out_shifts()
    return CrossValidation(
        uncorrected=Agreement.of([(table.predicted, table.measured)], table.steps()),
        by_config=Agreement.of([(table.predicted + shifts, table.measured)], table.steps(shifts)),
        by_prompt=table.by_prompt(),
    )


class _Table:
    """Predicted and measured, side by side.

    Args:
        predictor: Without what it has learnt.
        measurements: Of configurations that it predicts, and of its prompts.
        rows: Prompt to its place in predictions.
    """

    def __init__(self, predictor: Predictor, measurements: Sequence[Measurement], rows: dict[str, int]) -> None:
        self._predictor, self._measurements, self._rows = predictor, measurements, rows
        self._configs = list(dict.fromkeys(one.config for one in measurements))
        self._prices = {config: _known(predictor.uncorrected(config)) for config in self._configs}
        pairs = [self._means(config, measurements) for config in self._configs]
        self.predicted, self.measured = (np.array([pair[side] for pair in pairs]) for side in (0, 1))

    def left_out_shifts(self) -> Floats:
        """Return what all other configurations say of each: [configurations]."""
        shifts = np.zeros(len(self._configs))
        for place, config in enumerate(self._configs):
            others = [one for one in self._measurements if one.config != config]
            shifts[place] = self._shift(config, others)
        return shifts

    def steps(self, shifts: Floats | None = None) -> Floats:
        """Return the logarithm of predicted over measured seconds of a step, the mean of each configuration."""
        given = dict(zip(self._configs, np.zeros(len(self._configs)) if shifts is None else shifts, strict=True))
        ratios: dict[SpecConfig, list[float]] = {}
        for one in self._measurements:
            if one.stats.num_steps and one.baseline_num_tokens > 1:
                plain = (one.baseline_seconds - one.baseline_prefill_seconds) / (one.baseline_num_tokens - 1)
                step = (one.seconds - one.prefill_seconds) / one.stats.num_steps / plain
                price = self._prices[one.config].step_seconds[self._rows[one.prompt_id]]
                ratios.setdefault(one.config, []).append(float(np.log(price / step) - given[one.config]))
        return np.array([np.mean(own) for own in ratios.values()])

    def by_prompt(self) -> Agreement | None:
        """Return the error on prompts that were left out, several at a time."""
        prompts = sorted({one.prompt_id for one in self._measurements})
        if len(prompts) < 2:
            return None
        folds = []
        for fold in range(min(_FOLDS, len(prompts))):
            unseen = set(prompts[fold::_FOLDS])
            seen = [one for one in self._measurements if one.prompt_id not in unseen]
            asked = [one for one in self._measurements if one.prompt_id in unseen]
            both = [one for one in self._configs if {one} <= {m.config for m in seen} & {m.config for m in asked}]
            predicted = [self._means(one, seen)[0] + self._shift(one, seen) for one in both]
            folds.append((np.array(predicted), np.array([self._means(one, asked)[1] for one in both])))
        return Agreement.of(folds) if any(len(pair[0]) for pair in folds) else None

    def _means(self, config: SpecConfig, measurements: Sequence[Measurement]) -> tuple[float, float]:
        """Return predicted and measured log ratio, each the mean over the prompts that were measured."""
        own = [one for one in measurements if one.config == config]
        prices = [self._prices[config].log_ratios[self._rows[one.prompt_id]] for one in own]
        return float(np.mean(prices)), float(np.mean([self._predictor.yardstick.log_ratio(one) for one in own]))

    def _shift(self, config: SpecConfig, measurements: Sequence[Measurement]) -> float:
        errors = self._predictor.errors(measurements)
        if not errors.configs:
            return 0.0
        learnt = Residual().fit(errors.features, errors.means, errors.counts, errors.noise)
        place = errors.configs.index(config) if config in errors.configs else -1
        mean, _ = learnt.predict(self._prices[config].features[None], np.array([place]))
        return float(mean[0])


def _known(price: Prediction | None) -> Prediction:
    assert price is not None
    return price
