"""The clock of every measurement: waits for the device, then reads the time.

Work on a GPU is only queued when a call returns, so a time read without waiting says nothing. Knows no model and no
statistics; torch is imported only for a device that has a queue.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from autospec.errors import ConfigError

if TYPE_CHECKING:
    import torch


class Clock:
    """Seconds from an arbitrary start, read when all work given to `device` is done.

    Args:
        device: Such as `cpu`, `cuda`, `cuda:1`, `mps` or a `torch.device`.

    Raises:
        ConfigError: The device is of a kind that cannot be waited for.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._synchronize = _synchronizer(str(device))

    def now(self) -> float:
        """Wait for the device and return the time in seconds."""
        self._synchronize()
        return time.perf_counter()


def _synchronizer(device: str) -> Callable[[], None]:
    kind = device.partition(":")[0]
    if kind == "cpu":
        return _nothing
    if kind not in ("cuda", "mps"):
        raise ConfigError(f"a clock needs a device of kind cpu, cuda or mps, but got {device!r}")
    import torch

    if kind == "mps":
        return torch.mps.synchronize
    return lambda: torch.cuda.synchronize(device)


def _nothing() -> None:
    """Do nothing: work on the CPU is done when its call returns."""
