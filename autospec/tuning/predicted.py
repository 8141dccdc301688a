"""What was predicted of a run, and how far it was off: on what the search measured, and on held-out prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autospec.comparison import Estimate, speedup
from autospec.config import SpecConfig
from autospec.records import Measurement

if TYPE_CHECKING:
    from autospec.cost_model import PredictionError
    from autospec.tuning.preparing import Preparation


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A configuration on prompts that no trace holds.

    Args:
        config: One that was confirmed.
        predicted: Its speedup on the prompts of the trace, before any correction.
        measured: Its speedup on held-out prompts.
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
        error: Of uncorrected predictions, on the trials of the search.
        held_out: What came of them on held-out prompts.
    """

    num_asked: int
    num_priced: int
    error: PredictionError | None
    held_out: tuple[HeldOut, ...]

    def to_json(self) -> dict[str, Any]:
        """Return what `result.json` holds under `cost_model_error`."""
        return {
            **({} if self.error is None else self.error.to_json()),
            "num_priced": self.num_priced,
            "num_asked": self.num_asked,
            "held_out": [
                {
                    "config": one.config.to_json(),
                    "predicted_speedup": one.predicted,
                    "measured_speedup": one.measured.to_json(),
                    "error": one.predicted / one.measured.value - 1.0,
                }
                for one in self.held_out
            ],
        }


def predictions_json(prepared: Preparation) -> dict[str, Any]:
    """Return what `predictions.json` holds: every configuration that was priced, uncorrected, the best first.

    Log speedups stand in the order of the prompts.
    """
    rows = filter(None, map(prepared.predictor.uncorrected, prepared.guide.candidates))
    ranked = sorted(rows, key=lambda one: (-one.log_speedup, one.config.config_hash))
    return {
        "prompt_ids": list(prepared.predictor.prompt_ids),
        "rows": [
            {
                "config": one.config.to_json(),
                "speedup": round(math.exp(one.log_speedup), 4),
                "log_speedups": [round(value, 4) for value in one.log_speedups.tolist()],
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
    search = [one for one in measurements if one.stage == "search"]
    return Predicted(
        prepared.guide.num_asked,
        prepared.guide.num_priced,
        prepared.predictor.assess(search, noise_floor),
        tuple(_held_out(prepared, [one for one in measurements if one.stage == "confirm"])),
    )


def _held_out(prepared: Preparation, confirmed: Sequence[Measurement]) -> list[HeldOut]:
    ratios: dict[SpecConfig, dict[str, list[float]]] = {}
    for one in confirmed:
        ratios.setdefault(one.config, {}).setdefault(one.prompt_id, []).append(one.log_speedup)
    found = []
    for config, own in ratios.items():
        price = prepared.predictor.uncorrected(config)
        if price is not None and not config.is_off:
            found.append(HeldOut(config, math.exp(price.log_speedup), speedup(own)))
    return found
