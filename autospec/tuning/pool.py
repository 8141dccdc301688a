"""Measurements pooled by configuration and prompt, and which configurations lead on which prompts.

All repeats of a configuration on a prompt count; the mean over prompts is a mean of per-prompt means. Speculation off
needs no measurement: its log ratio is 0 on every prompt. Knows no trial and decides nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from autospec.config import SpecConfig
from autospec.records import Measurement, Prompt
from autospec.yardsticks import SPEED, Yardstick

OFF = SpecConfig()


class Pool:
    """Log ratios by configuration and prompt.

    Args:
        measurements: To begin with.
        yardstick: Of what.
    """

    def __init__(self, measurements: Iterable[Measurement] = (), yardstick: Yardstick = SPEED) -> None:
        self._yardstick = yardstick
        self._ratios: defaultdict[SpecConfig, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for measurement in measurements:
            self.add(measurement)

    def add(self, measurement: Measurement) -> None:
        """Add one measurement."""
        self._ratios[measurement.config][measurement.prompt_id].append(self._yardstick.log_ratio(measurement))

    def ratios(self, config: SpecConfig, prompts: Iterable[Prompt]) -> dict[str, list[float]]:
        """Return prompt id to log ratios, for those prompts that were measured."""
        if config.is_off:
            return {prompt.prompt_id: [0.0] for prompt in prompts}
        if config not in self._ratios:
            return {}
        own = self._ratios[config]
        return {prompt.prompt_id: list(own[prompt.prompt_id]) for prompt in prompts if prompt.prompt_id in own}

    def means(self, config: SpecConfig, prompts: Iterable[Prompt]) -> dict[str, float]:
        """Return prompt id to mean log ratio, for those prompts that were measured."""
        return {prompt_id: fmean(ratios) for prompt_id, ratios in self.ratios(config, prompts).items()}

    def value(self, config: SpecConfig, prompts: Iterable[Prompt]) -> float | None:
        """Return the mean over those prompts that were measured; None where none was."""
        means = self.means(config, prompts)
        return fmean(means.values()) if means else None

    def differences(self, first: SpecConfig, second: SpecConfig, prompts: Sequence[Prompt]) -> list[float]:
        """Return mean log ratio of `first` less that of `second`, on the prompts that both were measured on."""
        ours, theirs = self.means(first, prompts), self.means(second, prompts)
        return [ours[prompt_id] - theirs[prompt_id] for prompt_id in ours if prompt_id in theirs]


@dataclass(frozen=True, slots=True)
class Standing:
    """A configuration and its mean log ratio on some prompts."""

    config: SpecConfig
    value: float


class Leaderboard:
    """Configurations that finished a trial and broke no constraint, by what the pool says of them now.

    Args:
        pool: What was measured in the search.
        prompts: The prompts of a trial.
    """

    def __init__(self, pool: Pool, prompts: Sequence[Prompt]) -> None:
        self.pool, self.prompts = pool, tuple(prompts)
        self._configs: dict[SpecConfig, None] = {}

    def enter(self, config: SpecConfig) -> None:
        """Add a configuration; a second time changes nothing."""
        if not config.is_off:
            self._configs[config] = None

    @property
    def configs(self) -> tuple[SpecConfig, ...]:
        """All of them."""
        return tuple(self._configs)

    def of_category(self, category: str) -> list[Prompt]:
        """Return the prompts of a trial that belong to a category."""
        return [prompt for prompt in self.prompts if prompt.category == category]

    @property
    def categories(self) -> list[str]:
        """Return the categories of a trial's prompts, sorted."""
        return sorted({prompt.category for prompt in self.prompts})

    def ranked(self, prompts: Sequence[Prompt]) -> list[Standing]:
        """Return all configurations that beat speculation off on these prompts, the best first."""
        values = [(self.pool.value(config, prompts), config) for config in self._configs]
        standings = [Standing(config, value) for value, config in values if value is not None and value > 0.0]
        return sorted(standings, key=lambda one: (-one.value, one.config.config_hash))

    def best(self, prompts: Sequence[Prompt]) -> Standing:
        """Return the best on these prompts; off where nothing beats it."""
        ranked = self.ranked(prompts)
        return ranked[0] if ranked else Standing(OFF, 0.0)
