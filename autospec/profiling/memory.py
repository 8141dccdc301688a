"""What models take in memory: bytes of weights, and what a process or device holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

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


def held_bytes(drafters: Sequence[Drafter], target: CausalLM) -> int:
    """Return what drafters' tensors take that are not the target's, with the caches of the text they drafted last."""
    shared, held = _sizes(target), dict[int, int]()
    for drafter in drafters:
        held |= _sizes(drafter, with_caches=True)
    return sum(size for place, size in held.items() if place not in shared)


def cache_bytes(cache: KVCache) -> int:
    """Return what keys and values of a cache take, its room included; 0 before anything was run."""
    return sum(tensor.nbytes for store in (cache.keys, cache.values) for tensor in store.values())


def peak_bytes(device: torch.device) -> int:
    """Return the most that torch held on a device since the last reset; on a CPU what the process holds now."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import psutil  # a GPU tells without it

    return int(psutil.Process().memory_info().rss)


def reset_peak(device: torch.device) -> None:
    """Begin a new peak, on devices that know one."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _sizes(thing: Any, with_caches: bool = False) -> dict[int, int]:
    """Return the bytes of every storage that is reached from an object, by its address."""
    return dict(_place_and_size(tensor) for tensor in _tensors(thing, _DEEPEST, with_caches))


def _place_and_size(tensor: Tensor) -> tuple[int, int]:
    if tensor.is_mkldnn:  # packed for the processor: its storage is its own business
        return id(tensor), tensor.numel() * tensor.element_size()
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def _tensors(thing: Any, levels: int, with_caches: bool) -> Iterator[Tensor]:
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, CausalLM):
        yield from thing.weights()
    elif isinstance(thing, nn.Module):
        yield from thing.parameters()
        yield from thing.buffers()
    elif isinstance(thing, KVCache):
        if with_caches:
            yield from (*thing.keys.values(), *thing.values.values())
    elif levels:
        for inner in _parts(thing):
            yield from _tensors(inner, levels - 1, with_caches)


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
