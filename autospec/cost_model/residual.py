"""What predictions get wrong, learnt from what was measured: a Gaussian process, certain only where it has seen much.

An estimator in scikit-learn's sense: `fit`, then `predict`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Kernel

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# What an uncorrected prediction may be off, in nats of speedup: all configurations together, and one against another.
_COMMON, _OWN = 0.10, 0.08
# What is left between configurations that look alike, which no neighbour tells. Of twenty n-gram configurations, each
# measured twice on 12 prompts, errors differed by 0.007, where noise alone makes 0.0075; what the two repeats have in
# common was 0.003. Where measurements say that it is more, it is: each of these is taken to be half as likely
# beforehand as the one before.
_SINGLE = (0.005, 0.01, 0.02, 0.04, 0.08)
# How different configurations may be that still err alike, in units of the features.
_REACH = 1.0
# Of one measurement of one prompt, before any measurement says how large it is.
NOISE = 0.08


class Residual:
    """Regression of measured minus predicted log speedup on the features of configurations.

    What a configuration is off is the sum of what all are off, of what those like it are off, and of what only it is
    off. So one that was measured is neither believed at its word nor by its neighbours alone: the best of many noisy
    means flatters itself, and its posterior mean does not.

    The kernel's other numbers are fixed: a study has too few measurements to fit them, and a correction that changes
    its mind with every trial helps nobody.
    """

    def __init__(self) -> None:
        self._model: GaussianProcessRegressor | None = None
        self._single = _SINGLE[0]

    @property
    def is_fitted(self) -> bool:
        """Whether there was anything to learn from."""
        return self._model is not None

    def fit(self, features: Floats, errors: Floats, counts: Ints, noise: float = NOISE) -> Residual:
        """Learn.

        Args:
            features: [configs, features].
            errors: [configs] mean of measured minus predicted log speedup.
            counts: [configs] how many measurements that is the mean of.
            noise: Standard deviation of one of these.
        """
        if not len(errors):
            self._model = None
            return self
        best = -np.inf
        for place, single in enumerate(_SINGLE):
            model = GaussianProcessRegressor(_kernel(), alpha=single**2 + noise**2 / counts, optimizer=None)
            model.fit(features, errors)
            likelihood = model.log_marginal_likelihood_value_ - place * np.log(2.0)
            if likelihood > best:
                best, self._model, self._single = likelihood, model, single
        return self

    def predict(self, features: Floats, measured: Ints | None = None) -> tuple[Floats, Floats]:
        """Return what to add to predictions, and its standard deviation: [configs] each.

        Args:
            features: [configs, features].
            measured: [configs] place of each among those that were learnt from, -1 for what was not measured; None:
                none of them was.

        Raises:
            RuntimeError: Nothing was learnt yet.
        """
        mean, told = self._told(features, measured)
        alone = _kernel().diag(features) + self._single**2
        return mean, np.sqrt(np.maximum(alone - (told * told).sum(axis=0), 0.0))

    def joint(self, features: Floats, measured: Ints | None = None) -> tuple[Floats, Floats]:
        """Return what to add to predictions of different configurations, [configs], and its covariance.

        Args:
            features: See `predict`.
            measured: See `predict`.

        Raises:
            RuntimeError: Nothing was learnt yet.
        """
        mean, told = self._told(features, measured)
        return mean, _kernel()(features) + self._single**2 * np.eye(len(features)) - told.T @ told

    def _told(self, features: Floats, measured: Ints | None) -> tuple[Floats, Floats]:
        """Return what to add, and [learnt from, configs] what takes from the prior covariance."""
        if self._model is None:
            raise RuntimeError("`fit` must come before `predict`")
        model, places = self._model, np.full(len(features), -1) if measured is None else measured
        across = model.kernel_(features, model.X_train_)
        known = np.flatnonzero(places >= 0)
        across[known, places[known]] += self._single**2
        return across @ model.alpha_, solve_triangular(model.L_, across.T, lower=True)


def _kernel() -> Kernel:
    return ConstantKernel(_COMMON**2) + ConstantKernel(_OWN**2) * RBF(_REACH)
