"""What is predicted of a configuration, and how far predictions were off."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from autospec.config import SpecConfig
from autospec.cost_model.steps import Floats
from autospec.yardsticks import SPEED, Yardstick


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a configuration would do; per prompt of the trace, in its order.

    Args:
        config: The configuration.
        seconds: [prompts] of whole calls, prefills included; means where steps have chances; what was learnt is not in
            them.
        step_seconds: [prompts] mean of a step behind the prefill, as a multiple of plain decoding's.
        log_speedups: [prompts] logarithm of plain decoding's seconds over these.
        num_steps: [prompts] target forwards behind the prefill; means where steps have chances.
        features: [features] what distinguishes it from others, for learning from errors.
        spread: Standard deviation of its log ratio, as far as measurements have taught; 0 before any.
        log_latency_ratios: [prompts] logarithm of plain decoding's p95 inter-token latency over this one's.
        yardstick: By which configurations are ranked, and whose log ratios are corrected by what was measured.
        is_exact: Whether the steps are those of a live run; otherwise they are expected, given the recorded texts.
    """

    config: SpecConfig
    seconds: Floats
    step_seconds: Floats
    log_speedups: Floats
    num_steps: Floats
    features: Floats
    spread: float = 0.0
    log_latency_ratios: Floats = field(default_factory=lambda: np.zeros(0))
    yardstick: Yardstick = SPEED
    is_exact: bool = True

    @property
    def log_speedup(self) -> float:
        """Mean over prompts."""
        return float(self.log_speedups.mean())

    @property
    def log_ratios(self) -> Floats:
        """By its yardstick: [prompts]."""
        ratios: Floats = getattr(self, self.yardstick.predicted)
        return ratios

    @property
    def log_ratio(self) -> float:
        """Mean over prompts, by its yardstick."""
        return float(self.log_ratios.mean())


@dataclass(frozen=True, slots=True)
class Errors:
    """How far predictions were off.

    Args:
        configs: That were measured and could be predicted.
        features: [configs, features] of each.
        means: [configs] measured minus predicted log ratio, its location over measurements.
        counts: [configs] of how many measurements.
        noise: Standard deviation of one of them, what prompts have in common taken out.
    """

    configs: tuple[SpecConfig, ...]
    features: Floats
    means: Floats
    counts: NDArray[np.int64]
    noise: float
