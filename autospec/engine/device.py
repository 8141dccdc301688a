"""Devices and number formats by name."""

from __future__ import annotations

import torch

from autospec.engine.probing import first_line
from autospec.errors import ModelError


def resolve_device(device: str) -> torch.device:
    """Turn `auto` or a name into a device that exists.

    Raises:
        ModelError: No such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"`device` must name a device of this machine, but got {device!r}: {first_line(error)}"
        ) from error
    return found


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype | str:
    """Turn a name into a number format; `auto` stays where the checkpoint's own is to be taken.

    Raises:
        ModelError: No such format.
    """
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    if dtype not in names:
        raise ModelError(f"`dtype` must be one of {['auto', *names]}, but got {dtype!r}")
    return names[dtype]
