"""What measures: one prompt under a configuration and under plain decoding, side by side.

Knows no study: which configuration, prompt and repeat is decided elsewhere.
"""

from __future__ import annotations

from typing import Protocol

from autospec.config import SpecConfig
from autospec.records import Measurement, Prompt


class Runner(Protocol):
    """Measures prompts."""

    def measure(self, config: SpecConfig, prompt: Prompt, *, stage: str, trial: int, repeat: int) -> Measurement:
        """Time one prompt under `config` and under plain decoding in the same call.

        Args:
            config: What to measure; speculation off measures the baseline against itself.
            prompt: What to generate from.
            stage: Goes into the record: `search`, `finalist` or `confirm`.
            trial: Goes into the record.
            repeat: Goes into the record; with the prompt it decides which of the two runs first.

        Raises:
            ConfigError: The engine cannot run this configuration.
            MeasurementError: It ran out of memory or failed; `MismatchError` where a lossless rule changed the output.
            BaselineError: Plain decoding failed.
            ScorerError: A task scorer cannot judge an output.
            WorkloadError: The prompt cannot be rendered.
        """
        ...
