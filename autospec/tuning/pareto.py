"""The Pareto set of speed and quality: configurations that no other beats in one without losing in the other.

Made from measurements on whole sets of prompts, of the search (`tune`, which flatters what came out first) and of the
confirmation (`held-out`). Decides nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autospec.comparison import Bound, Estimate, speedup
from autospec.config import SpecConfig
from autospec.policy import Quality, quality_from
from autospec.records import Measurement
from autospec.tuning.pool import OFF
from autospec.tuning.quality import LossLimit, is_lossless

_STAGES = {"tune": "search", "held-out": "confirm"}


@dataclass(frozen=True, slots=True)
class ParetoRow:
    """One point of the set.

    Args:
        stage: `tune` or `held-out`.
        config: A configuration; off among them, where nothing lossless is faster.
        speedup: Against plain decoding.
        quality: What was seen of the outputs; None for lossless rules, which lose nothing.
        is_allowed: Whether it keeps `quality.max_loss` on these prompts.
    """

    stage: str
    config: SpecConfig
    speedup: Estimate
    quality: Quality | None
    is_allowed: bool

    @property
    def loss(self) -> Bound:
        """Nats per token; exactly 0 for lossless rules."""
        known = self.quality and self.quality.loss
        return known or Bound(0.0, 0.0, self.speedup.num_prompts)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        loss = self.loss.to_json()
        agreement = self.quality and self.quality.agreement
        drop = self.quality and self.quality.score_drop
        return {
            "stage": self.stage,
            "config": self.config.to_json(),
            "speedup": self.speedup.to_json(),
            "loss": loss["value"],
            "loss_bound": loss["bound"],
            "agreement": agreement and agreement.to_json(),
            "score_drop": drop and drop.to_json(),
            "num_prompts": self.speedup.num_prompts,
            "allowed": self.is_allowed,
        }


def pareto_set(measurements: Sequence[Measurement], limit: LossLimit) -> tuple[ParetoRow, ...]:
    """Return the set of each stage, the fastest first; a loss below 0 is no gain, its size counts."""
    rows: list[ParetoRow] = []
    for stage, logged in _STAGES.items():
        rows += _best(_rows(stage, [one for one in measurements if one.stage == logged], limit))
    return tuple(rows)


def _rows(stage: str, measurements: Sequence[Measurement], limit: LossLimit) -> list[ParetoRow]:
    """Return a row for speculation off and for each configuration that was measured on every prompt."""
    by_config: defaultdict[SpecConfig, list[Measurement]] = defaultdict(list)
    for one in measurements:
        by_config[one.config].append(one)
    prompts = {one.prompt_id for one in measurements}
    if not prompts:
        return []
    rows = [ParetoRow(stage, OFF, Estimate(1.0, 1.0, 1.0, len(prompts)), None, True)]
    for config, own in by_config.items():
        if config.is_off or {one.prompt_id for one in own} != prompts:
            continue
        ratios: defaultdict[str, list[float]] = defaultdict(list)
        for one in own:
            ratios[one.prompt_id].append(one.log_speedup)
        quality = None if is_lossless(config) else quality_from(own)
        rows.append(ParetoRow(stage, config, speedup(ratios), quality, limit.excess(config, own) <= 0.0))
    return rows


def _best(rows: Sequence[ParetoRow]) -> list[ParetoRow]:
    """Return the rows that no other beats: going from the fastest to the slowest, each must lose less."""
    kept: list[ParetoRow] = []
    for row in sorted(rows, key=lambda one: (-one.speedup.value, abs(one.loss.value))):
        if not kept or abs(row.loss.value) < abs(kept[-1].loss.value):
            kept.append(row)
    return kept
