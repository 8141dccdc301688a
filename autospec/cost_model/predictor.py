"""From a trace and a hardware profile to the speed of any configuration, on the machine that was profiled.

The simulator says which steps a configuration takes, the profile what they cost; what live measurements say otherwise
is learnt by a Gaussian process over what distinguishes configurations, and added.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from autospec.config import SpecConfig
from autospec.cost_model.errors import PredictionError, mape, rank_correlation, regret
from autospec.cost_model.residual import Residual
from autospec.cost_model.steps import StepCosts
from autospec.errors import MeasurementError, ReplayError
from autospec.profiling import HardwareProfile
from autospec.records import Measurement
from autospec.replay import Replay, Simulator

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a configuration would do; per prompt of the trace, in its order.

    Args:
        config: The configuration.
        seconds: [prompts] of whole calls, prefills included.
        step_seconds: [prompts] mean of a step behind the prefill, as a multiple of plain decoding's.
        log_speedups: [prompts] logarithm of plain decoding's seconds over these.
        num_steps: [prompts] target forwards behind the prefill.
        features: [features] what distinguishes it from others, for learning from errors.
        spread: Standard deviation of the logarithm of its speedup, as far as measurements have taught; 0 before any.
    """

    config: SpecConfig
    seconds: Floats
    step_seconds: Floats
    log_speedups: Floats
    num_steps: NDArray[np.int64]
    features: Floats
    spread: float = 0.0

    @property
    def log_speedup(self) -> float:
        """Mean over prompts."""
        return float(self.log_speedups.mean())


class Predictor:
    """Prices configurations without running them.

    Args:
        simulator: Over the recorded prompts.
        profile: Of the machine they shall run on.

    Raises:
        MeasurementError: The profile has not even what plain decoding of these prompts needs.
    """

    def __init__(self, simulator: Simulator, profile: HardwareProfile) -> None:
        self._simulator, trace = simulator, simulator.trace
        self.profile = profile
        self.prompt_ids = tuple(prompt.prompt_id for prompt in trace.prompts)
        self.categories = tuple(prompt.category for prompt in trace.prompts)
        self._lengths = np.array([prompt.num_prompt for prompt in trace.prompts], dtype=np.int64)
        recorded = {key.partition("@")[0] for key in trace.forests}
        self._names = tuple(sorted(profile.drafters))
        self._costs = StepCosts(profile, recorded, trace.contexts - 1)
        self._residual, self._priced = Residual(), dict[SpecConfig, Prediction | None]()
        plain = simulator.replay(SpecConfig())
        self._plain, self._plain_step = self._seconds(plain), self._decode_seconds(plain) / plain.per_prompt()

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

    def assess(self, measurements: Sequence[Measurement], noise_floor: float) -> PredictionError | None:
        """Return how far predictions were off that had learnt nothing; None where nothing was predicted and measured.

        Args:
            measurements: Live ones, of prompts of the trace.
            noise_floor: Coefficient of variation of one timing.
        """
        features, errors, counts = self.errors(measurements)
        if not len(errors):
            return None
        configs = self._measured(measurements)
        prices = [price for price in map(self.uncorrected, configs) if price is not None]
        measured = np.array([np.mean([value for _, value in configs[price.config]]) for price in prices])
        # Only configurations that were measured on all prompts can be put in an order.
        whole = [len({row for row, _ in configs[price.config]}) == len(self.prompt_ids) for price in prices]
        ranked, predicted = measured[whole], (measured - errors)[whole]
        steps = [step for price in prices for step in self._step_errors(price, measurements)]
        left_out = [self._left_out(features, errors, counts, row) for row in range(len(errors))]
        return PredictionError(
            num_configs=len(prices),
            step_seconds_mape=mape(steps),
            tokens_per_second_mape=mape(errors),
            rank_correlation=rank_correlation(predicted, ranked),
            regret=regret(predicted, ranked) if len(ranked) else None,
            corrected_mape=mape(left_out) if len(errors) > 1 else None,
            noise=noise_floor * float(np.sqrt(2.0 / counts.mean())),
        )

    def _step_errors(self, price: Prediction, measurements: Sequence[Measurement]) -> list[float]:
        """Return the logarithm of predicted over measured seconds of a step, one for the configuration."""
        places = {prompt_id: row for row, prompt_id in enumerate(self.prompt_ids)}
        ratios = []
        for one in measurements:
            if one.config == price.config and one.prompt_id in places and one.stats.num_steps:
                plain = (one.baseline_seconds - one.baseline_prefill_seconds) / (one.baseline_num_tokens - 1)
                step = (one.seconds - one.prefill_seconds) / one.stats.num_steps
                ratios.append(float(np.log(price.step_seconds[places[one.prompt_id]] / (step / plain))))
        return [float(np.mean(ratios))] if ratios else []

    @staticmethod
    def _left_out(features: Floats, errors: Floats, counts: NDArray[np.int64], row: int) -> float:
        """Return the error of a prediction that was corrected by all other configurations."""
        others = np.arange(len(errors)) != row
        if not others.any():
            return float(errors[row])
        shift, _ = Residual().fit(features[others], errors[others], counts[others]).predict(features[row : row + 1])
        return float(errors[row] - shift[0])

    def errors(self, measurements: Iterable[Measurement]) -> tuple[Floats, Floats, NDArray[np.int64]]:
        """Return how far uncorrected predictions were off, by configuration.

        Returns:
            Features [configs, features], mean of measured minus predicted log speedup [configs], and of how many
            measurements [configs].
        """
        by_config = self._measured(measurements)
        priced = [self.uncorrected(config) for config in by_config]
        found = [
            (price.features, float(np.mean([value - price.log_speedups[row] for row, value in seen])), len(seen))
            for price, seen in zip(priced, by_config.values(), strict=True)
            if price is not None
        ]
        features, means, counts = zip(*found, strict=True) if found else ((), (), ())
        width = self._num_features
        return np.array(features).reshape(-1, width), np.array(means), np.array(counts, dtype=np.int64)

    def _measured(self, measurements: Iterable[Measurement]) -> dict[SpecConfig, list[tuple[int, float]]]:
        """Return configurations to row of the prompt and log speedup of each measurement."""
        by_config: dict[SpecConfig, list[tuple[int, float]]] = {}
        places = {prompt_id: row for row, prompt_id in enumerate(self.prompt_ids)}
        for one in measurements:
            if one.prompt_id in places and not one.config.is_off:
                by_config.setdefault(one.config, []).append((places[one.prompt_id], one.log_speedup))
        return by_config

    def uncorrected(self, config: SpecConfig) -> Prediction | None:
        """Return what was predicted before anything was learnt."""
        if config not in self._priced:
            self._priced[config] = self._price_now(config)
        return self._priced[config]

    def _price_now(self, config: SpecConfig) -> Prediction | None:
        try:
            replay = self._simulator.replay(config)
            seconds, decode = self._seconds(replay), self._decode_seconds(replay)
        except (ReplayError, MeasurementError):
            return None
        steps = replay.per_prompt()
        return Prediction(
            config=config,
            seconds=seconds,
            step_seconds=decode / steps / self._plain_step,
            log_speedups=np.log(self._plain / seconds),
            num_steps=steps,
            features=self._features(replay),
        )

    def _seconds(self, replay: Replay) -> Floats:
        """Return the seconds of whole calls: [prompts]."""
        return self._costs.prefills(self._lengths, replay.config) + self._decode_seconds(replay)

    def _decode_seconds(self, replay: Replay) -> Floats:
        """Return the seconds behind the prefills, a drafter's own prefill being part of its first draft: [prompts]."""
        steps = np.bincount(replay.prompts, self._costs.steps(replay), minlength=replay.num_prompts)
        return steps + self._costs.first_drafts(replay)

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
            known[price.config] = replace(
                price,
                seconds=price.seconds * np.exp(-shift),
                log_speedups=price.log_speedups + shift,
                spread=float(spread),
            )
        return [price if price is None else known.get(price.config, price) for price in prices]
