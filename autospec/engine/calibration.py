"""How likely the target takes a draft token: a logistic regression as frozen numbers, for stopping rules to read.

Fitting it is another room's business (`autospec.cost_model.acceptance`); here it is only applied, in array functions,
so that a simulator gets the same numbers as a running draft.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autospec.errors import ConfigError

_LARGEST = 30.0  # log-probabilities and gaps beyond this say no more


@dataclass(frozen=True, slots=True)
class AcceptanceCalibration:
    """Log odds that the target writes a draft token, given that it wrote all before it, as a weighted sum.

    Args:
        intercept: Of the sum.
        log_prob: Weight of the log-probability that the drafter gave the token.
        entropy: Of the entropy of the drafter's row, in nats.
        gap: Of how much less the log-probability of the drafter's second candidate is.
        position: Of the place in the draft, from 1.
        match_length: Of the longest ending of the text that had occurred before; 0 for drafters that run a model.

    Raises:
        ConfigError: A number is not finite.
    """

    intercept: float
    log_prob: float = 0.0
    entropy: float = 0.0
    gap: float = 0.0
    position: float = 0.0
    match_length: float = 0.0

    def __post_init__(self) -> None:
        if not all(np.isfinite(value) for value in asdict(self).values()):
            raise ConfigError(f"the numbers of a calibration must be finite, but got {self}")

    def probs(
        self,
        log_prob: ArrayLike,
        entropy: ArrayLike,
        gap: ArrayLike,
        position: ArrayLike,
        match_length: ArrayLike = 0.0,
    ) -> NDArray[np.float64]:
        """Return the chances of tokens: [...] from features [...].

        A feature whose weight is 0 may be missing (NaN).
        """
        total = np.asarray(self.intercept, dtype=np.float64)
        given = {"log_prob": log_prob, "entropy": entropy, "gap": gap}
        given |= {"position": position, "match_length": match_length}
        for name, values in given.items():
            if weight := getattr(self, name):
                total = total + weight * np.clip(np.asarray(values, dtype=np.float64), -_LARGEST, _LARGEST)
        shape = np.broadcast_shapes(*(np.shape(values) for values in given.values()))
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * np.broadcast_to(total, shape))))

    def to_json(self) -> dict[str, float]:
        """Return the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Build from `to_json`; anything else is a `ConfigError`."""
        names = {one.name for one in fields(cls)}
        if (
            not isinstance(values, Mapping)
            or set(values) != names
            or any(type(v) not in (int, float) for v in values.values())
        ):
            raise ConfigError(f"a calibration must hold exactly the numbers {sorted(names)}, but got {values!r:.120}")
        return cls(**{name: float(value) for name, value in values.items()})
