"""Memory of caches goes from prompt to prompt, and nobody sees what the last one left."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch

from autospec.engine.cache_pool import CachePool, PooledCache, rounded
from autospec.engine.model import CausalLM


def write(cache: PooledCache, num_tokens: int, value: float) -> None:
    states = torch.full((1, 2, num_tokens, 4), value)
    cache.update(states, states, 0)
    cache.advance(num_tokens)


def test_capacities_have_room_for_what_fills_up_and_come_in_few_sizes() -> None:
    assert [rounded(capacity) for capacity in (1, 192, 193, 448, 449)] == [256, 256, 512, 512, 768]


def test_memory_of_a_cache_that_nobody_knows_is_handed_out_again_and_empty() -> None:
    pool = CachePool()
    pool.clears = True
    first = pool.cache(100)
    write(first, 3, torch.nan)
    tensor = first.keys[0]
    second = pool.cache(100)
    write(second, 3, 1.0)
    assert second.keys[0] is not tensor, "the first is still in use"
    del first
    gc.collect()
    third = pool.cache(150)
    assert third.keys[0] is tensor
    assert (third.length, third.capacity) == (0, 256)
    assert not third.keys[0].any()
    assert not third.values[0].any()


def test_memory_is_left_as_it_is_where_nobody_looks_at_it() -> None:
    pool = CachePool()
    first = pool.cache(100)
    write(first, 3, 5.0)
    tensor = first.keys[0]
    del first
    second = pool.cache(100)
    assert second.keys[0] is tensor
    assert tensor[0, 0, :4, 0].tolist() == [5.0, 5.0, 5.0, 0.0]


def test_memory_is_for_as_many_rows_as_it_has() -> None:
    pool = CachePool()
    first = pool.cache(100, 2)
    first.update(torch.ones(2, 1, 3, 4), torch.ones(2, 1, 3, 4), 0)
    tensor = first.keys[0]
    del first
    assert pool.holds(100, 2)
    assert not pool.holds(100, 3)
    rows = pool.cache(100, 2)
    assert rows.keys[0] is tensor
    assert rows.lengths == [0, 0]
    del rows
    assert not pool.cache(100, 3).keys
    assert pool.cache(300, 2).capacity == 512
    assert len(pool._free()) == 2, "what was too short is let go of"


def test_an_empty_cache_grows_without_what_an_earlier_text_left() -> None:
    pool = CachePool()
    first = pool.cache(100)
    write(first, 3, 5.0)
    del first
    second = pool.cache(100)
    second.reserve(300)
    assert not second.keys
    write(second, 1, 1.0)
    assert second.keys[0][0, 0, :3, 0].tolist() == [1.0, 0.0, 0.0]


def test_prompts_are_decoded_in_the_same_memory_and_to_the_same_logits(tiny_model: Callable[..., Any]) -> None:
    model = CausalLM(tiny_model("llama"), "llama")
    logits, seen = [], []
    for _ in range(2):
        cache = model.new_cache(16)
        logits.append(model.forward(torch.tensor([[1, 2, 3, 4, 5]]), cache))
        seen.append(cache.keys[0])
        del cache
    assert seen[0] is seen[1]
    assert torch.equal(*logits)


def test_whoever_goes_on_with_a_released_cache_writes_elsewhere() -> None:
    pool = CachePool()
    first = pool.cache(100)
    write(first, 3, 1.0)
    store = first.store
    first.release()
    second = pool.cache(100)
    assert second.store is store
    assert (first.keys, first.values) == ({}, {})
    write(second, 3, 2.0)
    write(first, 2, 9.0)
    assert second.keys[0][0, 0, :4, 0].tolist() == [2.0, 2.0, 2.0, 0.0]


def test_caches_of_one_row_and_of_several_take_turns_in_their_memories() -> None:
    pool = CachePool()
    for _ in range(2):
        for num_rows in (1, 2):
            cache = pool.cache(100, num_rows)
            cache.update(torch.ones(num_rows, 1, 3, 4), torch.ones(num_rows, 1, 3, 4), 0)
            del cache
    assert pool.holds(100, 1)
    assert pool.holds(100, 2)
    assert pool.give_up()
    assert not pool.holds(100, 1)


def test_memory_that_is_too_small_is_let_go_of() -> None:
    pool = CachePool()
    small = pool.cache(100)
    write(small, 3, 1.0)
    assert not pool.holds(100), "it is in use"
    small.release()
    assert pool.holds(192)
    assert not pool.holds(193)
    large = pool.cache(193)
    assert large.capacity == 512
    assert not large.keys
    large.release()
    assert pool.cache(100).store is not small.store


def test_a_cache_that_grows_takes_its_memory_along() -> None:
    pool = CachePool()
    cache = pool.cache(100)
    write(cache, 3, 2.0)
    cache.reserve(200)
    assert cache.capacity == 256, "there is room"
    cache.reserve(300)
    assert cache.capacity == 512
    assert cache.keys[0].shape[2] == 512
    assert cache.keys[0][0, 0, :4, 0].tolist() == [2.0, 2.0, 2.0, 0.0]
    cache.release()
    assert pool.holds(448)


def test_giving_up_keeps_what_is_in_use() -> None:
    pool = CachePool()
    used, free = pool.cache(100), pool.cache(100)
    write(used, 1, 1.0)
    write(free, 1, 1.0)
    free.release()
    assert pool.give_up()
    assert not pool.give_up()
    assert used.keys[0].any()
