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
from autospec.replay import Expectation, Simulator, expected

Ints = NDArray[np.int64]
_LONGEST = 1 << 40


class RecordedSteps:
    """Replays configurations.

    Args:
        simulator: Over the recorded prompts.
        prompt_length: Take every prompt for one of so many tokens; None: of those it has.

    Raises:
        MeasurementError: The length is below 1, or no text's.

    Attributes:
        lengths: [prompts] tokens of every prompt.
        contexts: [positions] tokens of the text at every recorded position.
    """

    def __init__(self, simulator: Simulator, prompt_length: int | None = None) -> None:
        if prompt_length is not None and not 1 <= prompt_length <= _LONGEST:
            raise MeasurementError(f"`1 <= prompt_length <= {_LONGEST:,}` must hold, but got {prompt_length}")
        self.simulator, self.prompt_length, trace = simulator, prompt_length, simulator.trace
        own = np.array([prompt.num_prompt for prompt in trace.prompts], dtype=np.int64)
        self.lengths: Ints = own if prompt_length is None else np.full(len(own), prompt_length, dtype=np.int64)
        self._added = self.lengths - own
        self.contexts: Ints = trace.contexts + self._added[trace.prompt_of]

    def of(self, config: SpecConfig) -> Expectation:
        """Return the steps of a configuration.

        Raises:
            ReplayError: The trace cannot tell; see `expected`.
        """
        steps = expected(self.simulator, config)
        if self.prompt_length is None:
            return steps
        return replace(steps, contexts=steps.contexts + self._added[steps.prompts])
