"""What predictions get wrong, learnt from what was measured: a Gaussian process, certain only where it has seen much.

An estimator in scikit-learn's sense: `fit`, then `predict`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

Floats = NDArray[np.float64]

# What an uncorrected prediction may be off, in nats of speedup: all configurations together, and one against another.
_COMMON, _OWN = 0.10, 0.08
# What is left between configurations that look alike: no neighbour tells it.
_SINGLE = 0.03
# How different configurations may be that still err alike, in units of the features.
_REACH = 1.0
# Of one measurement of one prompt: noise of the timing, and of what differs between prompts.
_NOISE = 0.08


class Residual:
    """Regression of measured minus predicted log speedup on the features of configurations.

    The kernel's numbers are fixed: a study has too few measurements to fit them, and a correction that changes its
    mind with every trial helps nobody.
    """

    def __init__(self) -> None:
        self._model: GaussianProcessRegressor | None = None

    @property
    def is_fitted(self) -> bool:
        """Whether there was anything to learn from."""
        return self._model is not None

    def fit(self, features: Floats, errors: Floats, counts: NDArray[np.int64]) -> Residual:
        """Learn.

        Args:
            features: [configs, features].
            errors: [configs] mean of measured minus predicted log speedup.
            counts: [configs] how many measurements that is the mean of.
        """
        if not len(errors):
            self._model = None
            return self
        kernel = ConstantKernel(_COMMON**2) + ConstantKernel(_OWN**2) * RBF(_REACH)
        self._model = GaussianProcessRegressor(kernel, alpha=_NOISE**2 / counts, optimizer=None)
        self._model.fit(features, errors)
        return self

    def predict(self, features: Floats) -> tuple[Floats, Floats]:
        """Return what to add to predictions, and its standard deviation: [configs] each.

        Raises:
            RuntimeError: Nothing was learnt yet.
        """
        if self._model is None:
            raise RuntimeError("`fit` must come before `predict`")
        mean, deviation = self._model.predict(features, return_std=True)
        return np.asarray(mean), np.hypot(deviation, _SINGLE)
