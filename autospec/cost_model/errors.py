"""How far predictions were off, on configurations that taught them nothing, beside the noise of the measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PredictionError:
    """The error of a predictor.

    Args:
        num_configs: Configurations that were predicted and measured.
        step_seconds_mape: Mean of |predicted / measured - 1| of the seconds of a step, prefills left out, each as a
            multiple of plain decoding's, so that a machine that has become slower since is not the model's error.
        tokens_per_second_mape: The same of tokens per second of whole calls.
        rank_correlation: Spearman's, of predicted and measured speedup, over configurations that were measured on all
            prompts; None for fewer than 3.
        regret: What the one of these that was predicted to be best measured less than the best, as a share of it.
        corrected_mape: As `tokens_per_second_mape`, after learning from all other configurations; None for one alone.
        noise: Of the mean that each configuration was compared with: errors below it say nothing.
    """

    num_configs: int
    step_seconds_mape: float
    tokens_per_second_mape: float
    rank_correlation: float | None
    regret: float | None
    corrected_mape: float | None
    noise: float

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def mape(log_errors: Sequence[float] | Floats) -> float:
    """Return the mean absolute percentage error, as a share, of predictions whose logarithms are off by these."""
    return float(np.mean(np.abs(np.expm1(np.asarray(log_errors, dtype=np.float64)))))


def regret(predicted: Floats, measured: Floats) -> float:
    """Return what choosing by prediction costs.

    Args:
        predicted: [configs] log speedups.
        measured: [configs] log speedups.
    """
    return float(-np.expm1(measured[int(predicted.argmax())] - measured.max()))


def rank_correlation(predicted: Floats, measured: Floats) -> float | None:
    """Return Spearman's correlation; None for fewer than 3, or where one side is constant."""
    if len(predicted) < 3 or np.ptp(predicted) == 0.0 or np.ptp(measured) == 0.0:
        return None
    return float(spearmanr(predicted, measured).statistic)
