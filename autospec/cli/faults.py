"""Collects what is wrong with the input of a command, so that it is all said at once.

Knows which errors are the user's to mend, and what exit code they end with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from autospec.errors import AutospecError, ConfigError, ModelError, PolicyError, ProfileError, WorkloadError

ResultT = TypeVar("ResultT")

BAD_INPUT = (ConfigError, ModelError, PolicyError, ProfileError, WorkloadError)
EXIT_BAD_INPUT = 2
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
EXIT_PIPE_CLOSED = 141  # what a shell sees of a tool that SIGPIPE ends


def exit_code(error: AutospecError) -> int:
    """Return 2 for what the user can mend in the input, 1 for all else."""
    return EXIT_BAD_INPUT if isinstance(error, BAD_INPUT) else EXIT_FAILED


class Faults:
    """A list of faults that grows check by check and is raised once.

    Args:
        found: What is known already.
    """

    def __init__(self, found: Sequence[str] = ()) -> None:
        self.found = list(found)

    def attempt(self, make: Callable[[], ResultT], where: str = "") -> ResultT | None:
        """Return what `make` returns; where it refuses its input, keep the faults and return None.

        Args:
            make: Builds or reads one thing.
            where: Name of the setting at fault, put before each message.
        """
        try:
            return make()
        except BAD_INPUT as error:
            messages = error.faults if isinstance(error, ConfigError) else [str(error)]
            self.found.extend(f"`{where}`: {message}" if where else message for message in messages)
            return None

    def raise_if_any(self) -> None:
        """Raise a `ConfigError` with all faults, in the order found and each once."""
        if self.found:
            raise ConfigError(list(dict.fromkeys(self.found)))
