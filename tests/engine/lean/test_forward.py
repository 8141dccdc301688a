"""A lean forward computes what transformers computes, over any cache, mask and kind of layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from autospec.engine.cache import KVCache
from autospec.engine.forwards import TransformersForward
from autospec.engine.lean import read_lean
from autospec.engine.lean.forward import Norm
from autospec.engine.masks import layer_windows
from autospec.engine.model import CausalLM

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "grouped_heads": ("llama", {}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "scaled_rope": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    "yarn": ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}}),
    "sliding": ("mistral", {}),
    "hybrid_with_biases": ("qwen2", {}),
    "head_norms": ("qwen3", {}),
}
# Root, two children, and two grandchildren under the first: who sees whom.
TREE = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 0, 1]]).bool()
DEPTHS = (0, 1, 1, 2, 2)


def pair(tiny_model: Callable[..., Any], variant: str) -> tuple[CausalLM, CausalLM]:
    """The same weights by a lean forward and by transformers'."""
    kind, settings = VARIANTS[variant]
    model = tiny_model(kind, seed=5, **settings)
    lean = CausalLM(model, "lean")
    assert lean.is_lean
    plain = TransformersForward(model, layer_windows(model.config, variant))
    return lean, CausalLM(model, "plain", forward=plain)


def check_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_prompts_chains_trees_and_single_tokens_give_the_same_logits_and_hidden_states(
    tiny_model: Callable[..., Any], variant: str
) -> None:
    models, caches = pair(tiny_model, variant), [KVCache(40), KVCache(40)]
    prompt = torch.arange(11)[None] * 5 % 64
    calls: list[tuple[Tensor, dict[str, Any]]] = [
        (prompt, {"num_logits": 1}),
        (prompt[:, :1], {}),
        (prompt[:, 2:6], {}),
        (prompt[:, 3:8], {"tree_mask": TREE, "depths": DEPTHS}),
    ]
    for ids, options in calls:
        ours, theirs = (
            model.forward_with_hidden(ids, cache, (0, 1, -1), **options)
            for model, cache in zip(models, caches, strict=True)
        )
        check_close(ours[0], theirs[0])
        check_close(ours[1], theirs[1])
        for cache in caches:
            cache.crop(0, min(cache.length, 16))
    for layer in range(2):
        check_close(caches[0].keys[layer][:, :, :16], caches[1].keys[layer][:, :, :16])


@pytest.mark.parametrize("variant", ["grouped_heads", "sliding", "hybrid_with_biases"])
def test_rows_of_different_length_are_what_each_is_alone(tiny_model: Callable[..., Any], variant: str) -> None:
    lean, _ = pair(tiny_model, variant)
    texts = torch.arange(24).view(2, 12) * 7 % 64
    together = KVCache(24, batch_size=2)
    lean.forward(texts, together)
    together.crop(1, 8)
    fresh = torch.tensor([[1, 2, 3], [4, 5, 6]])
    logits = lean.forward(fresh, together)
    for row, length in enumerate((12, 8)):
        alone = KVCache(24)
        lean.forward(texts[row : row + 1, :length], alone)
        check_close(logits[row], lean.forward(fresh[row : row + 1], alone)[0])


def test_head_is_what_the_forward_ends_with(tiny_model: Callable[..., Any]) -> None:
    lean, plain = pair(tiny_model, "grouped_heads")
    logits, hidden = lean.forward_with_hidden(torch.tensor([[3, 4]]), KVCache(2), (-1,))
    check_close(lean.head(hidden), logits)
    check_close(plain.head(hidden), logits)


def test_some_of_the_layers_run_without_the_others(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("llama", num_layers=4)
    lean = read_lean(model, {"full_attention": None})
    assert lean is not None
    whole, some = CausalLM(model, "whole", forward=lean), lean.keep((0, 2))
    ids = torch.tensor([[1, 2, 3]])
    cache, expected = KVCache(3), KVCache(3)
    from autospec.engine.masks import NewTokens

    _, hidden = some.run(ids, NewTokens([0], 3), cache, 0, wants_hidden=True)
    _, first = whole.forward_with_hidden(ids, expected, (1,))
    assert len(hidden) == 3
    check_close(hidden[1], first)
    assert sorted(cache.keys) == [0, 2]


def test_norm_has_root_mean_square_one_and_its_epsilon_inside_the_root() -> None:
    norm = Norm(torch.tensor([1.0, 2.0]), epsilon=3.5)
    # Squares 9 and 16: mean 12.5, and 16 with epsilon, whose root is 4.
    assert norm(torch.tensor([[3.0, 4.0]])).tolist() == [[pytest.approx(0.75), pytest.approx(2.0)]]
    assert norm(torch.zeros(1, 2)).tolist() == [[0.0, 0.0]]


def test_norm_of_half_precision_keeps_what_single_precision_finds() -> None:
    states, weight = torch.randn(8, 64), torch.rand(64)
    exact = Norm(weight, 1e-6)(states)
    halves = Norm(weight.bfloat16(), 1e-6)(states.bfloat16())
    assert halves.dtype == torch.bfloat16
    torch.testing.assert_close(halves.float(), exact, rtol=0.02, atol=0.02)
