"""Measures of how far predictions are off."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

Floats = NDArray[np.float64]


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
