"""Models that cannot serve as target or drafter are refused when they are loaded, and told why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from autospec.engine.model import CausalLM
from autospec.engine.probing import first_line
from autospec.errors import ModelError

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SLIDING = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}


def tiny(kind: str, **settings: Any) -> Any:
    config = transformers.AutoConfig.for_model(kind, vocab_size=64, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config).requires_grad_(False)


def encoder_decoder() -> Any:
    config = transformers.T5Config(vocab_size=64, d_model=32, d_ff=64, num_layers=2, num_heads=4, d_kv=8)
    return transformers.T5ForConditionalGeneration(config)


BY_PLACE = r"must depend on the positions given, but .* \({}\) biases it by places in the cache \(ALiBi\)"
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "encoder_decoder": (encoder_decoder, "must be decoder-only, but .* is a T5ForConditionalGeneration"),
    "no_cache": (
        lambda: tiny("openai-gpt", n_embd=32, n_layer=2, n_head=4, n_positions=64),
        r"every layer must use the KV cache, but .* \(OpenAIGPTLMHeadModel\) leaves it unused",
    ),
    "state_space": (
        lambda: tiny("mamba", hidden_size=32, num_hidden_layers=2, state_size=4),
        r"layers must have full or sliding attention, but those of `state_space` have \['linear_attention'\]",
    ),
    "recurrent": (
        lambda: tiny("rwkv", hidden_size=32, num_hidden_layers=2),
        r"every layer must keep keys and values, .* but .* \(RwkvForCausalLM\) keeps a recurrent state",
    ),
    "hybrid": (
        lambda: tiny("jamba", **SIZES, num_key_value_heads=2, attn_layer_period=2, attn_layer_offset=1),
        r"layers must have full or sliding attention, but those of `hybrid` have \['linear_attention'\]",
    ),
    "chunked": (
        lambda: tiny("llama4_text", **SLIDING, intermediate_size_mlp=64, num_local_experts=2, attention_chunk_size=8),
        r"layers must have full or sliding attention, but those of `chunked` have \['chunked_attention'\]",
    ),
    "window_of_slots": (
        lambda: tiny("gpt_neo", hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]),
        r"layers must have full or sliding attention, but those of `window_of_slots` have \['local'\]",
    ),
    "looks_ahead": (
        lambda: tiny("bert", initializer_range=0.3, is_decoder=False, **SIZES),
        r"the same with and without a KV cache, but those of .* \(BertLMHeadModel\) differ",
    ),
    "bloom": (lambda: tiny("bloom", hidden_size=32, n_layer=2, n_head=4), BY_PLACE.format("BloomForCausalLM")),
    "mpt": (
        lambda: tiny("mpt", d_model=32, n_layers=2, n_heads=4, max_seq_len=64),
        BY_PLACE.format("MptForCausalLM"),
    ),
    "falcon": (
        lambda: tiny("falcon", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True),
        BY_PLACE.format("FalconForCausalLM"),
    ),
}


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_a_model_that_cannot_work_is_refused_when_it_is_loaded(kind: str) -> None:
    make, message = REFUSED[kind]
    with pytest.raises(ModelError, match=message):
        CausalLM(make(), kind)


def test_a_model_that_fails_in_its_forward_is_refused(
    tiny_model: Any, noisy_copy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("only 2-D masks\nand more")

    model = noisy_copy(tiny_model("llama"), 0.0)
    monkeypatch.setattr(model.model, "forward", fail)
    with pytest.raises(ModelError, match=r"does not run with a KV cache of keys and values: only 2-D masks$"):
        CausalLM(model, "failing")


@pytest.mark.parametrize("ignored", ["position_ids", "attention_mask"])
def test_a_model_that_ignores_what_trees_need_is_refused(
    ignored: str, tiny_model: Any, noisy_copy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On chains it cannot be told from a good one."""
    model = noisy_copy(tiny_model("llama"), 0.0)
    inner = model.model.forward

    def forward(*args: Any, **options: Any) -> Tensor:
        is_tree = options["attention_mask"] is not None and options["attention_mask"][0, 0, -1, -2] != 0
        return inner(*args, **{**options, ignored: None} if is_tree else options)

    monkeypatch.setattr(model.model, "forward", forward)
    with pytest.raises(ModelError, match=r"must be those of its path alone, but .* does not follow masks and pos"):
        CausalLM(model, "deaf")


def test_the_first_line_of_an_error_is_quoted_or_its_name() -> None:
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError"
