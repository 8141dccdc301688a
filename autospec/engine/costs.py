"""What steps cost, as frozen numbers that rules and controllers read; measuring them is another room's business."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autospec.engine.calibration import AcceptanceCalibration
from autospec.errors import ConfigError, MeasurementError


@dataclass(frozen=True, slots=True)
class CostCurve:
    """Seconds of the parts of a step, in any one unit.

    Args:
        target: Of a target forward of one token; where a profile gave it, of all that a step without drafts takes.
        target_per_token: Of each further token in it.
        draft: Of drafting one token.
        target_points: Measured (tokens, seconds) of target forwards by number of tokens, beginning with one token,
            where a line through `target` says too little; empty is the line.
        acceptance: What a draft token is worth: how likely the target takes it. None takes the drafter's own
            probability for that.
    """

    target: float
    target_per_token: float
    draft: float
    target_points: tuple[tuple[int, float], ...] = ()
    acceptance: AcceptanceCalibration | None = None

    def __post_init__(self) -> None:
        tokens = [place for place, _ in self.target_points]
        assert tokens == sorted(set(tokens)), tokens
        assert not tokens or tokens[0] == 1, tokens

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        points = [list(point) for point in self.target_points]
        acceptance = None if self.acceptance is None else self.acceptance.to_json()
        return {**asdict(self), "target_points": points, "acceptance": acceptance}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Build from `to_json`.

        Raises:
            ConfigError: It is no such mapping, or what it holds cannot be costs.
        """
        names = {one.name for one in fields(cls)}
        rule = f"costs must hold exactly {sorted(names)}, numbers of at least 0"
        if not isinstance(values, Mapping) or set(values) != names:
            raise ConfigError(f"{rule}, but got {values!r:.120}")
        plain = {name: values[name] for name in ("target", "target_per_token", "draft")}
        points, acceptance = values["target_points"], values["acceptance"]
        if not isinstance(points, list) or not all(isinstance(one, list) and len(one) == 2 for one in points):
            raise ConfigError(f"{rule}, and `target_points` pairs of tokens and seconds, but got {points!r:.120}")
        if not all(_is_cost(one) for one in (*plain.values(), *(one for point in points for one in point))):
            raise ConfigError(f"{rule}, but got {values!r:.120}")
        tokens = [place for place, _ in points]
        if points and (tokens[0] != 1 or tokens != sorted(set(tokens))):
            raise ConfigError(f"`target_points` must begin with 1 token and ascend, but got {tokens}")
        return cls(
            **{name: float(value) for name, value in plain.items()},
            target_points=tuple((int(place), float(seconds)) for place, seconds in points),
            acceptance=None if acceptance is None else AcceptanceCalibration.from_json(acceptance),
        )

    @property
    def marginal(self) -> float:
        """Seconds that one more draft token costs, drafted and verified."""
        return self.draft + self.target_per_token

    def step(self, num_drafted: int) -> float:
        """Return the seconds of a step with a chain of so many draft tokens."""
        return float(self.verify(num_drafted)) + num_drafted * self.draft

    def verify(self, num_drafted: ArrayLike) -> NDArray[np.float64]:
        """Return the seconds of a target forward of the last token and so many draft tokens, of any shape.

        Raises:
            MeasurementError: More tokens than were measured: beyond the points nothing is known.
        """
        tokens = 1 + np.asarray(num_drafted, dtype=np.float64)
        if not self.target_points:
            return self.target + (tokens - 1) * self.target_per_token
        places, seconds = zip(*self.target_points, strict=True)
        if tokens.max(initial=1) > places[-1]:
            raise MeasurementError(
                f"target forwards were measured up to {places[-1]} tokens, but {int(tokens.max())} were asked for"
            )
        return np.asarray(np.interp(tokens, places, seconds))


# Until a device is profiled: what small drafters cost beside their targets in the literature.
CONSTANT_COSTS = CostCurve(target=1.0, target_per_token=0.02, draft=0.08)


def _is_cost(value: Any) -> bool:
    return type(value) in (int, float) and 0.0 <= value < np.inf


def costs_of(costs: Mapping[str, CostCurve], drafter: str) -> CostCurve:
    """Return a drafter's costs, or constants where there are none."""
    return costs.get(drafter, CONSTANT_COSTS)
