"""Measures through the log: nothing that is in it is measured again, nothing new is used before it is in it.

Also keeps the time of each phase across interruptions. Knows no trial and no statistics.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from autospec.config import SpecConfig
from autospec.errors import BaselineError, ConfigError, DrafterError, MeasurementError, ModelError, ScorerError
from autospec.records import Measurement, Prompt
from autospec.runners.base import Runner
from autospec.tuning.events import Measured, OnEvent, Warned
from autospec.tuning.log import Failure, MeasurementLog


class ConfigurationFailed(MeasurementError):
    """A configuration could not be measured; the reason is in the log."""


class Measurer:
    """A runner behind the log.

    Args:
        runner: What measures.
        log: What is known.
        on_event: Told of every measurement.
        now: Seconds from an arbitrary start.
    """

    def __init__(self, runner: Runner, log: MeasurementLog, on_event: OnEvent, now: Callable[[], float]) -> None:
        self.log = log
        self._runner, self._on_event, self._now = runner, on_event, now
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._running: tuple[str, float] | None = None
        for measurement in log.measurements:
            self._seconds[measurement.stage] += measurement.seconds + measurement.baseline_seconds

    def measure(self, config: SpecConfig, prompt: Prompt, *, stage: str, trial: int, repeat: int) -> Measurement:
        """Return a measurement, made now or before.

        Raises:
            ConfigurationFailed: It could not be made; this is recorded, and the configuration is not tried again, in
                batches of this size or larger.
            AutospecError: The prompt could not be rendered or the baseline not measured.
        """
        known = self.log.find(config, prompt.prompt_id, stage, repeat)
        if known is None:
            try:
                self._refuse_failed(config, prompt)
                known = self._measure_now(config, prompt, stage, trial, repeat)
            except ConfigurationFailed:
                self._tell_failure(config, prompt, stage)
                raise
            self.log.append(known)
        self._on_event(Measured(known))
        return known

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time spent inside as time of a phase."""
        self._running = (name, self._now())
        try:
            yield
        finally:
            self._seconds[name] = self.seconds(name)
            self._running = None

    def seconds(self, name: str) -> float:
        """Return the seconds of a phase; of interrupted processes only the timed part of measurements is known."""
        running = self._now() - self._running[1] if self._running and self._running[0] == name else 0.0
        return self._seconds[name] + running

    def wall_seconds(self) -> dict[str, float]:
        """Return the seconds of every phase so far."""
        return {name: self.seconds(name) for name in list(self._seconds)}

    def total_seconds(self) -> float:
        """Return the seconds of all phases."""
        return sum(self.wall_seconds().values())

    def _refuse_failed(self, config: SpecConfig, prompt: Prompt) -> None:
        failure = self.log.failure_of(config, _num_outputs(prompt))
        if failure is not None:
            raise ConfigurationFailed(failure.reason)

    def _tell_failure(self, config: SpecConfig, prompt: Prompt, stage: str) -> None:
        """Warn of a failure; in the search the line of the trial does."""
        failure = self.log.failure_of(config, _num_outputs(prompt))
        if failure is not None and stage != "search":
            self._on_event(Warned(str(failure)))

    def _measure_now(self, config: SpecConfig, prompt: Prompt, stage: str, trial: int, repeat: int) -> Measurement:
        try:
            return self._runner.measure(config, prompt, stage=stage, trial=trial, repeat=repeat)
        except (BaselineError, ScorerError):
            raise
        except (ConfigError, DrafterError, MeasurementError, ModelError) as error:
            if config.is_off:
                raise
            reason = f"{type(error).__name__}: {error}"
            self.log.append_failure(Failure(config, prompt.prompt_id, stage, trial, reason, _num_outputs(prompt)))
            raise ConfigurationFailed(reason) from error


def _num_outputs(prompt: Prompt) -> int:
    return 1 + len(prompt.companions)


def count_repeats(log: MeasurementLog, config: SpecConfig, before: int) -> int:
    """Return in how many trials below a number a configuration was measured."""
    found = (one for one in log.measurements if one.stage == "search" and one.config == config)
    return len({one.trial for one in found if one.trial < before})
