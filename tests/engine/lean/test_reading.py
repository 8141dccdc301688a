"""Which models get a lean forward, what becomes of their weights, and when transformers' own forward stays."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from autospec.config import SpecConfig
from autospec.engine.cache import KVCache
from autospec.engine.compiling import recorded
from autospec.engine.decoder import SpeculativeDecoder
from autospec.engine.lean import read_lean, speed_up
from autospec.engine.lean.compiled import CompiledLean
from autospec.engine.lean.maps import can_pack
from autospec.engine.lean.rotary import RotaryTable, rotate
from autospec.engine.model import CausalLM, load_model

FULL = {"full_attention": None}


@pytest.mark.parametrize("kind", ["gpt2", "phi3", "gemma2", "qwen3_moe", "gpt_oss", "falcon"])
def test_other_kinds_run_as_transformers_runs_them(tiny_model: Callable[..., Any], kind: str) -> None:
    assert not CausalLM(tiny_model(kind), kind).is_lean


def test_what_does_more_than_its_weights_say_is_left_alone(tiny_model: Callable[..., Any]) -> None:
    hooked, adapted, gelu = (deepcopy(tiny_model("llama")) for _ in range(3))
    hooked.model.layers[1].mlp.register_forward_hook(lambda module, args, output: output * 2)

    class Adapted(nn.Linear):
        pass

    inner = adapted.model.layers[0].self_attn.o_proj
    adapted.model.layers[0].self_attn.o_proj = Adapted(inner.in_features, inner.out_features, bias=False)
    gelu.config.hidden_act = "gelu"
    for model in (hooked, adapted, gelu):
        assert read_lean(model, FULL) is None


def test_angles_that_depend_on_the_length_are_left_alone(tiny_model: Callable[..., Any]) -> None:
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    assert read_lean(tiny_model("llama", rope_parameters=dynamic), FULL) is None


def test_a_lean_forward_that_computes_something_else_is_not_taken(
    tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    other = read_lean(tiny_model("llama", seed=9), FULL)
    monkeypatch.setattr("autospec.engine.model.read_lean", lambda *_: other)
    assert not CausalLM(model, "llama").is_lean


def test_a_model_of_our_own_lets_go_of_weights_that_are_held_in_another_form(tiny_checkpoint: Path) -> None:
    loaded = load_model(str(tiny_checkpoint), device="cpu")
    assert loaded.is_lean
    assert loaded.model.model.layers[0].self_attn.q_proj.weight.is_meta
    assert loaded.model.model.layers[0].mlp.up_proj.weight.is_meta == can_pack(loaded.device, loaded.dtype)
    assert not loaded.model.get_input_embeddings().weight.is_meta
    assert (loaded.device.type, loaded.dtype) == ("cpu", torch.float32)


def test_a_head_that_shares_the_embeddings_is_kept(tiny_model: Callable[..., Any]) -> None:
    model = deepcopy(tiny_model("llama", tie_word_embeddings=True))
    speed_up(model, FULL, lets_go=True)
    assert not model.lm_head.weight.is_meta
    assert model.model.layers[0].self_attn.q_proj.weight.is_meta


def test_a_model_that_somebody_else_holds_keeps_its_weights(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("llama")
    assert CausalLM(model, "llama").is_lean
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_layers_that_draft_run_lean_where_the_target_does(tiny_checkpoint: Path) -> None:
    decoder = SpeculativeDecoder.from_pretrained(tiny_checkpoint, {"exit": "early_exit"}, device="cpu")
    plain = decoder.generate([[1, 2, 3]], max_new_tokens=12, ignore_eos=True)
    (output,) = decoder.generate(
        [[1, 2, 3]], config=SpecConfig("exit", 3, exit_layer=1), max_new_tokens=12, ignore_eos=True
    )
    assert output.token_ids == plain[0].token_ids
    assert output.stats.num_drafted > 0


@pytest.mark.compiler
def test_compiled_is_the_lean_forward_where_there_is_one_and_else_transformers_own(
    tiny_checkpoint: Path, tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[tuple[nn.Module, dict[str, Any]]] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compiled.append((self, options)))
    other = tiny_model("gpt2")
    assert not load_model(other, compile=True).is_lean
    assert compiled == [(other, {"dynamic": True})]
    monkeypatch.setattr("autospec.engine.lean.compiled.compiled_piece", recorded)
    loaded = load_model(str(tiny_checkpoint), device="cpu", compile=True)
    assert isinstance(loaded._forward, CompiledLean)
    assert compiled == [(other, {"dynamic": True})], "pieces are none of torch's modules"


def test_a_table_of_angles_grows_with_the_text(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("llama")
    table = RotaryTable(model.model.rotary_emb, model.lm_head.weight)
    states = torch.randn(1, 2, 4, 8)
    near = rotate(states, table.at(3, 2))
    table.at(1000, 1)
    torch.testing.assert_close(rotate(states, table.at(3, 2)), near)
    torch.testing.assert_close(rotate(states, table.at_each(torch.tensor([[3, 4]]), 4)), near)
    # A turn leaves lengths as they are, and products of two depend on their distance alone.
    torch.testing.assert_close(near.norm(dim=-1), states.norm(dim=-1))
    query, key = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)
    products = [
        float((rotate(query, table.at(place + 5, 1)) * rotate(key, table.at(place, 1))).sum()) for place in (0, 700)
    ]
    assert products[0] == pytest.approx(products[1], abs=1e-4)


def test_half_precision_agrees_as_far_as_it_can(tiny_model: Callable[..., Any]) -> None:
    model = deepcopy(tiny_model("llama")).to(torch.bfloat16)
    lean = CausalLM(model, "half")
    assert lean.is_lean
    ids = torch.tensor([[1, 2, 3, 4]])
    ours, theirs = lean.forward(ids, KVCache(4)).float(), model(ids).logits.float()
    assert (ours - theirs).abs().mean() < 0.05 * theirs.std()


def test_a_model_that_somebody_else_will_use_is_left_whole(tiny_checkpoint: Path) -> None:
    loaded = load_model(str(tiny_checkpoint), device="cpu", keeps_model=True)
    assert loaded.is_lean
    assert CausalLM(loaded.model, "again").is_lean
