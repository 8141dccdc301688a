"""Attention of the new tokens of one row or of several by code that is compiled where it runs, in one call a layer.

Rows of any length share the processor's cores, by heads of keys and 64 queries at a time, and none reads what another
has. Calls of torch's own attention take longer to begin than to run behind texts of some hundred tokens, and one is
needed for every row (benchmarks/LOG.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import Array, Structure, byref, c_float, c_int64, c_void_p
from functools import cache
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from autospec.engine.cache import KVCache
from autospec.engine.compiling import compiled_library
from autospec.engine.lean.attention import Heads
from autospec.engine.masks import NewTokens, Windows, sights

# Runs attention of spans: see `attend` in kernel.cpp for what it takes.
Kernel = Callable[..., None]


class Span(Structure):
    """The new tokens of one row, as the kernel reads them."""

    _fields_ = (
        ("row", c_int64),
        ("first", c_int64),
        ("count", c_int64),
        ("length", c_int64),
        ("mask", c_void_p),
    )


class Spans:
    """The new tokens of rows, laid one behind the other, for one kind of layer.

    Args:
        asked: Rows of the cache and their tokens.
        masks: What each sees, [1, 1, n, length + n] in single precision with the lowest number where it may not look;
            None is all before.
    """

    def __init__(self, asked: Sequence[tuple[int, NewTokens]], masks: Sequence[Tensor | None]) -> None:
        self._masks = [None if mask is None else mask.contiguous() for mask in masks]  # held while their addresses are
        first = 0
        self.array: Array[Span] = (Span * len(asked))()
        for place, ((row, new), mask) in enumerate(zip(asked, self._masks, strict=True)):
            address = None if mask is None else mask.data_ptr()
            self.array[place] = Span(row, first, new.num_new, new.lengths[0], address)
            first += new.num_new


class KernelAttention:
    """Tokens of rows, one behind the other: [1, tokens]; see `Attending`. Tokens behind them are left as they come.

    Args:
        kernel: For the size of the layers' heads.
        cache: Of all rows.
        asked: Rows and their tokens.
        windows: Of the model's kinds of layers.

    Raises:
        ModelError: The cache is full.
    """

    def __init__(
        self, kernel: Kernel, cache: KVCache, asked: Sequence[tuple[int, NewTokens]], windows: Windows
    ) -> None:
        cache.check_room(max(new.lengths[0] + new.num_new for _, new in asked))
        self._kernel, self._whole = kernel, cache.whole
        asked = [(cache.place + row, new) for row, new in asked]
        seen = [_masks(new, windows) for _, new in asked]
        self._spans = {kind: Spans(asked, [masks[kind] for masks in seen]) for kind in windows}

    def mix(self, number: int, heads: Heads, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `Attending`."""
        queries, keys, values = (_laid(states, heads.size) for states in (queries, keys, values))
        if number not in self._whole.keys:
            self._whole.of_layer(number, keys.transpose(1, 2), values.transpose(1, 2))
        cached_keys, cached_values = self._whole.keys[number], self._whole.values[number]
        mixed = torch.empty_like(queries, memory_format=torch.contiguous_format)
        spans = self._spans[heads.kind].array
        self._kernel(
            byref(spans),
            len(spans),
            heads.num_queries,
            heads.num_keys,
            cached_keys.shape[2],
            heads.scale,
            torch.get_num_threads(),
            queries.data_ptr(),
            queries.stride(1),
            keys.data_ptr(),
            keys.stride(1),
            values.data_ptr(),
            values.stride(1),
            cached_keys.data_ptr(),
            cached_values.data_ptr(),
            mixed.data_ptr(),
        )
        return mixed


@cache
def attention_kernel(head_size: int) -> Kernel:
    """Compile the kernel for heads of one size, and see whether it computes what torch's own attention does.

    Args:
        head_size: Numbers of a head.

    Raises:
        RuntimeError: There is no compiler, it fails, or what it makes computes something else.
    """
    source = files(__package__).joinpath("kernel.cpp").read_text(encoding="utf-8")
    attend: Any = compiled_library(f"#define HEAD_SIZE {head_size}\n{source}").attend
    attend.restype = None
    attend.argtypes = [
        *(c_void_p, c_int64, c_int64, c_int64, c_int64, c_float, c_int64),
        *(c_void_p, c_int64) * 3,
        *(c_void_p,) * 3,
    ]
    _check(attend, head_size)
    kernel: Kernel = attend
    return kernel


@torch.inference_mode()
def _check(kernel: Kernel, head_size: int) -> None:
    """Refuse a kernel that computes something else, of a chain and a tree behind texts that fill tiles and do not."""
    heads, lengths, num_new = Heads("full_attention", 4, 2, head_size, 0.5), (70, 3), 5
    tree = torch.eye(num_new, dtype=torch.bool)
    cache, shape = KVCache(80, 2), (2, 2, 80, head_size)
    cache.lengths = list(lengths)
    cache.keys[0], cache.values[0] = (
        torch.linspace(-at, 1, 4 * 80 * head_size).sin().view(shape) for at in (900, 800)
    )
    news = [NewTokens([lengths[0]], num_new), NewTokens([lengths[1]], num_new, tree, (0,) * num_new)]
    states = torch.linspace(-700, 1, 2 * num_new * 8 * head_size).sin().view(1, 2 * num_new, 8, head_size)
    queries, keys, values = states.split([4, 2, 2], dim=2)
    mixed = KernelAttention(kernel, cache, list(enumerate(news)), {heads.kind: None}).mix(
        0, heads, queries, keys, values
    )
    for row, new in enumerate(news):
        own, end = slice(row * num_new, (row + 1) * num_new), lengths[row] + num_new
        held_keys, held_values = (store[0][row : row + 1, :, :end] for store in (cache.keys, cache.values))
        mask = sights(new, {heads.kind: None}, states.dtype, states.device)[heads.kind].mask
        expected = scaled_dot_product_attention(
            queries[:, own].transpose(1, 2), held_keys, held_values, mask, scale=heads.scale, enable_gqa=True
        ).transpose(1, 2)
        written = torch.equal(held_keys[0, :, lengths[row] :], keys[0, own].transpose(0, 1))
        if not written or not torch.allclose(mixed[:, own], expected, rtol=1e-4, atol=1e-4):
            raise RuntimeError(f"attention compiled for heads of {head_size} computes something else")


def _masks(new: NewTokens, windows: Windows) -> dict[str, Tensor | None]:
    """Return by kind of layer what tokens of one row see, where that is not all before them."""
    end = new.lengths[0] + new.num_new
    if new.tree_mask is None and all(window is None or end <= window for window in windows.values()):
        return dict.fromkeys(windows)
    return {kind: sight.mask for kind, sight in sights(new, windows, torch.float32, torch.device("cpu")).items()}


def _laid(states: Tensor, size: int) -> Tensor:
    """Return [1, n, heads, size] in which only tokens may lie apart."""
    return states if states.stride()[2:] == (size, 1) else states.contiguous()
