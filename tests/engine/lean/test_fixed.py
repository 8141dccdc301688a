"""Forwards of fixed shape compute what others do, wherever in a text they are launched again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from autospec.config import SamplingParams
from autospec.engine.cache import KVCache
from autospec.engine.launching import Recorded
from autospec.engine.lean import LeanForward, read_lean
from autospec.engine.lean.buffers import FixedInputs
from autospec.engine.lean.fixed import ChainForm, FixedChain, FixedForward
from autospec.engine.masks import NewTokens, layer_windows

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "grouped_heads": ("llama", {}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "sliding": ("mistral", {}),
    "hybrid_with_biases": ("qwen2", {}),
    "head_norms": ("qwen3", {}),
}
# Root, two children, and two grandchildren under the first: who sees whom.
TREE = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 0, 1]]).bool()
DEPTHS = (0, 1, 1, 2, 2)
TEXT = torch.arange(60)[None] * 7 % 64
CAPACITY, REACH = 64, 48


@pytest.fixture(autouse=True)
def _inference() -> Any:
    with torch.inference_mode():
        yield


def lean_of(tiny_model: Callable[..., Any], variant: str) -> LeanForward:
    kind, settings = VARIANTS[variant]
    model = tiny_model(kind, seed=5, **settings)
    lean = read_lean(model, layer_windows(model.config, variant))
    assert lean is not None
    return lean


def filled(lean: LeanForward, length: int) -> KVCache:
    """A cache that holds a text, and elsewhere what an earlier one left."""
    cache = KVCache(CAPACITY)
    lean.run(TEXT.flip(1), NewTokens([0], 60), cache, 1, wants_hidden=False)
    refill(lean, cache, length)
    return cache


def refill(lean: LeanForward, cache: KVCache, length: int) -> None:
    cache.lengths = [0]
    lean.run(TEXT[:, :length], NewTokens([0], length), cache, 1, wants_hidden=False)
    cache.advance(length)


def check_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def calls(length: int) -> list[NewTokens]:
    """A chain, a tree behind a node that is cached already, and a single token."""
    behind = torch.cat([torch.ones(5, 1, dtype=torch.bool), TREE], dim=1)
    return [
        NewTokens([length], 6),
        NewTokens([length], 5, TREE, DEPTHS),
        NewTokens([length], 5, behind, DEPTHS),
        NewTokens([length], 1),
    ]


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_record_serves_every_length_chain_and_tree(tiny_model: Callable[..., Any], variant: str) -> None:
    lean = lean_of(tiny_model, variant)
    cache, expected = filled(lean, 5), filled(lean, 5)
    inputs = FixedInputs(8, REACH, 8, lean.windows, lean.like)
    inputs.write(TEXT[:, :3], NewTokens([5], 3))
    launch = Recorded().make(FixedForward(lean, cache.keys, cache.values, inputs, wants_hidden=True))
    for length in (5, 19, 33):
        for one in (cache, expected):
            refill(lean, one, length)
        for new in calls(length):
            ids = TEXT[:, length : length + new.num_new]
            inputs.write(ids, new)
            logits, hidden = launch()
            wanted, wanted_hidden = lean.run(ids, new, expected, 0, wants_hidden=True)
            check_close(logits[:, : new.num_new], wanted)
            check_close(hidden[:, :, : new.num_new], torch.stack(wanted_hidden))
            for layer, keys in expected.keys.items():
                check_close(cache.keys[layer][:, :, : length + new.num_new], keys[:, :, : length + new.num_new])


def test_only_wanted_logits_are_computed(tiny_model: Callable[..., Any]) -> None:
    lean = lean_of(tiny_model, "grouped_heads")
    cache = filled(lean, 9)
    inputs = FixedInputs(4, REACH, 1, lean.windows, lean.like)
    run = FixedForward(lean, cache.keys, cache.values, inputs)
    for num_new in (1, 2, 3, 4):
        ids, new = TEXT[:, 9 : 9 + num_new], NewTokens([9], num_new)
        inputs.write(ids, new)
        (logits,) = run()
        assert logits.shape == (1, 1, 64)
        check_close(logits, lean.run(ids, new, filled(lean, 9), 1, wants_hidden=False)[0])


def test_buffers_say_where_tokens_stand_and_what_they_see() -> None:
    windows = {"full_attention": None, "sliding_attention": 3}
    inputs = FixedInputs(4, 8, 4, windows, torch.zeros(1))
    # A root behind two tokens, and two children of it: the second is the fifth in the cache, the fourth of its path.
    seen = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]]).bool()
    inputs.write(torch.tensor([[7, 8, 9]]), NewTokens([2], 3, seen, (0, 1, 1)))
    assert inputs.token_ids.tolist() == [[7, 8, 9, 0]]
    assert inputs.positions.tolist() == [2, 3, 3, 5]
    assert inputs.slots.tolist() == [2, 3, 4, 5]
    full, sliding = (inputs.masks[kind][0, 0].eq(0).int().tolist() for kind in windows)
    assert full == [[1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 1, 0, 0, 0], [1] + [0] * 7]
    assert sliding == [[1, 1, 1, 0, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 1, 0, 0, 0], [1] + [0] * 7]
    assert inputs.masks["full_attention"].min() == torch.finfo(torch.float32).min


def one_by_one(lean: LeanForward, cache: KVCache, text: Sequence[int], length: int, vocab_size: int) -> list[int]:
    """Drafts by forwards that are no launches."""
    start, tokens, fresh = cache.length, list[int](), list(text)
    for _ in range(length):
        ids = torch.tensor([fresh])
        logits, _ = lean.run(ids, NewTokens(cache.lengths, len(fresh)), cache, 1, wants_hidden=False)
        cache.advance(len(fresh))
        fresh = [int(logits[0, -1, :vocab_size].argmax())]
        tokens += fresh
    cache.crop(0, start)
    return tokens


@pytest.mark.parametrize("vocab_size", [64, 9])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_loop_drafts_what_single_forwards_do(tiny_model: Callable[..., Any], variant: str, vocab_size: int) -> None:
    lean = lean_of(tiny_model, variant)
    cache, expected = filled(lean, 7), filled(lean, 7)
    inputs = FixedInputs(2, REACH, 1, lean.windows, lean.like)
    inputs.write(TEXT[:, 7:8], NewTokens([7], 1))
    launch = Recorded().make(FixedChain(lean, cache.keys, cache.values, inputs, ChainForm(5, vocab_size)))
    drafts = set[tuple[int, ...]]()
    for length, num_fresh in ((7, 1), (7, 2), (20, 2), (34, 1)):
        for one in (cache, expected):
            refill(lean, one, length)
        fresh = TEXT[0, length : length + num_fresh].tolist()
        inputs.write(torch.tensor([fresh]), NewTokens([length], num_fresh))
        (tokens,) = launch()
        assert tokens.tolist() == one_by_one(lean, expected, fresh, 5, vocab_size)
        assert max(tokens.tolist()) < vocab_size
        end = length + num_fresh + 4  # the last token is not run
        for layer, keys in expected.keys.items():
            check_close(cache.keys[layer][:, :, :end], keys[:, :, :end])
        drafts.add(tuple(tokens.tolist()))
    assert len(drafts) > 1


def test_a_draft_of_one_token_needs_no_loop(tiny_model: Callable[..., Any]) -> None:
    lean = lean_of(tiny_model, "grouped_heads")
    cache, expected = filled(lean, 7), filled(lean, 7)
    inputs = FixedInputs(2, REACH, 1, lean.windows, lean.like)
    inputs.write(TEXT[:, 7:9], NewTokens([7], 2))
    (tokens,) = FixedChain(lean, cache.keys, cache.values, inputs, ChainForm(1, 64))()
    assert tokens.tolist() == one_by_one(lean, expected, TEXT[0, 7:9].tolist(), 1, 64)


def test_a_loop_draws_by_the_numbers_it_is_given_and_tells_how(tiny_model: Callable[..., Any]) -> None:
    """By other means: the rows of single forwards, filtered; the token is where the running sum passes the number."""
    lean, sampling = lean_of(tiny_model, "grouped_heads"), SamplingParams(temperature=0.8, top_k=6)
    cache, expected = filled(lean, 20), filled(lean, 20)
    inputs = FixedInputs(2, REACH, 1, lean.windows, lean.like, num_draws=3)
    numbers, fresh = (0.1, 0.55, 0.999), TEXT[0, 20:21].tolist()
    inputs.write(torch.tensor([fresh]), NewTokens([20], 1), [int(number * 2**53) for number in numbers])
    form = ChainForm(3, 70, sampling, tells=True)  # six tokens that the model does not know
    told, rows = Recorded().make(FixedChain(lean, cache.keys, cache.values, inputs, form))()
    assert (told.shape, rows.shape) == ((3, 5), (3, 70))
    for place, number in enumerate(numbers):
        logits, _ = lean.run(torch.tensor([fresh]), NewTokens(expected.lengths, 1), expected, 1, wants_hidden=False)
        expected.advance(1)
        best = (logits[0, 0] / 0.8).topk(6)
        row = torch.zeros(70).index_copy(0, best.indices, best.values.softmax(0))
        torch.testing.assert_close(rows[place], row, rtol=1e-4, atol=1e-5)
        token = int((row.double().cumsum(0) <= number).sum())
        kept = best.values.softmax(0).double()
        entropy = float(-(kept * kept.log()).sum())
        assert int(told[place, 0]) == token
        assert told[place, 1:].tolist() == pytest.approx(
            [float(row[token]), entropy, float(kept[0]), float(kept[1])], rel=1e-3
        )
        fresh = [token]


def test_half_precision_is_as_near_as_it_can_be(tiny_model: Callable[..., Any]) -> None:
    from copy import deepcopy

    model = deepcopy(tiny_model("llama", seed=5)).to(torch.bfloat16)
    lean = read_lean(model, {"full_attention": None})
    assert lean is not None
    cache, expected = filled(lean, 20), filled(lean, 20)
    inputs = FixedInputs(8, REACH, 8, lean.windows, lean.like)
    new = NewTokens([20], 5, TREE, DEPTHS)
    inputs.write(TEXT[:, 20:25], new)
    (logits,) = FixedForward(lean, cache.keys, cache.values, inputs)()
    wanted, _ = lean.run(TEXT[:, 20:25], new, expected, 0, wants_hidden=False)
    assert (logits[:, :5] - wanted).float().abs().mean() < 0.05 * wanted.float().std()
