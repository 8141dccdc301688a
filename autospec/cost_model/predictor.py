"""From a trace and a hardware profile to the speed of any configuration, on the machine that was profiled.

The simulator says which steps a configuration takes, or with which chances it takes them, the profile what they cost;
what live measurements say otherwise is learnt by a Gaussian process over what distinguishes configurations, and added.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from autospec.config import SpecConfig
from autospec.cost_model.batches import BatchPrices
from autospec.cost_model.prediction import Errors, Prediction
from autospec.cost_model.recorded import RecordedSteps
from autospec.cost_model.residual import NOISE, Residual
from autospec.cost_model.steps import Floats, StepCosts, p95_by_prompt
from autospec.errors import MeasurementError, ReplayError, ReplayMiss
from autospec.profiling import HardwareProfile
from autospec.records import Measurement
from autospec.replay import Expectation, Simulator
from autospec.robust import take_apart
from autospec.yardsticks import SPEED, Yardstick

_RECORDED_AT_ONCE = 1000  # configurations whose steps are held

_NOISE_WEIGHT = 12.0  # measurements that what is known of noise beforehand counts for: a trial's


class Predictor:
    """Prices configurations without running them.

    Args:
        simulator: Over the recorded prompts.
        profile: Of the machine they shall run on.
        yardstick: By which configurations are to be ranked.
        prompt_length: Take every prompt for one of so many tokens; what is drafted and accepted stays as it was
            recorded. None: the length it has.

    Raises:
        MeasurementError: The profile has not even what plain decoding of these prompts needs.
    """

    def __init__(
        self,
        simulator: Simulator,
        profile: HardwareProfile,
        yardstick: Yardstick = SPEED,
        prompt_length: int | None = None,
    ) -> None:
        self._simulator, self.yardstick, trace = simulator, yardstick, simulator.trace
        self._recorded, self.profile = RecordedSteps(simulator, prompt_length), profile
        self.prompt_ids = tuple(prompt.prompt_id for prompt in trace.prompts)
        self.categories = tuple(prompt.category for prompt in trace.prompts)
        self._lengths = self._recorded.lengths
        recorded = {key.partition("~")[0].partition("@")[0] for key in trace.forests}
        self._names = tuple(sorted(profile.drafters))
        self._costs = StepCosts(profile, recorded, self._recorded.contexts - 1)
        self._residual, self._priced = Residual(), dict[SpecConfig, Prediction | None]()
        self._learnt = dict[SpecConfig, int]()
        plain = self._recorded.of(SpecConfig())
        self._plain, self._plain_step = self._seconds(plain), self._decode_seconds(plain) / plain.num_steps
        self._plain_latency = self._latencies(plain)

    def for_batches(self, batch_size: int) -> BatchPrices:
        """Return what prices batches of so many prompts; nothing is learnt of them.

        Raises:
            MeasurementError: The profile has no target forwards of so many rows, or there are fewer prompts.
        """
        return BatchPrices(self._recorded, self._costs, batch_size)

    def for_length(self, prompt_length: int) -> Predictor:
        """Return what prices the same texts behind prompts of so many tokens; nothing is learnt of them.

        Raises:
            MeasurementError: The profile does not reach as far.
        """
        return Predictor(self._simulator, self.profile, self.yardstick, prompt_length)

    def predict(self, configs: Sequence[SpecConfig]) -> list[Prediction | None]:
        """Return what configurations would do; None for one that the trace or the profile cannot tell of.

        Replaying happens once for each; asked again, after `correct`, only the correction is new. What they miss of
        the trace is recorded, all together, if there is a recorder.
        """
        self._record(self.unrecorded(configs))
        return self._corrected([self.uncorrected(config) for config in configs])

    def unrecorded(self, configs: Sequence[SpecConfig]) -> list[SpecConfig]:
        """Price what the trace holds, and return those for which something must be recorded first."""
        simulator, waiting = self._simulator, list[SpecConfig]()
        simulator.may_record = False
        try:
            for config in configs:
                if config not in self._priced:
                    try:
                        self._priced[config] = self._price_now(config)
                    except ReplayMiss:
                        waiting.append(config)
        finally:
            simulator.may_record = True
        return [config for config in waiting if self._can_be_recorded(config)]

    def recordings(self, configs: Sequence[SpecConfig]) -> list[tuple[float, list[SpecConfig]]]:
        """Return about how many seconds recording takes, for groups that are recorded together; see `unrecorded`."""
        groups: dict[tuple[str, ...], list[SpecConfig]] = {}
        for config in configs:
            groups.setdefault(self._simulator.parts_to_record(config), []).append(config)
        return [(self._simulator.seconds_to_record(group), group) for group in groups.values()]

    def _can_be_recorded(self, config: SpecConfig) -> bool:
        try:
            self._simulator.parts_to_record(config)
        except ReplayError:
            self._priced[config] = None
            return False
        return True

    def correct(self, measurements: Iterable[Measurement]) -> None:
        """Learn from live measurements, all of them at once, of prompts of the trace; earlier ones are forgotten.

        Configurations that cannot be predicted teach nothing.
        """
        errors = self.errors(measurements)
        self._residual.fit(errors.features, errors.means, errors.counts, errors.noise)
        self._learnt = {config: place for place, config in enumerate(errors.configs)}

    def joint(self, configs: Sequence[SpecConfig]) -> tuple[Floats, Floats]:
        """Return the log ratios of different configurations, corrected, and their covariance: what is believed now.

        Args:
            configs: That can be predicted, none of them off; after `correct`.
        """
        prices = [price for price in map(self.uncorrected, configs) if price is not None]
        assert len(prices) == len(configs)
        places = np.array([self._learnt.get(config, -1) for config in configs])
        shifts, covariance = self._residual.joint(np.stack([price.features for price in prices]), places)
        return np.array([price.log_ratio for price in prices]) + shifts, covariance

    def errors(self, measurements: Iterable[Measurement]) -> Errors:
        """Return how far uncorrected predictions were off, by configuration.

        What a prompt is off under every configuration is taken out, and stalls of the machine count little.
        """
        by_config = self._measured(measurements)
        priced = {config: price for config in by_config if (price := self.uncorrected(config)) is not None}
        features = np.array([price.features for price in priced.values()]).reshape(-1, self._num_features)
        if not priced:
            return Errors((), features, np.zeros(0), np.zeros(0, dtype=np.int64), NOISE)
        seen = [
            (place, row, value - price.log_ratios[row])
            for place, (config, price) in enumerate(priced.items())
            for row, value in by_config[config]
        ]
        places, rows, values = (np.array(side) for side in zip(*seen, strict=True))
        table = take_apart(places, rows, values)
        known = _NOISE_WEIGHT * NOISE**2 + table.degrees * table.scale**2
        noise = float(np.sqrt(known / (_NOISE_WEIGHT + table.degrees)))
        return Errors(tuple(priced), features, table.rows, np.bincount(places), noise)

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

    def _record(self, configs: Sequence[SpecConfig]) -> None:
        for _, group in self.recordings(configs) if configs else ():
            for start in range(0, len(group), _RECORDED_AT_ONCE):
                with suppress(ReplayError):  # what cannot be recorded cannot be priced
                    self._simulator.record(group[start : start + _RECORDED_AT_ONCE])

    def _price_now(self, config: SpecConfig) -> Prediction | None:
        try:
            steps = self._recorded.of(config)
            seconds, decode = self._seconds(steps), self._decode_seconds(steps)
        except ReplayMiss:
            if not self._simulator.may_record:
                raise
            return None
        except (ReplayError, MeasurementError):
            return None
        return Prediction(
            config=config,
            seconds=seconds,
            step_seconds=decode / steps.num_steps / self._plain_step,
            log_speedups=np.log(self._plain / seconds),
            num_steps=steps.num_steps,
            features=self._features(steps),
            log_latency_ratios=self._log_latency_ratios(steps),
            yardstick=self.yardstick,
            is_exact=steps.is_exact,
        )

    def _seconds(self, steps: Expectation) -> Floats:
        """Return the seconds of whole calls: [prompts]."""
        return self._costs.prefills(self._lengths, steps.config) + self._decode_seconds(steps)

    def _decode_seconds(self, steps: Expectation) -> Floats:
        """Return the seconds behind the prefills, a drafter's own prefill being part of its first draft: [prompts]."""
        before = self._costs.starts(steps) + self._costs.first_drafts(steps)
        return steps.sums(steps.chances * self._costs.steps(steps)) + before

    def _latencies(self, steps: Expectation) -> Floats:
        """Return the p95 inter-token latencies: [prompts]; of expected steps that of all that may be taken."""
        gaps = self._costs.gaps(steps)
        return p95_by_prompt(gaps, steps.prompts, steps.num_prompts, None if steps.is_exact else steps.chances)

    def _log_latency_ratios(self, steps: Expectation) -> Floats:
        own, ratios = self._latencies(steps), np.ones(steps.num_prompts)
        return np.log(np.divide(self._plain_latency, own, out=ratios, where=own > 0.0))

    @property
    def _num_features(self) -> int:
        return 5 + len(self._names)

    def _features(self, steps: Expectation) -> Floats:
        """Return how long and how wide its steps are, how much of them is drafting, and who drafts.

        What is only expected is verified by another rule, which takes its own time.
        """
        num_steps = max(float(steps.chances.sum()), 1.0)
        num_tokens = num_steps + float(steps.num_accepted.sum())
        shape = [
            np.log(num_steps / num_tokens),
            steps.num_drafted.sum() / num_steps / 8,
            steps.num_calls.sum() / num_steps / 4,
            float(steps.config.tree_shape != "chain"),
            float(not steps.is_exact),
        ]
        return np.array([*shape, *(float(name in steps.config.drafter_names) for name in self._names)])

    def _corrected(self, prices: Sequence[Prediction | None]) -> list[Prediction | None]:
        known = {price.config: price for price in prices if price is not None and not price.config.is_off}
        if not known or not self._residual.is_fitted:
            return list(prices)
        features = np.stack([price.features for price in known.values()])
        shifts, spreads = self._residual.predict(features, np.array([self._learnt.get(one, -1) for one in known]))
        for price, shift, spread in zip(list(known.values()), shifts, spreads, strict=True):
            corrected = {self.yardstick.predicted: price.log_ratios + shift}
            known[price.config] = replace(price, spread=float(spread), **corrected)
        return [price if price is None else known.get(price.config, price) for price in prices]
