"""From a trace and a hardware profile to the speed of any configuration, on the machine that was profiled.

The simulator says which steps a configuration takes, the profile what they cost; what live measurements say otherwise
is learnt by a Gaussian process over what distinguishes configurations, and added.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from autospec.config import SpecConfig
from autospec.cost_model.residual import Residual
from autospec.cost_model.steps import StepCosts, p95_by_prompt
from autospec.errors import MeasurementError, ReplayError
from autospec.profiling import HardwareProfile
from autospec.records import Measurement
from autospec.replay import Replay, Simulator
from autospec.yardsticks import SPEED, Yardstick

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a configuration would do; per prompt of the trace, in its order.

    Args:
        config: The configuration.
        seconds: [prompts] of whole calls, prefills included; what was learnt is not in them.
        step_seconds: [prompts] mean of a step behind the prefill, as a multiple of plain decoding's.
        log_speedups: [prompts] logarithm of plain decoding's seconds over these.
        num_steps: [prompts] target forwards behind the prefill.
        features: [features] what distinguishes it from others, for learning from errors.
        spread: Standard deviation of its log ratio, as far as measurements have taught; 0 before any.
        log_latency_ratios: [prompts] logarithm of plain decoding's p95 inter-token latency over this one's.
        yardstick: By which configurations are ranked, and whose log ratios are corrected by what was measured.
    """

    config: SpecConfig
    seconds: Floats
    step_seconds: Floats
    log_speedups: Floats
    num_steps: NDArray[np.int64]
    features: Floats
    spread: float = 0.0
    log_latency_ratios: Floats = field(default_factory=lambda: np.zeros(0))
    yardstick: Yardstick = SPEED

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


class Predictor:
    """Prices configurations without running them.

    Args:
        simulator: Over the recorded prompts.
        profile: Of the machine they shall run on.
        yardstick: By which configurations are to be ranked.

    Raises:
        MeasurementError: The profile has not even what plain decoding of these prompts needs.
    """

    def __init__(self, simulator: Simulator, profile: HardwareProfile, yardstick: Yardstick = SPEED) -> None:
        self._simulator, self.yardstick, trace = simulator, yardstick, simulator.trace
        self.profile = profile
        self.prompt_ids = tuple(prompt.prompt_id for prompt in trace.prompts)
        self.categories = tuple(prompt.category for prompt in trace.prompts)
        self._lengths = np.array([prompt.num_prompt for prompt in trace.prompts], dtype=np.int64)
        recorded = {key.partition("@")[0] for key in trace.forests}
        self._names = tuple(sorted(profile.drafters))
        self._costs = StepCosts(profile, recorded, trace.contexts - 1)
        self._residual, self._priced = Residual(), dict[SpecConfig, Prediction | None]()
        plain = simulator.replay(SpecConfig())
        gaps = self._costs.gaps(plain)
        decode = _by_prompt(plain, gaps)
        self._plain, self._plain_step = self._prefills(plain.config) + decode, decode / plain.per_prompt()
        self._plain_latency = p95_by_prompt(gaps, plain.prompts, plain.num_prompts)

    def predict(self, configs: Sequence[SpecConfig]) -> list[Prediction | None]:
        """Return what configurations would do; None for one that the trace or the profile cannot tell of.

        Replaying happens once for each; asked again, after `correct`, only the correction is new.
        """
        return self._corrected([self.uncorrected(config) for config in configs])

    def correct(self, measurements: Iterable[Measurement]) -> None:
        """Learn from live measurements, all of them at once, of prompts of the trace; earlier ones are forgotten.

        Configurations that cannot be predicted teach nothing.
        """
        self._residual.fit(*self.errors(measurements))

    def errors(self, measurements: Iterable[Measurement]) -> tuple[Floats, Floats, NDArray[np.int64]]:
        """Return how far uncorrected predictions were off, by configuration.

        Returns:
            Features [configs, features], mean of measured minus predicted log ratio [configs], and of how many
            measurements [configs].
        """
        by_config = self._measured(measurements)
        priced = [self.uncorrected(config) for config in by_config]
        found = [
            (price.features, float(np.mean([value - price.log_ratios[row] for row, value in seen])), len(seen))
            for price, seen in zip(priced, by_config.values(), strict=True)
            if price is not None
        ]
        features, means, counts = zip(*found, strict=True) if found else ((), (), ())
        width = self._num_features
        return np.array(features).reshape(-1, width), np.array(means), np.array(counts, dtype=np.int64)

    def _measured(self, measurements: Iterable[Measurement]) -> dict[SpecConfig, list[tuple[int, float]]]:
        """Return configurations to row of the prompt and log ratio of each measurement."""
        by_config: dict[SpecConfig, list[tuple[int, float]]] = {}
        places = {prompt_id: row for row, prompt_id in enumerate(self.prompt_ids)}
        for one in measurements:
            if one.prompt_id in places and not one.config.is_off:
                row, ratio = places[one.prompt_id], self.yardstick.log_ratio(one)
                by_config.setdefault(one.config, []).append((row, ratio))
        return by_config

    def uncorrected(self, config: SpecConfig) -> Prediction | None:
        """Return what was predicted before anything was learnt."""
        if config not in self._priced:
            self._priced[config] = self._price_now(config)
        return self._priced[config]

    def _price_now(self, config: SpecConfig) -> Prediction | None:
        try:
            replay = self._simulator.replay(config)
            gaps, prefills = self._costs.gaps(replay), self._prefills(config)
        except (ReplayError, MeasurementError):
            return None
        steps, decode = replay.per_prompt(), _by_prompt(replay, gaps)
        seconds = prefills + decode
        return Prediction(
            config=config,
            seconds=seconds,
            step_seconds=decode / steps / self._plain_step,
            log_speedups=np.log(self._plain / seconds),
            num_steps=steps,
            features=self._features(replay),
            log_latency_ratios=self._log_latency_ratios(replay, gaps),
            yardstick=self.yardstick,
        )

    def _prefills(self, config: SpecConfig) -> Floats:
        return self._costs.prefills(self._lengths, config)

    def _log_latency_ratios(self, replay: Replay, gaps: Floats) -> Floats:
        own, ratios = p95_by_prompt(gaps, replay.prompts, replay.num_prompts), np.ones(replay.num_prompts)
        return np.log(np.divide(self._plain_latency, own, out=ratios, where=own > 0.0))

    @property
    def _num_features(self) -> int:
        return 4 + len(self._names)

    def _features(self, replay: Replay) -> Floats:
        """Return how long and how wide its steps are, how much of them is drafting, and who drafts."""
        num_steps = max(len(replay.nodes), 1)
        shape = [
            np.log(num_steps / max(int((replay.accepted.astype(np.int64) + 1).sum()), 1)),
            replay.nodes.mean() / 8 if len(replay.nodes) else 0.0,
            replay.calls.mean() / 4 if len(replay.calls) else 0.0,
            float(replay.config.tree_shape != "chain"),
        ]
        return np.array([*shape, *(float(name in replay.config.drafter_names) for name in self._names)])

    def _corrected(self, prices: Sequence[Prediction | None]) -> list[Prediction | None]:
        known = {price.config: price for price in prices if price is not None and not price.config.is_off}
        if not known or not self._residual.is_fitted:
            return list(prices)
        shifts, spreads = self._residual.predict(np.stack([price.features for price in known.values()]))
        for price, shift, spread in zip(list(known.values()), shifts, spreads, strict=True):
            corrected = {self.yardstick.predicted: price.log_ratios + shift}
            known[price.config] = replace(price, spread=float(spread), **corrected)
        return [price if price is None else known.get(price.config, price) for price in prices]


def _by_prompt(replay: Replay, gaps: Floats) -> Floats:
    """Return the seconds behind the prefills, a drafter's own prefill being part of its first draft: [prompts]."""
    return np.bincount(replay.prompts, gaps, minlength=replay.num_prompts).astype(np.float64)
