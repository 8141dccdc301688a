"""The Pareto set: configurations that no other beats in speed, quality or another axis without losing in the others.

Made from measurements on whole sets of prompts, of the search (`tune`, which flatters what came out first) and of the
confirmation (`held-out`). Decides nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from autospec.comparison import Bound, Estimate
from autospec.config import SpecConfig
from autospec.policy import Quality, quality_from
from autospec.records import Measurement
from autospec.tuning.pool import OFF
from autospec.tuning.quality import is_lossless
from autospec.yardsticks import SPEED

_STAGES = {"tune": "search", "held-out": "confirm"}


@dataclass(frozen=True, slots=True)
class ParetoRow:
    """One point of the set.

    Args:
        stage: `tune` or `held-out`.
        config: A configuration; off among them, where nothing lossless is faster.
        speedup: Against plain decoding.
        quality: What was seen of the outputs; None for lossless rules, which lose nothing.
        is_allowed: Whether it keeps every limit on these prompts.
        memory_bytes: Its largest footprint: weights and caches of what it runs; 0 where it is not known.
    """

    stage: str
    config: SpecConfig
    speedup: Estimate
    quality: Quality | None
    is_allowed: bool
    memory_bytes: int = 0

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
            "memory_bytes": self.memory_bytes,
            "num_prompts": self.speedup.num_prompts,
            "allowed": self.is_allowed,
        }


Axes = tuple[Callable[[ParetoRow], float], ...]


class Limit(Protocol):
    """What may be lost or taken; `autospec.tuning.quality.LossLimit` is one."""

    def excess(self, config: SpecConfig, measurements: Sequence[Measurement]) -> float:
        """Return by how much a configuration is over it; 0 or below keeps it."""
        ...


def loss_of(row: ParetoRow) -> float:
    """Return what a row loses; a loss below 0 is no gain, its size counts."""
    return abs(row.loss.value)


def memory_of(row: ParetoRow) -> float:
    """Return what a row takes."""
    return float(row.memory_bytes)


def pareto_set(measurements: Sequence[Measurement], limit: Limit, axes: Axes = (loss_of,)) -> tuple[ParetoRow, ...]:
    """Return the set of each stage, the fastest first.

    Args:
        measurements: Of a whole run.
        limit: What is allowed.
        axes: What counts besides speed; less is better.
    """
    rows: list[ParetoRow] = []
    for stage, logged in _STAGES.items():
        rows += _best(_rows(stage, [one for one in measurements if one.stage == logged], limit), axes)
    return tuple(rows)


def pareto_configs(
    configs: Collection[SpecConfig], measurements: Sequence[Measurement], axes: Axes
) -> tuple[SpecConfig, ...]:
    """Return those of some configurations that no other of them beats, nor speculation off; the fastest first.

    Args:
        configs: Which.
        measurements: Of one stage; each configuration must have been measured on every prompt that any of them was.
        axes: What counts besides speed.
    """
    rows = _rows("", [one for one in measurements if one.config in configs], None)
    return tuple(row.config for row in _best(rows, axes) if not row.config.is_off)


def _rows(stage: str, measurements: Sequence[Measurement], limit: Limit | None) -> list[ParetoRow]:
    """Return a row for speculation off and for each configuration that was measured on every prompt."""
    by_config: defaultdict[SpecConfig, list[Measurement]] = defaultdict(list)
    for one in measurements:
        by_config[one.config].append(one)
    prompts = {one.prompt_id for one in measurements}
    if not prompts:
        return []
    least = max(one.baseline_footprint_bytes for one in measurements)
    rows = [ParetoRow(stage, OFF, Estimate(1.0, 1.0, 1.0, len(prompts)), None, True, least)]
    for config, own in by_config.items():
        if config.is_off or {one.prompt_id for one in own} != prompts:
            continue
        ratio = SPEED.estimate(own)
        assert ratio is not None
        quality = None if is_lossless(config) else quality_from(own)
        is_allowed = limit is None or limit.excess(config, own) <= 0.0
        memory = max(one.footprint_bytes for one in own)
        rows.append(ParetoRow(stage, config, ratio, quality, is_allowed, memory))
    return rows


def _best(rows: Sequence[ParetoRow], axes: Axes) -> list[ParetoRow]:
    """Return the rows that no other beats: going from the fastest to the slowest, each must be better in some axis.

    Of rows that are equal in everything one is kept.
    """
    kept: list[ParetoRow] = []
    for row in sorted(rows, key=lambda one: (-one.speedup.value, *(axis(one) for axis in axes))):
        if not any(all(axis(other) <= axis(row) for axis in axes) for other in kept):
            kept.append(row)
    return kept
