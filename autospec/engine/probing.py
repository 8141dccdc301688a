"""Whether a model does what the engine asks of a target or a drafter, found out on a few tokens when it is loaded.

Refuses by name what its configuration already tells, and by its logits what only running it can tell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from autospec.engine.cache import KVCache
from autospec.errors import ModelError

if TYPE_CHECKING:
    from autospec.engine.model import CausalLM


def check_usable(model: CausalLM) -> Tensor:
    """Refuse a model that would end in wrong text.

    Returns:
        [n, vocab] the logits it was judged by, which another forward of the same weights must have too.

    Raises:
        ModelError: It is an encoder-decoder, keeps a recurrent state, biases attention by distance in the cache, does
            not use the KV cache in every layer, looks ahead, or does not follow masks and positions.
    """
    kind = type(model.model).__name__
    _check_configuration(model, kind)
    cache = KVCache(capacity=8)
    try:
        whole = _logits(model, [0, 1, 2, 3], cache)
        if len(cache.keys) != model.model.config.get_text_config().num_hidden_layers:
            raise ModelError(f"every layer must use the KV cache, but `{model.name}` ({kind}) leaves it unused")
        halves = KVCache(capacity=4)
        split = torch.cat([_logits(model, [0, 1], halves), _logits(model, [2, 3], halves)])
        cache.crop(0, 2)
        branches = _run_branches(model, cache)
        other = _logits(model, [0, 1, 3], KVCache(capacity=3))
    except ModelError:
        raise
    except (TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"`{model.name}` ({kind}) does not run with a KV cache of keys and values: {first_line(error)}"
        ) from error
    if differ(split, whole, model.dtype):
        raise ModelError(
            f"logits must be the same with and without a KV cache, but those of `{model.name}` ({kind}) differ"
        )
    if differ(branches, torch.stack([whole[2], other[2]]), model.dtype):
        raise ModelError(
            "logits of a token in a tree must be those of its path alone, "
            f"but `{model.name}` ({kind}) does not follow masks and positions"
        )
    return torch.cat([whole, split, branches, other])


def agrees(model: CausalLM, expected: Tensor) -> bool:
    """Return whether a model has the logits that `check_usable` saw of another."""
    try:
        return not differ(check_usable(model), expected, model.dtype)
    except ModelError:
        return False


def _check_configuration(model: CausalLM, kind: str) -> None:
    config = model.model.config
    if config.is_encoder_decoder:
        raise ModelError(f"a target or drafter must be decoder-only, but `{model.name}` is a {kind}")
    if getattr(model.model, "_is_stateful", False):
        raise ModelError(
            "every layer must keep keys and values, so that a draft can be taken back, "
            f"but `{model.name}` ({kind}) keeps a recurrent state"
        )
    if _biases_by_place(config.get_text_config()):
        raise ModelError(
            "attention must depend on the positions given, "
            f"but `{model.name}` ({kind}) biases it by places in the cache (ALiBi)"
        )


def _biases_by_place(config: Any) -> bool:
    attention = getattr(config, "attn_config", None)
    alibi = getattr(config, "alibi", False) or getattr(attention, "alibi", False)
    return bool(alibi) or config.model_type == "bloom"  # which has nothing else and no name for it


def _logits(model: CausalLM, token_ids: list[int], cache: KVCache) -> Tensor:
    """Return [n, vocab] of tokens behind those cached."""
    ids = torch.tensor([token_ids]) % model.vocab_size
    return model.forward(ids, cache)[0].float()


def _run_branches(model: CausalLM, cache: KVCache) -> Tensor:
    """Return the logits [2, vocab] of the tokens 2 and 3, both children of the last cached one."""
    ids = torch.tensor([[2, 3]]) % model.vocab_size
    return model.forward(ids, cache, tree_mask=torch.eye(2, dtype=torch.bool), depths=(0, 0))[0].float()


def differ(logits: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Return whether logits differ by more than rounding; those of a model that looks elsewhere differ by far more."""
    limit = 1e-3 if dtype == torch.float32 else 0.1
    return not bool((logits - expected).abs().mean() <= limit * expected.std())  # what is no number differs


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its name where it has none."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
