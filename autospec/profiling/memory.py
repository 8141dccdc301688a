"""What models take in memory: bytes of weights, and what a process or device holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from autospec.engine.cache import KVCache
from autospec.engine.drafters import Drafter
from autospec.engine.model import CausalLM

_DEEPEST = 6  # levels of objects within a drafter


def weight_bytes(target: CausalLM) -> int:
    """Return what a model's weights and buffers take."""
    return sum(_sizes(target).values())


def own_weight_bytes(drafter: Drafter, target: CausalLM) -> int:
    """Return what a drafter's tensors take, without those that are the target's; best before it has seen a text."""
    shared = _sizes(target)
    return sum(size for place, size in _sizes(drafter).items() if place not in shared)


def peak_bytes(device: torch.device) -> int:
    """Return the most that torch held on a device since the last reset; on a CPU what the process holds now."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def reset_peak(device: torch.device) -> None:
    """Begin a new peak, on devices that know one."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _sizes(thing: Any) -> dict[int, int]:
    """Return the bytes of every storage that is reached from an object, by its address."""
    return dict(_place_and_size(tensor) for tensor in _tensors(thing, _DEEPEST))


def _place_and_size(tensor: Tensor) -> tuple[int, int]:
    if tensor.is_mkldnn:  # packed for the processor: its storage is its own business
        return id(tensor), tensor.numel() * tensor.element_size()
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def _tensors(thing: Any, levels: int) -> Iterator[Tensor]:
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, CausalLM):
        yield from thing.weights()
    elif isinstance(thing, nn.Module):
        yield from thing.parameters()
        yield from thing.buffers()
    elif levels and not isinstance(thing, KVCache):
        for inner in _parts(thing):
            yield from _tensors(inner, levels - 1)


def _parts(thing: Any) -> list[Any]:
    if isinstance(thing, Mapping):
        return list(thing.values())
    if isinstance(thing, list | tuple):
        return list(thing) if any(not isinstance(one, int | float | str) for one in thing[:1]) else []
    return (
        list(vars(thing).values())
        if type(thing).__module__.startswith("autospec.") and hasattr(thing, "__dict__")
        else []
    )
