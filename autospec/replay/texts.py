"""The texts of a trace, and the positions in them at which a step can begin."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autospec.errors import ReplayError
from autospec.replay.forest import Ints


@dataclass(frozen=True, slots=True)
class TracePrompt:
    """One recorded text.

    Args:
        prompt_id: Unique within the trace.
        category: Of the workload.
        seed: It was sampled with.
        num_prompt: Tokens of the rendered prompt.
        num_new: Tokens the target wrote, an end-of-text token not ending them.
    """

    prompt_id: str
    category: str
    seed: int
    num_prompt: int
    num_new: int


class Texts:
    """What follows from prompts and outputs alone.

    A position is a place in an output where a step can begin: behind the first token, which comes from the prefill,
    and behind every later one but the last. Positions of all prompts are numbered through.

    Attributes:
        prompts: In order.
        text: [tokens] prompts and outputs, one behind the other.
    """

    prompts: tuple[TracePrompt, ...]
    text: Ints

    @cached_property
    def text_starts(self) -> NDArray[np.int64]:
        """Where each text begins, and where the last one ends: [prompts + 1]."""
        return np.cumsum([0, *(prompt.num_prompt + prompt.num_new for prompt in self.prompts)])

    @cached_property
    def position_starts(self) -> NDArray[np.int64]:
        """Each prompt's first position, and the number of all: [prompts + 1]."""
        return np.cumsum([0, *(prompt.num_new - 1 for prompt in self.prompts)])

    @property
    def num_positions(self) -> int:
        """Number of all positions."""
        return int(self.position_starts[-1])

    @cached_property
    def prompt_of(self) -> NDArray[np.int64]:
        """Which prompt each position belongs to: [positions]."""
        return np.repeat(np.arange(len(self.prompts)), np.diff(self.position_starts))

    @cached_property
    def contexts(self) -> NDArray[np.int64]:
        """Tokens of the text before each position: [positions]."""
        within = np.arange(self.num_positions) - self.position_starts[self.prompt_of]
        return within + 1 + np.array([prompt.num_prompt for prompt in self.prompts], dtype=np.int64)[self.prompt_of]

    @cached_property
    def next_tokens(self) -> Ints:
        """What the target wrote at each position: [positions]."""
        return np.asarray(self.text[self.text_starts[self.prompt_of] + self.contexts])

    def left(self, max_new_tokens: int | None = None) -> NDArray[np.int64]:
        """Return how many tokens remain to be written at each position, 0 or fewer behind the end: [positions].

        Raises:
            ReplayError: More tokens than were recorded.
        """
        lengths = np.array([prompt.num_new for prompt in self.prompts], dtype=np.int64)
        if max_new_tokens is not None:
            if max_new_tokens > lengths.min(initial=max_new_tokens):
                raise ReplayError(
                    f"`max_new_tokens` must be at most what was recorded, {lengths.min()}, but got {max_new_tokens}"
                )
            lengths[:] = max_new_tokens
        emitted = np.arange(self.num_positions) - self.position_starts[self.prompt_of] + 1
        return np.asarray(lengths[self.prompt_of] - emitted)

    def prompt_ids(self, row: int) -> list[int]:
        """Return the tokens of a prompt."""
        start = int(self.text_starts[row])
        return self._ids[start : start + self.prompts[row].num_prompt]

    def output_ids(self, row: int) -> list[int]:
        """Return what the target wrote."""
        start, end = int(self.text_starts[row]) + self.prompts[row].num_prompt, int(self.text_starts[row + 1])
        return self._ids[start:end]

    @cached_property
    def _ids(self) -> list[int]:
        ids: list[int] = self.text.tolist()
        return ids
