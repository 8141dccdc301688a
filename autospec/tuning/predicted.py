"""What was predicted of a run, and how far it was off: on what the search measured, and on held-out prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autospec.comparison import Estimate
from autospec.config import SpecConfig
from autospec.records import Measurement
from autospec.yardsticks import SPEED, Yardstick

if TYPE_CHECKING:
    from autospec.cost_model import CrossValidation, Independence
    from autospec.tuning.calibrating import Calibrated
    from autospec.tuning.preparing import Preparation


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A configuration on prompts that no trace holds.

    Args:
        config: One that was confirmed.
        predicted: Its ratio on the prompts of the trace, before any correction.
        measured: Its ratio on held-out prompts.
    """

    config: SpecConfig
    predicted: float
    measured: Estimate


@dataclass(frozen=True, slots=True)
class Predicted:
    """The part of predictions in a result.

    Args:
        num_asked: Configurations that were to be priced.
        num_priced: Of them those that could be.
        num_expected: Of these, those whose steps are not replayed but expected.
        error: Of predictions, on configurations that the search measured on all its prompts; None without any.
        noise: Of the mean over prompts that each of these was compared with: errors below it say nothing.
        held_out: What came of predictions on held-out prompts.
        independence: Of each drafter, how far the field's closed form is off, which takes acceptance for independent.
        acceptance: Of each drafter, how good the chances are that the cost-aware rule reads.
        yardstick: Of what was predicted.
    """

    num_asked: int
    num_priced: int
    num_expected: int
    error: CrossValidation | None
    noise: float
    held_out: tuple[HeldOut, ...]
    independence: tuple[Independence, ...]
    acceptance: tuple[Calibrated, ...] = ()
    yardstick: Yardstick = SPEED

    def to_json(self) -> dict[str, Any]:
        """Return what `result.json` holds under `cost_model_error`."""
        return {
            "of": self.yardstick.name,
            **({} if self.error is None else self.error.to_json()),
            "noise": self.noise,
            "num_priced": self.num_priced,
            "num_asked": self.num_asked,
            "num_expected": self.num_expected,
            "held_out": [
                {
                    "config": one.config.to_json(),
                    f"predicted_{self.yardstick.name}": one.predicted,
                    f"measured_{self.yardstick.name}": one.measured.to_json(),
                    "error": one.predicted / one.measured.value - 1.0,
                }
                for one in self.held_out
            ],
            "independence": [one.to_json() for one in self.independence],
            "acceptance": [one.to_json() for one in self.acceptance],
        }


def predictions_json(prepared: Preparation) -> dict[str, Any]:
    """Return what `predictions.json` holds: every configuration that was priced, uncorrected, the best first.

    Log speedups stand in the order of the prompts; `is_exact` tells replayed steps from expected ones.
    """
    rows = filter(None, map(prepared.predictor.uncorrected, prepared.guide.candidates))
    ranked = sorted(rows, key=lambda one: (-one.log_ratio, one.config.config_hash))
    return {
        "prompt_ids": list(prepared.predictor.prompt_ids),
        "rows": [
            {
                "config": one.config.to_json(),
                "speedup": round(math.exp(one.log_speedup), 4),
                "is_exact": one.is_exact,
                "log_speedups": [round(value, 4) for value in one.log_speedups.tolist()],
                **({} if one.yardstick == SPEED else {one.yardstick.name: round(math.exp(one.log_ratio), 4)}),
            }
            for one in ranked
        ],
    }


def look_back(prepared: Preparation, measurements: Sequence[Measurement], noise_floor: float) -> Predicted:
    """Compare what was predicted with what was measured.

    Args:
        prepared: What predicted.
        measurements: Of the whole run.
        noise_floor: Coefficient of variation of one timing.
    """
    from autospec.cost_model import cross_validate

    search = _whole([one for one in measurements if one.stage == "search" and not one.config.is_off], prepared)
    return Predicted(
        num_asked=prepared.guide.num_asked,
        num_priced=prepared.guide.num_priced,
        num_expected=prepared.guide.num_expected,
        error=cross_validate(prepared.predictor, search) if search else None,
        noise=noise_floor * math.sqrt(2.0 / max(len(prepared.predictor.prompt_ids), 1)),
        held_out=tuple(_held_out(prepared, [one for one in measurements if one.stage == "confirm"])),
        independence=prepared.independence,
        yardstick=prepared.predictor.yardstick,
        acceptance=prepared.acceptance,
    )


def _whole(search: Sequence[Measurement], prepared: Preparation) -> list[Measurement]:
    """Return measurements of configurations that were predicted and measured on all prompts: these can be ranked."""
    seen: dict[SpecConfig, set[str]] = {}
    for one in search:
        seen.setdefault(one.config, set()).add(one.prompt_id)
    wanted = set(prepared.predictor.prompt_ids)
    whole = {config for config, ids in seen.items() if wanted and ids >= wanted}
    return [one for one in search if one.config in whole and prepared.predictor.uncorrected(one.config) is not None]


def _held_out(prepared: Preparation, confirmed: Sequence[Measurement]) -> list[HeldOut]:
    found = []
    for config in dict.fromkeys(one.config for one in confirmed if not one.config.is_off):
        price = prepared.predictor.uncorrected(config)
        measured = prepared.predictor.yardstick.estimate(one for one in confirmed if one.config == config)
        if price is not None and measured is not None:
            found.append(HeldOut(config, math.exp(price.log_ratio), measured))
    return found
