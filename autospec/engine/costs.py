"""What steps cost, as frozen numbers that rules and controllers read; measuring them is another room's business."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CostCurve:
    """Seconds of the parts of a step, in any one unit.

    Args:
        target: Of a target forward of one token.
        target_per_token: Of each further token in it.
        draft: Of drafting one token.
    """

    target: float
    target_per_token: float
    draft: float

    @property
    def marginal(self) -> float:
        """Seconds that one more draft token costs, drafted and verified."""
        return self.draft + self.target_per_token

    def step(self, num_drafted: int) -> float:
        """Return the seconds of a step with a chain of so many draft tokens."""
        return self.target + num_drafted * self.marginal


# Until a device is profiled: what small drafters cost beside their targets in the literature.
CONSTANT_COSTS = CostCurve(target=1.0, target_per_token=0.02, draft=0.08)
