"""Tokens of several rows run at once give what each row gives alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from autospec.engine.cache import KVCache
from autospec.engine.lean import attention
from autospec.engine.model import CausalLM
from autospec.engine.rows import FlatRows, RowTokens

# Root, two children, and a grandchild under the second.
TREE = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]).bool()
DEPTHS = (0, 1, 1, 2)
KINDS = ("llama", "mistral", "qwen2", "qwen3", "gpt2")  # lean ones, two of them with windows, and transformers' own


def texts(lengths: tuple[int, ...]) -> list[list[int]]:
    return [[(row * 17 + place * 5) % 64 for place in range(length)] for row, length in enumerate(lengths)]


@pytest.fixture(params=["all at once", "row by row"])
def attending(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attend in one way, whatever it costs."""
    is_free = request.param == "row by row"
    monkeypatch.setattr(attention, "_CALL_BYTES", (-1, -1) if is_free else (1 << 40, 1 << 40))


@pytest.mark.usefixtures("attending")
@pytest.mark.parametrize("kind", KINDS)
def test_every_row_gets_what_it_would_get_alone(tiny_model: Callable[..., Any], kind: str) -> None:
    model, prompts = CausalLM(tiny_model(kind), kind), texts((9, 3, 12, 1))
    together, alone = KVCache(40, batch_size=5), [KVCache(40) for _ in prompts]
    for row, prompt in enumerate(prompts):
        model.forward(torch.tensor([prompt]), together.row(row))
        model.forward(torch.tensor([prompt]), alone[row])
    asked = [
        RowTokens(0, [1, 2, 3]),
        RowTokens(2, [4, 5, 6, 7], TREE, DEPTHS),
        RowTokens(1, [8], num_logits=1),
        RowTokens(3, [9, 10, 11, 12, 13], num_logits=2),
    ]
    found = model.forward_rows(asked, together, (1, -1))
    assert together.lengths == [12, 4, 16, 6, 0]
    for one, (logits, hidden) in zip(asked, found, strict=True):
        expected, states = model.forward_with_hidden(
            torch.tensor([one.token_ids]), alone[one.row], (1, -1), tree_mask=one.tree_mask, depths=one.depths
        )
        torch.testing.assert_close(logits, expected[0, -one.num_logits :], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(hidden, states[0], rtol=1e-4, atol=1e-4)
        for layer in together.keys:
            own, length = alone[one.row].keys[layer], alone[one.row].length
            mine = together.keys[layer][one.row : one.row + 1, :, :length]
            torch.testing.assert_close(mine, own[:, :, :length], rtol=1e-4, atol=1e-4)


def test_flat_rows_by_hand() -> None:
    flat = FlatRows([5, 2, 0], [RowTokens(1, [7, 8], num_logits=1), RowTokens(0, [9])])
    assert flat.token_ids.tolist() == [7, 8, 9]
    assert flat.slots.tolist() == flat.positions.tolist() == [2, 3, 5]
    assert (flat.num_rows, flat.most_new, flat.longest) == (2, 2, 6)
    assert flat.with_logits.tolist() == [1, 2]  # type: ignore[union-attr]
    seen = (flat.mask(None, torch.float32)[:, 0] == 0).int().tolist()
    assert seen[1] == [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]]
    assert seen[0] == [[1, 1, 1, 1, 1, 1], [1] * 6]  # the second place stands for no token
    windowed = (flat.mask(2, torch.float32)[:, 0] == 0).int().tolist()
    assert windowed[1][1][:4] == [0, 0, 1, 1]


def test_a_tree_stands_where_its_depths_say() -> None:
    flat = FlatRows([3], [RowTokens(0, [1, 2, 3, 4], TREE, DEPTHS)])
    assert flat.positions.tolist() == [3, 4, 4, 5]
    assert flat.slots.tolist() == [3, 4, 5, 6]
    seen = (flat.mask(None, torch.float32)[0, 0] == 0).int().tolist()
    assert seen[3] == [1, 1, 1, 1, 0, 1, 1]


def test_a_row_of_a_cache_is_a_cache_in_the_same_memory() -> None:
    whole = KVCache(3, batch_size=2)
    states = torch.arange(8.0).view(1, 2, 2, 2)
    row = whole.row(1)
    row.update(states, states, 0)
    row.advance(2)
    assert whole.lengths == [0, 2]
    assert torch.equal(whole.keys[0][1, :, :2], states[0])
    whole.reserve(5)
    assert (row.capacity, row.keys[0].shape) == (5, (1, 2, 5, 2))
    assert torch.equal(row.keys[0][0, :, :2], states[0])
    row.keep(0, 0, [0])
    assert whole.lengths == [0, 1]
    row.crop(0, 0)
    assert whole.lengths == [0, 0]
