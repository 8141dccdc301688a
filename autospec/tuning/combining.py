"""What is believed of configurations once they were measured afresh: predictions and measurements, each by its error.

The highest of several noisy means is mostly the luckiest one; the highest posterior mean is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from autospec.config import SpecConfig
from autospec.records import Prompt
from autospec.robust import EFFICIENCY, take_apart
from autospec.tuning.pool import Pool

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Beliefs:
    """What is known of configurations before they are measured afresh.

    Args:
        configs: All different.
        means: [configs] log ratios.
        covariance: [configs, configs] of these.
    """

    configs: tuple[SpecConfig, ...] = ()
    means: Floats = field(default_factory=lambda: np.zeros(0))
    covariance: Floats = field(default_factory=lambda: np.zeros((0, 0)))

    def updated(self, fresh: Floats, variances: Floats) -> Floats:
        """Return posterior means: [configs].

        Fresh prompts may be faster or slower for all configurations alike, by nobody knows how much, so only
        differences between them count; what they have in common is then taken from the fresh measurements.

        Args:
            fresh: [configs] log ratios that were measured.
            variances: [configs] of these, above 0.
        """
        weights = 1.0 / variances
        precision = np.diag(weights) - np.outer(weights, weights) / weights.sum()
        told = self.covariance @ precision
        means = self.means + np.linalg.solve(np.eye(len(told)) + told, told @ (fresh - self.means))
        common: float = (weights * (fresh - means)).sum() / weights.sum()
        return means + common


def combined(
    beliefs: Beliefs, pool: Pool, configs: Iterable[SpecConfig], prompts: Sequence[Prompt]
) -> dict[SpecConfig, float]:
    """Return the log ratios of configurations on prompts, as prediction and fresh measurements make them likeliest.

    Those of which nothing is believed have their means, and so have all where prompts are too few to tell the noise.

    Args:
        beliefs: From before these measurements.
        pool: The fresh measurements.
        configs: What is asked for; those that were not measured are left out.
        prompts: On which.
    """
    values = {config: value for config in configs if (value := pool.value(config, prompts)) is not None}
    ratios = {config: pool.ratios(config, prompts) for config in values if config in beliefs.configs}
    columns = {prompt.prompt_id: place for place, prompt in enumerate(prompts)}
    cells = [
        (row, columns[prompt_id], ratio)
        for row, own in enumerate(ratios.values())
        for prompt_id, repeats in own.items()
        for ratio in repeats
    ]
    if len(ratios) < 2:
        return values
    rows, places, logs = (np.array(side) for side in zip(*cells, strict=True))
    table = take_apart(rows, places, logs)
    if table.scale <= 0.0:
        return values
    known = [beliefs.configs.index(config) for config in ratios]
    own = Beliefs(tuple(ratios), beliefs.means[known], beliefs.covariance[np.ix_(known, known)])
    variances: Floats = np.float64(table.scale**2 / EFFICIENCY) / np.bincount(rows)
    posterior = own.updated(table.rows, variances)
    return values | dict(zip(ratios, map(float, posterior), strict=True))
