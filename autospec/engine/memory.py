"""Whether weights and caches fit what is free, said with the arithmetic before anything is allocated."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import torch

from autospec.errors import ModelError

_UNCHECKED = 64 << 20  # bytes that are not worth asking for
_WEIGHT_FILES = ("model*.safetensors", "*.safetensors", "pytorch_model*.bin")  # the first of which there are any
_GIB = 1 << 30


def free_bytes(device: torch.device) -> int:
    """Return how much memory of a device is free."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for itself
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    import psutil  # a GPU tells without it

    return int(psutil.virtual_memory().available)


def return_freed() -> None:
    """Give back to the system what was freed: glibc keeps holes between what is still used, as packing leaves them."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if trim is not None:
            trim(0)


def check_weights(name: str, folder: Path, stored: torch.dtype, wanted: torch.dtype, device: torch.device) -> None:
    """Refuse a checkpoint whose weights cannot fit.

    Args:
        name: Of the model, for the message.
        folder: Where its files lie.
        stored: Number format of the files.
        wanted: Number format in which it is loaded.
        device: Where to.

    Raises:
        ModelError: They take more than what is free.
    """
    sizes = (sum(path.stat().st_size for path in folder.glob(pattern)) for pattern in _WEIGHT_FILES)
    num_bytes = next((size for size in sizes if size), 0) / stored.itemsize
    needed = int(num_bytes * wanted.itemsize)
    free = free_bytes(device) if needed > _UNCHECKED else needed
    if needed > free:
        raise ModelError(
            f"weights must fit the memory, but those of `{name}` take {num_bytes / 1e9:.2f} billion numbers x "
            f"{wanted.itemsize} bytes = {needed / _GIB:.1f} GiB, and {free / _GIB:.1f} GiB are free on {device}"
        )


def check_cache(num_rows: int, capacity: int, bytes_per_token: int, device: torch.device) -> None:
    """Refuse caches that cannot fit.

    Args:
        num_rows: Prompts at a time.
        capacity: Tokens of each.
        bytes_per_token: Keys and values of all layers.
        device: Where they are.

    Raises:
        ModelError: They take more than what is free.
    """
    needed = num_rows * capacity * bytes_per_token
    free = free_bytes(device) if needed > _UNCHECKED else needed
    if needed > free:
        raise ModelError(
            f"keys and values must fit the memory, but {num_rows} x {capacity:,} tokens x "
            f"{bytes_per_token / 1024:.1f} KiB = {needed / _GIB:.1f} GiB, and {free / _GIB:.1f} GiB are free on "
            f"{device}"
        )
