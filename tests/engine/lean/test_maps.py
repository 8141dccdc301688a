"""Packed and plain linear maps say the same, whatever is fused into them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autospec.engine.lean import maps
from autospec.engine.lean.maps import (
    PackedMap,
    PlainMap,
    SideBySide,
    TwoForms,
    can_pack,
    fast_map,
    shared_map,
    stay_cached,
)

CPU = torch.device("cpu")
needs_packing = pytest.mark.skipif(not can_pack(CPU, torch.float32), reason="this processor packs nothing")


@needs_packing
@pytest.mark.parametrize("num_rows", [1, 2, 5, 16, 33])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("kind", [PackedMap, TwoForms])
def test_packed_maps_compute_what_plain_ones_do(
    num_rows: int, has_bias: bool, kind: type[PackedMap | TwoForms]
) -> None:
    generator = torch.Generator().manual_seed(num_rows)
    weight, inputs, other = (torch.randn(size, generator=generator) for size in ((24, 40), (1, num_rows, 40), (24,)))
    bias = torch.randn(24, generator=generator) if has_bias else None
    other = other.expand(1, num_rows, 24).contiguous()
    with torch.inference_mode():
        packed, plain = kind(weight, bias), PlainMap(weight, bias)
        for ours, theirs in (
            (packed(inputs), plain(inputs)),
            (packed.silu(inputs), plain.silu(inputs)),
            (packed.plus(inputs, other), plain.plus(inputs, other)),
            (packed.times(inputs, other), plain.times(inputs, other)),
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_plain_maps_by_hand() -> None:
    plain = PlainMap(torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([0.5, 0.0]))
    inputs = torch.tensor([[1.0, 1.0]])
    assert plain(inputs).tolist() == [[3.5, -1.0]]
    assert plain.plus(inputs, torch.tensor([[1.0, 2.0]])).tolist() == [[4.5, 1.0]]
    assert plain.times(inputs, torch.tensor([[2.0, 2.0]])).tolist() == [[7.0, -2.0]]
    assert plain.silu(torch.zeros(1, 2))[0, 1] == 0.0


@pytest.mark.parametrize("is_packed", [False, pytest.param(True, marks=needs_packing)])
def test_maps_of_the_same_inputs_become_one_side_by_side(is_packed: bool) -> None:
    first, second = nn.Linear(8, 4), nn.Linear(8, 16)
    inputs = torch.randn(1, 3, 8)
    with torch.inference_mode():
        expected = torch.cat([first(inputs), second(inputs)], dim=-1)
        torch.testing.assert_close(fast_map([first, second], is_packed, False)(inputs), expected)
        joined = shared_map([first, second])
        torch.testing.assert_close(joined(inputs), expected)
        other = torch.full_like(expected, 3.0)
        torch.testing.assert_close(joined.plus(inputs, other), expected + 3)
        torch.testing.assert_close(joined.times(inputs, other), expected * 3)
        torch.testing.assert_close(joined.silu(inputs), torch.nn.functional.silu(expected))


@needs_packing
def test_small_models_are_held_in_two_forms() -> None:
    first = nn.Linear(8, 4)
    assert isinstance(fast_map([first], True, True), TwoForms)
    assert isinstance(fast_map([first], True, False), PackedMap)
    weights = [torch.zeros(1 << 20), torch.zeros(1 << 20)]
    assert stay_cached(weights)
    assert not stay_cached([*weights, *(torch.zeros(1 << 20) for _ in range(5))])
    assert not stay_cached([one.bfloat16() for one in weights])


@needs_packing
def test_a_single_token_is_not_run_by_the_packed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    two, ran = TwoForms(torch.ones(4, 8), None), []
    monkeypatch.setattr(two, "_packed", lambda inputs: ran.append(inputs.shape) or inputs[..., :4])
    assert two(torch.ones(1, 1, 8)).tolist() == [[[8.0] * 4]]
    two(torch.ones(1, 2, 8))
    assert ran == [(1, 2, 8)]


def test_only_formats_that_this_processor_multiplies_are_packed() -> None:
    assert not can_pack(CPU, torch.float16)
    assert not can_pack(torch.device("meta"), torch.float32)


@needs_packing
def test_operations_that_compute_something_else_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PackedMap, "times", lambda self, inputs, other: self(inputs) + other)
    maps._packs_right.cache_clear()
    try:
        assert not can_pack(CPU, torch.float32)
    finally:
        maps._packs_right.cache_clear()


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(
    "kind", ["plain", "joined", pytest.param("packed", marks=needs_packing), pytest.param("two", marks=needs_packing)]
)
def test_turned_maps_compute_the_same_of_one_token_and_of_several(kind: str, has_bias: bool) -> None:
    torch.manual_seed(3)
    weight, bias = torch.randn(24, 40), torch.randn(24) if has_bias else None
    plain = PlainMap(weight, bias)
    parts = [PlainMap(weight[rows], None if bias is None else bias[rows]) for rows in (slice(8), slice(8, 24))]
    with torch.inference_mode():
        made = {
            "plain": lambda: plain,
            "joined": lambda: SideBySide(parts),
            "packed": lambda: PackedMap(weight, bias),
            "two": lambda: TwoForms(weight, bias),
        }[kind]()
        turned = made.turned()
        assert [tuple(one.shape) for one in turned.weights()] == [(40, 24), (24,)][: 1 + has_bias]
        assert turned.turned() is turned
        for num_new in (1, 3):
            inputs = torch.randn(1, num_new, 40)
            torch.testing.assert_close(turned(inputs), plain(inputs), rtol=1e-5, atol=1e-5)


@needs_packing
def test_the_form_for_single_tokens_is_not_copied_to_be_turned() -> None:
    two = TwoForms(torch.randn(24, 40), None)
    assert two.turned().weight.data_ptr() == two.weights()[1].data_ptr()
