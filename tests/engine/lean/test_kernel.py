"""Attention compiled where it runs mixes what torch's own attention does, whatever else runs beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from autospec.engine.cache import KVCache
from autospec.engine.compiling import compiled_library
from autospec.engine.lean import kernel
from autospec.engine.lean.attention import Heads
from autospec.engine.lean.kernel import KernelAttention, attention_kernel
from autospec.engine.masks import NewTokens, visible
from autospec.errors import ModelError

pytestmark = pytest.mark.compiler

SIZES = (20, 32)  # of heads; the first fills no processor's vectors
KIND, CAPACITY = "full_attention", 200
TREE = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 0, 1]]).bool()
DEPTHS = (0, 1, 1, 2, 2)

Asked = Sequence[tuple[int, NewTokens]]
ASKED: dict[str, Asked] = {
    "one token": [(0, NewTokens([50], 1))],
    "an empty cache": [(0, NewTokens([0], 3))],
    "the end of a tile": [(0, NewTokens([63], 1))],
    "over a tile's end": [(0, NewTokens([60], 9))],
    "a prompt behind a text": [(0, NewTokens([30], 100))],
    "a tree": [(0, NewTokens([70], 5, TREE, DEPTHS))],
    "a tree that began before": [(0, NewTokens([70], 3, TREE[2:], DEPTHS[2:]))],
    "rows": [(2, NewTokens([130], 4)), (0, NewTokens([64], 1)), (1, NewTokens([5], 5, TREE, DEPTHS))],
}


def made_cache(heads: Heads, lengths: Sequence[int]) -> KVCache:
    cache, shape = KVCache(CAPACITY, len(lengths)), (len(lengths), heads.num_keys, CAPACITY, heads.size)
    cache.lengths = list(lengths)
    for number in (0, 7):
        cache.keys[number], cache.values[number] = torch.randn(shape), torch.randn(shape)
        for row, length in enumerate(lengths):  # what lies behind the text is anything
            cache.keys[number][row, :, length:] = float("nan")
            cache.values[number][row, :, length:] = float("nan")
    return cache


def made_for(heads: Heads, asked: Asked) -> tuple[KVCache, list[Tensor]]:
    """Return a cache behind which the tokens stand, and their queries, keys and values in one tensor's parts."""
    torch.manual_seed(3)
    lengths = {row: new.lengths[0] for row, new in asked}
    cache = made_cache(heads, [lengths.get(row, 9) for row in range(max(lengths) + 1)])
    parts = [heads.num_queries, heads.num_keys, heads.num_keys]
    states = torch.randn(1, sum(new.num_new for _, new in asked), sum(parts), heads.size)
    return cache, list(states.split(parts, dim=2))


def expected(heads: Heads, cache: KVCache, asked: Asked, states: list[Tensor], window: int | None) -> Tensor:
    """Return what torch's own attention mixes, row by row behind a mask of yes and no."""
    mixed, first = [], 0
    for row, new in asked:
        own, length = slice(first, first + new.num_new), new.lengths[0]
        queries, *added = (one[:, own].transpose(1, 2) for one in states)
        keys, values = (
            torch.cat([store[7][row : row + 1, :, :length], one], dim=2)
            for store, one in zip((cache.keys, cache.values), added, strict=True)
        )
        mask = visible(new, window)[:, None]
        mixed.append(scaled_dot_product_attention(queries, keys, values, mask, scale=heads.scale, enable_gqa=True))
        first += new.num_new
    return torch.cat(mixed, dim=2).transpose(1, 2)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("window", [None, 3, 100])
def test_it_mixes_what_torchs_own_attention_does(size: int, name: str, window: int | None) -> None:
    heads, asked = Heads(KIND, 6, 2, size, 0.3), ASKED[name]
    cache, states = made_for(heads, asked)
    wanted = expected(heads, cache, asked, states, window)
    mixed = KernelAttention(attention_kernel(size), cache, asked, {KIND: window}).mix(7, heads, *states)
    torch.testing.assert_close(mixed, wanted, rtol=1e-4, atol=1e-5)
    first = 0
    for row, new in asked:
        slots, own = slice(new.lengths[0], new.lengths[0] + new.num_new), slice(first, first + new.num_new)
        for store, added in zip((cache.keys, cache.values), states[1:], strict=True):
            assert torch.equal(store[7][row, :, slots], added[0, own].transpose(0, 1))
            assert store[7][row, :, slots.stop :].isnan().all(), "nothing behind the new tokens is written"
            assert store[0][row, :, slots.start :].isnan().all(), "no other layer is written"
        first += new.num_new


def test_a_row_gets_the_same_whatever_is_beside_it() -> None:
    heads, asked = Heads(KIND, 4, 4, 32, 0.2), ASKED["rows"]
    cache, states = made_for(heads, asked)
    mixed = KernelAttention(attention_kernel(32), cache, asked, {KIND: None}).mix(7, heads, *states)
    first = 0
    for row, new in asked:
        own = slice(first, first + new.num_new)
        alone = KernelAttention(attention_kernel(32), cache.row(row), [(0, new)], {KIND: None})
        assert torch.equal(alone.mix(7, heads, *(one[:, own] for one in states)), mixed[:, own])
        first += new.num_new


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_any_number_of_threads_mixes_the_same(num_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    heads, asked = Heads(KIND, 4, 4, 32, 0.2), ASKED["rows"]
    cache, states = made_for(heads, asked)
    attention = KernelAttention(attention_kernel(32), cache, asked, {KIND: None})
    wanted = attention.mix(7, heads, *states)
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    assert torch.equal(attention.mix(7, heads, *states), wanted)


def test_scores_of_any_size_are_weighed() -> None:
    heads, asked = Heads(KIND, 1, 1, 32, 1.0), ASKED["over a tile's end"]
    cache, (queries, *others) = made_for(heads, asked)
    states = [queries * 300, *others]  # softmax without its highest score taken off would be no number
    wanted = expected(heads, cache, asked, states, None)
    mixed = KernelAttention(attention_kernel(32), cache, asked, {KIND: None}).mix(7, heads, *states)
    torch.testing.assert_close(mixed, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("slot", [3, 100])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_key_that_is_no_finite_number_shows_in_what_sees_it(slot: int, number: float) -> None:
    heads, asked = Heads(KIND, 4, 2, 32, 0.2), [(0, NewTokens([130], 2))]
    cache, states = made_for(heads, asked)
    cache.keys[7][0, 0, slot] = number
    mixed = KernelAttention(attention_kernel(32), cache, asked, {KIND: None}).mix(7, heads, *states)
    assert mixed[:, :, :2].isnan().all(), "the queries of that head"
    assert not mixed[:, :, 2:].isnan().any()


def test_tokens_that_fill_up_a_size_touch_nothing() -> None:
    heads, asked = Heads(KIND, 4, 2, 32, 0.2), ASKED["one token"]
    cache, states = made_for(heads, asked)
    filled = [torch.cat([one, torch.full_like(one, float("nan"))], dim=1) for one in states]
    kernel_attention = KernelAttention(attention_kernel(32), cache, asked, {KIND: None})
    wanted = kernel_attention.mix(7, heads, *states)
    mixed = kernel_attention.mix(7, heads, *filled)
    assert mixed.shape == (1, 2, 4, 32)
    assert torch.equal(mixed[:, :1], wanted)
    assert cache.keys[7][0, :, 51:].isnan().all()


def test_a_full_cache_is_refused_and_left_as_it_is() -> None:
    heads, asked = Heads(KIND, 4, 2, 32, 0.2), [(0, NewTokens([CAPACITY - 2], 3))]
    cache, _ = made_for(heads, asked)
    before = cache.keys[7].clone()
    with pytest.raises(ModelError, match=r"^a cache of 200 tokens cannot hold 201$"):
        KernelAttention(attention_kernel(32), cache, asked, {KIND: None})
    torch.testing.assert_close(cache.keys[7], before, equal_nan=True)


def test_the_first_tokens_make_a_layers_memory() -> None:
    heads, cache = Heads(KIND, 4, 2, 32, 0.2), KVCache(10)
    states = [torch.randn(1, 3, number, 32) for number in (4, 2, 2)]
    KernelAttention(attention_kernel(32), cache, [(0, NewTokens([0], 3))], {KIND: None}).mix(4, heads, *states)
    assert list(cache.keys) == [4]
    assert cache.keys[4].shape == (1, 2, 10, 32)
    assert torch.equal(cache.values[4][0, :, :3], states[2][0].transpose(0, 1))


@pytest.mark.parametrize("fault", ["writes nothing", "mixes nothing"])
def test_a_kernel_that_computes_something_else_is_refused(fault: str) -> None:
    right = attention_kernel(20)

    def wrong(*given: Any) -> None:
        if fault == "mixes nothing":
            scratch = torch.zeros(10_000)
            right(*given[:-1], scratch.data_ptr())

    with pytest.raises(RuntimeError, match=r"^attention compiled for heads of 20 computes something else$"):
        kernel._check(wrong, 20)


def test_a_compiler_that_fails_is_told_in_a_line() -> None:
    with pytest.raises(RuntimeError, match=r"^torch's compiler failed: C\+\+ compile error$"):
        compiled_library("this is no language")
