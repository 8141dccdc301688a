"""What the cost-aware stopping rule and the choice of trees need to know, from a profile's points."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autospec.engine.costs import CostCurve
from autospec.profiling.curves import slope

if TYPE_CHECKING:
    from autospec.profiling.hardware import HardwareProfile

_SLOPE_TO = 17  # tokens: what a stopping rule weighs are drafts of up to 16


def cost_curve(profile: HardwareProfile, drafter: str, context_length: int, exit_layer: int) -> CostCurve:
    """Return the costs of steps with one drafter behind one context; see `HardwareProfile.cost_curve`.

    Raises:
        MeasurementError: Drafts or forwards of one token were not measured there.
    """
    first_draft = profile.draft_seconds(drafter, 1, context_length, exit_layer=exit_layer)
    profile.target_seconds(1, context_length)
    drafts = profile.measured_drafts(drafter, context_length, exit_layer)
    per_draft = max(slope({depth: seconds for depth, seconds in drafts.items() if depth < _SLOPE_TO}), 0.0)
    constant = profile.fixed_seconds(drafter, context_length, exit_layer) + max(first_draft - per_draft, 0.0)
    steps = {
        size: seconds + constant + profile.host_seconds(size, context_length, drafter, exit_layer=exit_layer)
        for size, seconds in profile.measured_forwards(context_length).items()
    }
    per_token = slope({size: seconds for size, seconds in steps.items() if size <= _SLOPE_TO})
    return CostCurve(steps[1], max(per_token, 0.0), per_draft, tuple(steps.items()))
