"""From a model that transformers loaded to a lean forward with its weights, where that is known to be the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autospec.engine.lean.attention import Heads
from autospec.engine.lean.forward import LeanForward, LeanLayer, Norm
from autospec.engine.lean.maps import LinearMap, can_pack, fast_map, shared_map, stay_cached
from autospec.engine.lean.rotary import RotaryTable
from autospec.engine.masks import Windows
from autospec.engine.memory import return_freed

KINDS = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
_MOST_FREED = 32 << 20  # bytes of weights that were let go of, before the system gets them back
_GROWING = ("dynamic", "longrope")  # rotary angles that depend on how long the text is


def read_lean(model: Any, windows: Windows) -> LeanForward | None:
    """Make a lean forward of a model's own weights; None where it is of another kind, or does more than they say.

    Whether it computes the same is for the caller to see, before `speed_up`.

    Args:
        model: Loaded by transformers, on one device.
        windows: Of its kinds of layers.
    """
    return _Reader(model, windows, shared_map).read() if _is_known(model) else None


def speed_up(model: Any, windows: Windows, lets_go: bool) -> LeanForward:
    """Make the same of weights in the form that is fastest on this device.

    Args:
        model: Of which `read_lean` made one.
        windows: Of its kinds of layers.
        lets_go: Let the model go of every weight, one after the other, that is held in another form here, so that
            none is held twice. The model itself cannot run any more; its embeddings stay.
    """
    embeddings = model.get_input_embeddings().weight
    is_packed = can_pack(embeddings.device, embeddings.dtype)
    is_small = stay_cached(one.weight for one in _linears(model))

    num_freed = 0  # bytes, since they were given back

    def made(linears: Sequence[nn.Linear]) -> LinearMap:
        nonlocal num_freed
        # A head that shares the embeddings stays as it is: in another form it would be held twice.
        if any(one.weight is embeddings for one in linears) or (len(linears) == 1 and not is_packed):
            return shared_map(linears)
        fast = fast_map(linears, is_packed, is_small)
        for one in linears if lets_go else ():
            num_freed += one.weight.nbytes
            one.weight = nn.Parameter(torch.empty_like(one.weight, device="meta"), requires_grad=False)
        if num_freed > _MOST_FREED:
            return_freed()
            num_freed = 0
        return fast

    return _Reader(model, windows, made).read()


def _is_known(model: Any) -> bool:
    config = model.config
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        type(model).__name__ in KINDS
        and config.hidden_act == "silu"
        and rope.get("rope_type", "default") not in _GROWING
        and len({parameter.device for parameter in model.parameters()}) == 1
        and len({parameter.dtype for parameter in model.parameters()}) == 1
        and not any(_is_hooked(module) for module in model.modules())
        and all(type(module) is nn.Linear for module in _linears(model))
    )


def _is_hooked(module: nn.Module) -> bool:
    """Return whether something happens when a module runs, besides transformers' own collecting of hidden states."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(not str(getattr(hook, "__module__", "")).startswith("transformers.") for hook in hooks)


def _linears(model: Any) -> Iterable[Any]:
    """Return everything that a lean forward takes for a linear map."""
    yield model.lm_head
    for layer in model.model.layers:
        attention, gated = layer.self_attn, layer.mlp
        yield from (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        yield from (gated.gate_proj, gated.up_proj, gated.down_proj)


class _Reader:
    def __init__(self, model: Any, windows: Windows, made: Callable[[Sequence[nn.Linear]], LinearMap]) -> None:
        self._model, self._config, self._windows, self._made = model, model.config, windows, made
        self._embeddings: Tensor = model.get_input_embeddings().weight.detach()

    def read(self) -> LeanForward:
        body = self._model.model
        return LeanForward(
            embeddings=self._embeddings,
            layers=[self._layer(number, layer) for number, layer in enumerate(body.layers)],
            norm=self._norm(body.norm),
            output_map=self._map(self._model.lm_head),
            rotary=RotaryTable(body.rotary_emb, self._embeddings),
            windows=self._windows,
        )

    def _layer(self, number: int, layer: Any) -> LeanLayer:
        attention, gated = layer.self_attn, layer.mlp
        return LeanLayer(
            number=number,
            heads=self._heads(number, attention),
            norm_before=self._norm(layer.input_layernorm),
            project=self._map(attention.q_proj, attention.k_proj, attention.v_proj),
            head_norms=self._head_norms(attention),
            out=self._map(attention.o_proj),
            norm_between=self._norm(layer.post_attention_layernorm),
            gate=self._map(gated.gate_proj),
            up=self._map(gated.up_proj),
            down=self._map(gated.down_proj),
        )

    def _heads(self, number: int, attention: Any) -> Heads:
        kinds = getattr(self._config, "layer_types", None)
        kind = kinds[number] if kinds else next(iter(self._windows))
        size = int(attention.head_dim)
        queries, keys = attention.q_proj.out_features // size, attention.k_proj.out_features // size
        return Heads(kind, queries, keys, size, float(attention.scaling))

    def _head_norms(self, attention: Any) -> tuple[Norm, Norm] | None:
        if not hasattr(attention, "q_norm"):
            return None
        return self._norm(attention.q_norm), self._norm(attention.k_norm)

    def _norm(self, module: Any) -> Norm:
        return Norm(module.weight.detach(), float(module.variance_epsilon))

    def _map(self, *linears: nn.Linear) -> LinearMap:
        return self._made(linears)
