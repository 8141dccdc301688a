"""Attention block by block is torch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from autospec.engine.cache import KVCache
from autospec.engine.forwards import TransformersForward
from autospec.engine.lean import attention
from autospec.engine.lean.causal import attend_causally, pays
from autospec.engine.masks import layer_windows
from autospec.engine.model import CausalLM


@pytest.mark.parametrize("num_tokens", [1, 63, 64, 65, 130, 200])
@pytest.mark.parametrize("num_keys", [1, 2, 6])
def test_it_is_what_fused_attention_computes(num_tokens: int, num_keys: int) -> None:
    generator = torch.Generator().manual_seed(num_tokens)
    queries = torch.randn(1, num_tokens, 6, 8, generator=generator).transpose(1, 2)
    keys, values = torch.randn(2, 1, num_keys, num_tokens, 8, generator=generator)
    expected = scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(attend_causally(queries, keys, values, 0.3), expected.transpose(1, 2))


def test_it_is_for_long_prompts_in_single_precision() -> None:
    assert pays(torch.zeros(1, 1, 128, 2))
    assert not pays(torch.zeros(1, 1, 127, 2))
    assert not pays(torch.zeros(1, 1, 128, 2, dtype=torch.bfloat16))


def test_a_long_prompt_gives_the_same_logits_and_keys(
    tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calls = tiny_model("llama", seed=5, max_position_embeddings=256), []

    def counted(*args: Any) -> torch.Tensor:
        calls.append(args[0].shape)
        return attend_causally(*args)

    monkeypatch.setattr(attention, "attend_causally", counted)
    lean = CausalLM(model, "lean")
    plain = CausalLM(model, "plain", forward=TransformersForward(model, layer_windows(model.config, "plain")))
    prompt, caches = torch.arange(150)[None] * 7 % 64, (KVCache(150), KVCache(150))
    ours, theirs = (one.forward(prompt, cache) for one, cache in zip((lean, plain), caches, strict=True))
    assert len(calls) == lean.num_layers
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    for layer in range(lean.num_layers):
        torch.testing.assert_close(caches[0].keys[layer], caches[1].keys[layer], rtol=1e-4, atol=1e-4)
