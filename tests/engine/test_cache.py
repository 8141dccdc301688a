"""The KV cache: rows of different length, crop, keep, and its limits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from autospec.engine.cache import KVCache
from autospec.engine.model import CausalLM
from autospec.engine.tree import TokenTree
from autospec.errors import ModelError

FIRST = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
LENGTHS = (5, 2)  # after a crop of the second row
SECOND = torch.tensor([[11, 12, 13], [14, 15, 16]])


@pytest.fixture(params=["llama", "qwen3", "gpt2", "gpt_neox", "opt", "mistral", "gemma3_text"])
def model(request: pytest.FixtureRequest, tiny_model: Any) -> CausalLM:
    return CausalLM(tiny_model(request.param), request.param)


def written(cache: KVCache, row: int) -> list[Tensor]:
    length = cache.lengths[row]
    return [tensor[row, :, :length] for store in (cache.keys, cache.values) for tensor in store.values()]


def ragged(model: CausalLM) -> KVCache:
    cache = KVCache(capacity=16, batch_size=2)
    model.forward(FIRST, cache)
    cache.crop(1, LENGTHS[1])
    return cache


def test_rows_of_different_length_equal_separate_forwards(model: CausalLM) -> None:
    cache = ragged(model)
    logits = model.forward(SECOND, cache)
    assert cache.lengths == [8, 5]
    assert cache.length == 8
    for row, length in enumerate(LENGTHS):
        alone = KVCache(capacity=16)
        text = torch.cat([FIRST[row, :length], SECOND[row]])[None]
        expected = model.forward(text, alone, num_logits=3)[0]
        torch.testing.assert_close(logits[row], expected, rtol=1e-4, atol=1e-4)
        for got, wanted in zip(written(cache, row), written(alone, 0), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_rows_of_different_length_take_one_token_and_trees_too(model: CausalLM) -> None:
    cache = ragged(model)
    one = model.forward(SECOND[:, :1], cache)
    tree = TokenTree(torch.tensor([20, 21, 22]), (-1, -1, 1))
    input_ids = torch.cat([SECOND[:, 1:2], tree.token_ids.expand(2, 3)], dim=1)
    logits = model.forward(input_ids, cache, tree_mask=tree.ancestor_mask(), depths=(0, *tree.depths))
    for row, length in enumerate(LENGTHS):
        text = [*FIRST[row, :length].tolist(), *SECOND[row, :2].tolist(), 21, 22]
        alone = model.forward(torch.tensor([text]), KVCache(16))[0]
        torch.testing.assert_close(one[row, 0], alone[length], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(logits[row, [0, 2, 3]], alone[length + 1 :], rtol=1e-4, atol=1e-4)
        # Keeping nodes 1 and 2 in each row leaves rows of their own lengths.
        cache.keep(row, length + 1, [0, 2, 3])
    assert cache.lengths == [9, 6]
    for row, length in enumerate(LENGTHS):
        text = [*FIRST[row, :length].tolist(), *SECOND[row, :2].tolist(), 21, 22]
        fresh = KVCache(16)
        model.forward(torch.tensor([text]), fresh)
        for got, wanted in zip(written(cache, row), written(fresh, 0), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_what_was_cropped_is_forgotten(model: CausalLM) -> None:
    cache = KVCache(capacity=10)
    model.forward(torch.tensor([[1, 2, 3, 60, 61, 62]]), cache)
    cache.crop(0, 3)
    logits = model.forward(torch.tensor([[4, 5]]), cache)
    expected = model.forward(torch.tensor([[1, 2, 3, 4, 5]]), KVCache(10), num_logits=2)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def states(*tokens: int) -> Tensor:
    return torch.tensor(tokens, dtype=torch.float32)[None, None, :, None]


def filled(*tokens: int, capacity: int = 10) -> KVCache:
    cache = KVCache(capacity)
    cache.update(states(*tokens), states(*tokens), 0)
    cache.advance(len(tokens))
    return cache


def test_keep_moves_the_accepted_path_together() -> None:
    cache = filled(1, 2, 3, 10, 11, 12, 13)
    cache.keep(0, 3, [0, 1, 3])
    assert cache.lengths == [6]
    assert cache.keys[0][0, 0, :6, 0].tolist() == [1, 2, 3, 10, 11, 13]
    assert cache.values[0][0, 0, :6, 0].tolist() == [1, 2, 3, 10, 11, 13]


def test_keep_of_the_root_alone_drops_the_whole_draft() -> None:
    cache = filled(1, 2, 3, 10, 11)
    cache.keep(0, 2, [0])
    assert cache.lengths == [3]


@pytest.mark.parametrize("path", [[1, 2], [0, 2, 1], [0, 1, 1], [0, 1, 2, 3, 4]])
def test_a_path_begins_at_the_root_and_goes_down(path: list[int]) -> None:
    with pytest.raises((AssertionError, IndexError)):
        filled(1, 2, 3, 4).keep(0, 0, path)


def test_crop_cannot_lengthen() -> None:
    with pytest.raises(AssertionError):
        filled(1, 2).crop(0, 3)


def test_a_full_cache_says_so() -> None:
    cache = filled(1, 2, 3, capacity=4)
    cache.update(states(4), states(4), 0)
    cache.advance(1)
    with pytest.raises(ModelError, match="a cache of 4 tokens cannot hold 5"):
        cache.update(states(5), states(5), 0)


def test_keys_and_values_may_differ_in_width() -> None:
    cache = KVCache(capacity=4)
    keys, values = cache.update(torch.ones(1, 2, 3, 8), torch.ones(1, 2, 3, 5), 0)
    assert (keys.shape, values.shape) == ((1, 2, 3, 8), (1, 2, 3, 5))


def test_an_update_shows_old_and_new_tokens_and_counts_only_when_advanced() -> None:
    cache = filled(1, 2)
    keys, _ = cache.update(states(3), states(3), 0)
    assert keys[0, 0, :, 0].tolist() == [1, 2, 3]
    assert cache.lengths == [2]
    assert (cache.get_seq_length(), cache.get_mask_sizes(3), cache.get_query_offset()) == (2, (5, 0), 2)
