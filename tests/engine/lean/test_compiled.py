"""Compiled pieces between attentions compute what the lean forward does, with one set of them for all layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from autospec.engine.cache import KVCache
from autospec.engine.compiling import compiled_piece, recorded
from autospec.engine.lean import compiled
from autospec.engine.lean.compiled import SIZES, CompiledLean
from autospec.engine.lean.maps import TurnedMap
from autospec.engine.masks import NewTokens
from autospec.engine.model import CausalLM
from autospec.engine.rows import RowTokens

pytestmark = pytest.mark.compiler

Kind = tuple[str, dict[str, Any]]
KINDS: dict[str, Kind] = {
    "grouped_heads": ("llama", {}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "one_layer": ("llama", {"num_layers": 1}),
    "sliding": ("mistral", {}),
    "some_biases": ("qwen2", {}),
    "head_norms": ("qwen3", {}),
}
TREE = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 0, 1]]).bool()
DEPTHS = (0, 1, 1, 2, 2)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[Tensor]]:
    """The examples of every piece that was made, of recorded operations."""
    examples = list[Sequence[Tensor]]()

    def make(run: Callable[..., Any], given: Sequence[Tensor]) -> Any:
        examples.append(given)
        return recorded(run, given)

    monkeypatch.setattr(compiled, "compiled_piece", make)
    return examples


def check_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_chains_trees_rows_and_hidden_states_are_those_of_the_lean_forward(
    tiny_model: Any, made: list[Sequence[Tensor]], kind: str
) -> None:
    name, settings = KINDS[kind]
    model = tiny_model(name, seed=5, **settings)
    ours, theirs = CausalLM(model, "ours", compiles=True), CausalLM(model, "theirs")
    assert isinstance(ours._forward, CompiledLean)
    assert not isinstance(theirs._forward, CompiledLean)
    caches = KVCache(60, 2), KVCache(60, 2)
    prompt = torch.arange(11)[None] * 5 % 64
    calls: list[tuple[Tensor, dict[str, Any]]] = [(prompt, {"num_logits": 1}), (prompt[:, 2:6], {"num_logits": 2})]
    calls += [(prompt[:, :size], {}) for size in (1, 2, 3, 5, 8, 9)]
    calls.append((prompt[:, 3:8], {"tree_mask": TREE, "depths": DEPTHS}))
    for ids, options in calls:
        answers = [
            one.forward_with_hidden(ids, cache.row(0), (0, 1, -1), **options)
            for one, cache in zip((ours, theirs), caches, strict=True)
        ]
        for own, other in zip(*answers, strict=True):
            check_close(own, other)
    for one, cache in zip((ours, theirs), caches, strict=True):
        one.forward(prompt[:, :4], cache.row(1))
    asked = [RowTokens(0, [5, 6, 7], TREE[:3, :3], (0, 1, 1)), RowTokens(1, [8, 9, 10, 11], num_logits=2)]
    for layers in ((), (0, -1)):
        pairs = zip(
            ours.forward_rows(asked, caches[0], layers), theirs.forward_rows(asked, caches[1], layers), strict=True
        )
        for (logits, hidden), (other_logits, other_hidden) in pairs:
            check_close(logits, other_logits)
            assert (hidden is None) == (other_hidden is None) == (not layers)
            if hidden is not None and other_hidden is not None:
                check_close(hidden, other_hidden)
    for layer, keys in caches[1].keys.items():
        for row, length in enumerate(caches[1].lengths):
            check_close(caches[0].keys[layer][row, :, :length], keys[row, :, :length])


def test_layers_share_pieces_and_so_do_some_of_them(tiny_model: Any, made: list[Sequence[Tensor]]) -> None:
    model = CausalLM(tiny_model("llama", num_layers=4), "model", compiles=True)
    assert [given[0].shape[1] for given in made] == [size for size in SIZES for _ in range(3)]
    assert isinstance(model._forward, CompiledLean)
    kept, expected = model._forward.keep([0, 2]), model._forward._lean.keep([0, 2])
    assert isinstance(kept, CompiledLean)
    assert kept.layer_numbers == (0, 2)
    ids, new = torch.tensor([[5, 6, 7]]), NewTokens([0], 3)
    with torch.inference_mode():
        ours, theirs = (one.run(ids, new, KVCache(3), 0, wants_hidden=True) for one in (kept, expected))
    for own, other in zip((ours[0], *ours[1]), (theirs[0], *theirs[1]), strict=True):
        check_close(own, other)
    assert len(made) == 3 * len(SIZES)
    shared = {id(weight) for weight in model._forward._turned.weights()}
    assert all(id(weight) in shared for weight in kept._turned.weights()), "nothing is copied again"


def test_another_number_of_threads_has_code_of_its_own(
    tiny_model: Any, made: list[Sequence[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = CausalLM(tiny_model("llama"), "model", compiles=True)
    before, cache = len(made), model.new_cache(40)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    model.forward(torch.tensor([[1, 2, 3]]), cache)
    assert len(made) == 2 * before, "all at once"
    model.forward(torch.tensor([[1, 2, 3, 4]]), cache)
    assert len(made) == 2 * before


def test_some_of_the_layers_may_be_the_first_to_run_under_a_number_of_threads(
    tiny_model: Any, made: list[Sequence[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = CausalLM(tiny_model("llama"), "model", compiles=True)
    assert isinstance(model._forward, CompiledLean)
    kept, expected = model._forward.keep([0]), CausalLM(tiny_model("llama"), "theirs")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        kept.run(ids, NewTokens([0], 3), KVCache(3), 0, wants_hidden=False)
    check_close(model.forward(ids, KVCache(3)), expected.forward(ids, KVCache(3)))


def test_code_that_fails_later_is_told_and_done_without(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "compiled_piece", recorded)
    ours, theirs = CausalLM(tiny_model("llama"), "ours", compiles=True), CausalLM(tiny_model("llama"), "theirs")

    def fail(*_: Any) -> Any:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(compiled, "compiled_piece", fail)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    ids, cache = torch.tensor([[1, 2, 3]]), KVCache(20)
    with pytest.warns(UserWarning, match="^forwards are not compiled, because the disk is full$"):
        logits = ours.forward(ids, cache)
    check_close(logits, theirs.forward(ids, KVCache(20)))
    ours.forward(ids, cache)  # and says so once


def test_prompts_and_several_rows_of_one_length_run_as_without(
    tiny_model: Any, made: list[Sequence[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = CausalLM(tiny_model("llama"), "model", compiles=True)
    monkeypatch.setattr(CompiledLean, "pieces", lambda _: pytest.fail("pieces were asked for"))
    model.forward(torch.arange(SIZES[-1] + 1)[None], KVCache(20))
    model.forward(torch.tensor([[1], [2]]), KVCache(20, 2))


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (OSError("no compiler\nfor you"), "forwards are not compiled, because torch's compiler failed: no compiler"),
        ("rolled", "forwards are not compiled, because compiled for 1 tokens they compute something else"),
        ("no numbers", "forwards are not compiled, because compiled for 1 tokens they compute something else"),
    ],
)
def test_what_cannot_be_compiled_or_is_wrong_is_told_and_not_used(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch, fault: Exception | str, why: str
) -> None:
    def make(record: Callable[..., Any], *_: Any, **__: Any) -> Any:
        if isinstance(fault, Exception):
            raise fault
        if fault == "rolled":
            return lambda *arguments: tuple(one.roll(1, -1) for one in record(*arguments))
        return lambda *arguments: tuple(one * float("nan") for one in record(*arguments))

    monkeypatch.setattr("torch._inductor.compile", make)
    with pytest.warns(UserWarning, match=f"^{why}$"):
        model = CausalLM(tiny_model("llama"), "model", compiles=True)
    assert model.is_lean
    assert not model.compiles
    assert not isinstance(model._forward, CompiledLean)


def test_code_is_asked_for_with_its_number_of_threads(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[dict[str, Any]]()

    def make(record: Any, given: Any, options: dict[str, Any]) -> Any:
        asked.append(options)
        return record

    monkeypatch.setattr("torch._inductor.compile", make)
    assert CausalLM(tiny_model("llama"), "model", compiles=True).compiles
    assert {options["cpp.threads"] for options in asked} == {torch.get_num_threads()}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # in torch's own parts
def test_a_compiler_makes_of_a_piece_what_it_computes(tiny_model: Any) -> None:
    torch.manual_seed(0)
    weight, states = torch.randn(16, 24), torch.randn(1, 1, 16)
    piece = compiled_piece(lambda inputs, matrix: (TurnedMap(matrix, None)(inputs), inputs * 2), (states, weight))
    with torch.inference_mode():
        first, other = piece(states, weight), piece(states + 1, weight)
    check_close(first[0], states @ weight)
    check_close(other[0], (states + 1) @ weight)
    check_close(other[1], 2 * states + 2)
    assert first[0].data_ptr() != other[0].data_ptr(), "what came out is not written over"


def test_without_the_kernel_nothing_is_compiled(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(head_size: int) -> Any:
        raise RuntimeError(f"no kernel for heads of {head_size}")

    monkeypatch.setattr(compiled, "attention_kernel", fail)
    monkeypatch.setattr(compiled, "compiled_piece", lambda *_: pytest.fail("a piece was asked for"))
    with pytest.warns(UserWarning, match="^forwards are not compiled, because no kernel for heads of [0-9]+$"):
        assert not CausalLM(tiny_model("llama"), "model", compiles=True).compiles


@pytest.mark.parametrize("reason", ["too large", "in half precision"])
def test_models_for_which_it_does_not_pay_are_left_as_they_are(
    tiny_model: Any, made: list[Sequence[Tensor]], monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    model = tiny_model("llama")
    if reason == "too large":
        monkeypatch.setattr("autospec.engine.lean.maps.CACHED_BYTES", 1000)
    else:
        model = deepcopy(model).bfloat16()
    with pytest.warns(UserWarning, match="pays for models in float32 of at most [0-9]+ MiB only$"):
        left = CausalLM(model, "model", compiles=True)
    assert left.is_lean
    assert not left.compiles
    assert not made


def test_copies_of_weights_are_counted(tiny_model: Any, made: list[Sequence[Tensor]]) -> None:
    model = tiny_model("llama", tie_word_embeddings=True, vocab_size=96)
    turned = (model.config.hidden_size, 96)
    counts = [
        sum(tuple(one.shape) == turned for one in CausalLM(model, "model", compiles=how).weights())
        for how in (True, False)
    ]
    assert counts == [1, 0], "a head that shares the embeddings is turned"
