"""Whether lossy rules lose more than was allowed, on the prompts they were measured on; lossless ones never do.

The upper end of a one-sided bound over prompts decides, not the mean: what was measured on few prompts must lose less
to be believed. Measures nothing and knows no speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from autospec.config import SpecConfig
from autospec.policy import quality_from
from autospec.records import Measurement
from autospec.rules import ACCEPT_RULES
from autospec.tuning.events import OVER_LOSS
from autospec.tuning.finalists import Chosen

UNKNOWN_EXCESS = 100.0  # nats; a finite stand-in where too few prompts say nothing, because Optuna sorts by it


def is_lossless(config: SpecConfig) -> bool:
    """Return whether a configuration keeps the target's output by its rule."""
    return ACCEPT_RULES[config.accept_rule].is_lossless


@dataclass(frozen=True, slots=True)
class LossLimit:
    """What may be lost.

    Args:
        max_loss: Nats per token; None allows lossless rules only.
    """

    max_loss: float | None

    def excess(self, config: SpecConfig, measurements: Sequence[Measurement]) -> float:
        """Return by how many nats per token the bound of the loss is over the limit; 0 or below is kept.

        Args:
            config: A configuration.
            measurements: Of this configuration, on the prompts that are to judge it.
        """
        if is_lossless(config):
            return 0.0
        loss = quality_from(measurements).loss
        if self.max_loss is None or loss is None:
            return UNKNOWN_EXCESS
        return min(loss.bound - self.max_loss, UNKNOWN_EXCESS)

    def reason(self, config: SpecConfig, measurements: Sequence[Measurement]) -> str:
        """Return how a configuration breaks the limit, or nothing where it keeps it."""
        if self.excess(config, measurements) <= 0.0:
            return ""
        loss = quality_from(measurements).loss
        if loss is None:
            return f"{OVER_LOSS} (not measured)"
        return (
            f"{OVER_LOSS} (loses {loss.value:.3f} nats per token on {loss.num_prompts} prompts, "
            f"at most {loss.bound:.3f}; limit {self.max_loss:g})"
        )

    def broken(self, configs: Sequence[SpecConfig], measurements: Sequence[Measurement]) -> dict[SpecConfig, str]:
        """Return the configurations that break the limit, and how."""
        reasons = {one: self.reason(one, _of(one, measurements)) for one in configs}
        return {config: reason for config, reason in reasons.items() if reason}

    def kept(self, chosen: Chosen, measurements: Sequence[Measurement]) -> tuple[Chosen, list[str]]:
        """Judge what was chosen on held-out prompts; return what is left of it, and a sentence for what is not.

        The overall configuration is judged on all prompts, a category's own on those of its category. In place of the
        former comes its fallback, the latter is dropped, so that the category gets the overall one.
        """
        overall, notes = chosen.overall, []
        if reason := self.reason(overall, _of(overall, measurements)):
            notes.append(
                f"{overall.short()} is {reason} on held-out prompts; {chosen.fallback.short()} takes its place"
            )
            overall = chosen.fallback
        by_category = {}
        for category, config in chosen.by_category.items():
            own = [one for one in _of(config, measurements) if one.category == category]
            if reason := self.reason(config, own):
                notes.append(f"{config.short()} is {reason} on held-out prompts of {category}, which falls back")
            else:
                by_category[category] = config
        return replace(chosen, overall=overall, by_category=by_category), notes


def _of(config: SpecConfig, measurements: Sequence[Measurement]) -> list[Measurement]:
    return [one for one in measurements if one.config == config]
