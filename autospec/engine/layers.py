"""A model made of some layers of another one, with its embeddings, its last norm and its head: nothing is copied.

Only modules that hold the layers are made anew; weights are shared, and so are the slots of a KV cache, because every
layer keeps the number under which it writes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn

from autospec.engine.model import CausalLM
from autospec.errors import ModelError


def keep_layers(model: CausalLM, layers: Sequence[int]) -> CausalLM:
    """Make a model of some layers of another.

    Args:
        model: Stays as it is.
        layers: Which of its layers, counted from 0, in ascending order.

    Raises:
        ModelError: There are no such layers, they cannot be told from the rest of the model, or it does not run
            without the others.
    """
    total = model.num_layers
    if not layers or list(layers) != sorted(set(layers)) or not 0 <= layers[0] <= layers[-1] < total:
        raise ModelError(
            f"layers to keep must ascend within 0 .. {total - 1} of `{model.name}`, but got {list(layers)}"
        )
    whole: Any = model.model
    path = _path_to_layers(whole, total)
    if path is None:
        raise ModelError(f"decoder layers must stand in one list of {total}, but `{model.name}` has none")
    configs = _cut_configs(whole.config, layers)
    top = above = _shallow(whole, configs)
    for name in path[:-1]:
        above._modules[name] = _shallow(above._modules[name], configs)
        above = above._modules[name]
    above._modules[path[-1]] = nn.ModuleList([above._modules[path[-1]][layer] for layer in layers])
    return model.keep(top, layers)


def _path_to_layers(model: nn.Module, total: int) -> list[str] | None:
    """Return the names that lead to the list whose items know themselves as layers 0 .. total - 1."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == total:
            numbers = [{getattr(part, "layer_idx", None) for part in layer.modules()} - {None} for layer in module]
            if numbers == [{layer} for layer in range(total)]:
                return str(name).split(".")
    return None


def _cut_configs(config: Any, layers: Sequence[int]) -> dict[int, Any]:
    """Return for the identity of a model's configuration, and of that of its text part, the one with fewer layers."""
    top = copy.deepcopy(config)
    text = top.get_text_config()
    kinds = getattr(text, "layer_types", None)
    text.num_hidden_layers = len(layers)
    if kinds:
        text.layer_types = [kinds[layer] for layer in layers]
    return {id(config): top, id(config.get_text_config()): text}


def _shallow(module: Any, configs: dict[int, Any]) -> Any:
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    if id(getattr(module, "config", None)) in configs:
        twin.config = configs[id(module.config)]
    return twin
