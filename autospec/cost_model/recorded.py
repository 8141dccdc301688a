"""The steps of configurations on recorded prompts, these as long as they were or taken for longer or shorter ones.

Whether a draft is accepted depends on the text near its end, what its step costs on all of the text: so a trace of
short prompts tells of long ones, as far as that holds.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from autospec.config import SpecConfig
from autospec.errors import MeasurementError
from autospec.replay import Expectation, Simulator, Trace, expected

Ints = NDArray[np.int64]
_LONGEST = 1 << 40  # tokens that still can be counted


class RecordedSteps:
    """Replays configurations.

    Args:
        simulator: Over the recorded prompts.
        prompt_length: Take every prompt for one of so many tokens; None: of those it has.

    Raises:
        MeasurementError: See `lengths_of`.

    Attributes:
        lengths: [prompts] tokens of every prompt.
        contexts: [positions] tokens of the text at every recorded position.
    """

    def __init__(self, simulator: Simulator, prompt_length: int | None = None) -> None:
        self.simulator, self.prompt_length, trace = simulator, prompt_length, simulator.trace
        self.lengths = lengths_of(trace, prompt_length)
        self._added = self.lengths - lengths_of(trace)
        self.contexts = contexts_of(trace, prompt_length)

    def of(self, config: SpecConfig) -> Expectation:
        """Return the steps of a configuration.

        Raises:
            ReplayError: The trace cannot tell; see `expected`.
        """
        steps = expected(self.simulator, config)
        if self.prompt_length is None:
            return steps
        return replace(steps, contexts=steps.contexts + self._added[steps.prompts])


def lengths_of(trace: Trace, prompt_length: int | None = None) -> Ints:
    """Return the tokens of every prompt: [prompts].

    Args:
        trace: The prompts.
        prompt_length: What every prompt is taken for; None: what it is.

    Raises:
        MeasurementError: The length is below 1, or no text's.
    """
    if prompt_length is None:
        return np.array([prompt.num_prompt for prompt in trace.prompts], dtype=np.int64)
    if not 1 <= prompt_length <= _LONGEST:
        raise MeasurementError(f"`1 <= prompt_length <= {_LONGEST:,}` must hold, but got {prompt_length}")
    return np.full(len(trace.prompts), prompt_length, dtype=np.int64)


def contexts_of(trace: Trace, prompt_length: int | None = None) -> Ints:
    """Return the tokens of the text at every recorded position [positions]; arguments as for `lengths_of`."""
    added = lengths_of(trace, prompt_length) - lengths_of(trace)
    return np.asarray(trace.contexts + added[trace.prompt_of])
