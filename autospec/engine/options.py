"""What a caller asks of one generation, checked before anything runs, and what a stream hands back.

Knows no model and no text; a fault is a `ConfigError`, whatever type the caller passed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

from autospec.config import SamplingParams, SpecConfig
from autospec.errors import ConfigError
from autospec.records import StepStats


@runtime_checkable
class Chooser(Protocol):
    """Anything that picks a configuration for a situation; a `Policy` does."""

    def choose(
        self, batch_size: int = 1, context_length: int | None = None, category: str | None = None
    ) -> SpecConfig:
        """Return the configuration to use."""
        ...


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How to decode, and what ends a generation.

    Args:
        config: A configuration or something that chooses one for each prompt.
        sampling: How the next token is chosen.
        max_new_tokens: Most tokens to emit.
        stop: Strings that end the output; the text is cut before them.
        ignore_eos: Go on behind an end-of-text token.
        batch_size: Prompts decoded side by side.

    Raises:
        ConfigError: A value of another type or out of range; all faults are listed.
    """

    config: SpecConfig | Chooser
    sampling: SamplingParams
    max_new_tokens: int
    stop: tuple[str, ...]
    ignore_eos: bool
    batch_size: int = 1

    def __post_init__(self) -> None:
        faults = []
        if not isinstance(self.config, (SpecConfig, Chooser)) or isinstance(self.config, type):
            faults.append(f"`config` must be a SpecConfig, a policy or None, but got {self.config!r}")
        if not isinstance(self.sampling, SamplingParams):
            faults.append(f"`sampling` must be SamplingParams or None, but got {self.sampling!r}")
        if type(self.max_new_tokens) is not int:
            faults.append(f"`max_new_tokens` must be an integer, but got {self.max_new_tokens!r}")
        elif self.max_new_tokens < 1:
            faults.append(f"`max_new_tokens >= 1` must hold, but got {self.max_new_tokens}")
        if type(self.batch_size) is not int or self.batch_size < 1:
            faults.append(f"`batch_size` must be an integer of at least 1, but got {self.batch_size!r}")
        if not all(isinstance(word, str) for word in self.stop):
            faults.append(f"`stop` must be a string or a list of strings, but got {list(self.stop)}")
        elif not all(self.stop):
            faults.append(f"stop strings must not be empty, but got {list(self.stop)}")
        if faults:
            raise ConfigError(faults)

    @classmethod
    def of(
        cls,
        config: SpecConfig | Chooser | None,
        sampling: SamplingParams | None,
        max_new_tokens: int,
        stop: str | Sequence[str],
        ignore_eos: bool,
        batch_size: int = 1,
    ) -> Self:
        """Build from what a caller passed: None is speculation off and greedy decoding, one stop string is a list."""
        words = (stop,) if isinstance(stop, str) or not isinstance(stop, Sequence) else tuple(stop)
        return cls(
            SpecConfig() if config is None else config,
            SamplingParams() if sampling is None else sampling,
            max_new_tokens,
            words,
            ignore_eos,
            batch_size,
        )


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one step adds to a streamed output.

    Args:
        text: New text, which may be empty while a character is incomplete.
        token_ids: New tokens.
        stats: Counts so far; the same object in every chunk of a stream.
        stop_reason: Set on the last chunk: `length`, `eos` or `stop`.
    """

    text: str
    token_ids: tuple[int, ...]
    stats: StepStats
    stop_reason: str = ""
