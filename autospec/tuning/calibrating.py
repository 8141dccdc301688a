"""What the cost-aware rule takes a draft token to be worth: learnt from a study's trace, judged on prompts left out.

Only where it is the better judge does what was learnt take the place of the drafter's own probabilities.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autospec.cost_model import AcceptanceModel, fit_acceptance
from autospec.errors import MeasurementError
from autospec.replay import AcceptanceRows, Trace, acceptance_rows

if TYPE_CHECKING:
    from autospec.engine.calibration import AcceptanceCalibration
    from autospec.engine.costs import CostCurve
    from autospec.profiling import HardwareProfile
    from autospec.tuning.space import SearchSpace


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What came of learning one drafter's acceptance.

    Args:
        drafter: Its name.
        model: What was learnt; None where the trace does not teach it.
        note: Why the drafter's own probabilities are kept; empty where they are not.
    """

    drafter: str
    model: AcceptanceModel | None
    note: str = ""

    @property
    def acceptance(self) -> AcceptanceCalibration | None:
        """What the rule shall read; None keeps the drafter's own probabilities."""
        return self.model.calibration if self.model is not None and not self.note else None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, with the scores on prompts that were left out beside each other."""
        found: dict[str, Any] = {"drafter": self.drafter, "is_used": self.acceptance is not None, "note": self.note}
        if self.model is None:
            return found
        own = None if self.model.drafter is None else asdict(self.model.drafter)
        return {
            **found,
            "num_rows": self.model.num_rows,
            "num_prompts": self.model.num_prompts,
            "calibrated": asdict(self.model.calibrated),
            "drafter_probs": own,
            "frequency": asdict(self.model.frequency),
        }


def readers(space: SearchSpace) -> set[str]:
    """Return the drafters of a space that has the rule which reads what drafts cost and are worth; else none."""
    grids = {knob.name: [str(value) for value in knob.domain.grid() or ()] for knob in space.knobs}
    return set(grids.get("drafter", ())) if "cost_aware" in grids.get("stop_rule", ()) else set()


def calibrate(trace: Trace, drafters: Iterable[str]) -> tuple[Calibrated, ...]:
    """Learn how likely the target takes each drafter's tokens; those that are not recorded have nothing to learn from.

    All exits of a target that drafts itself are learnt together.
    """
    found = []
    for name in sorted(drafters):
        keys = [key for key in sorted(trace.forests) if "~" not in key and key.partition("@")[0] == name]
        if keys:
            found.append(_calibrated(trace, name, keys))
    return tuple(found)


def cost_curves(
    profile: HardwareProfile, contexts: NDArray[np.int64], drafters: Iterable[str], calibrated: Iterable[Calibrated]
) -> dict[str, CostCurve]:
    """Return what the cost-aware rule reads: costs in the middle of contexts, and what was learnt.

    Args:
        profile: Of the machine.
        contexts: [positions] tokens of the text, as of a trace.
        drafters: Names; those that the profile does not have get none.
        calibrated: What was learnt of them.

    Raises:
        MeasurementError: The profile does not reach as far.
    """
    # Tokens cached before a step are one fewer than those of the text.
    middle = (int(contexts.min()) + int(contexts.max()) - 2) // 2
    learnt: Mapping[str, AcceptanceCalibration | None] = {one.drafter: one.acceptance for one in calibrated}
    names = sorted(set(drafters) & set(profile.drafters))
    return {name: replace(profile.cost_curve(name, middle), acceptance=learnt.get(name)) for name in names}


def _calibrated(trace: Trace, name: str, keys: list[str]) -> Calibrated:
    if not trace.sampling.is_greedy:
        return Calibrated(name, None, "under sampling, what is accepted depends on the acceptance rule")
    try:
        model = fit_acceptance(AcceptanceRows.join([acceptance_rows(trace, key) for key in keys]))
    except MeasurementError as error:
        return Calibrated(name, None, str(error))
    own = model.drafter
    if own is not None and own.log_loss <= model.calibrated.log_loss:
        losses = f"log loss {own.log_loss:.3f} against {model.calibrated.log_loss:.3f} on prompts that were left out"
        return Calibrated(name, model, f"they tell as well what is accepted, {losses}")
    return Calibrated(name, model)
