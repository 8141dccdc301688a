"""Parts of Llama-like layers that trained heads are made of: sizes, linear maps, norms, rotary positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from autospec.engine.cache import KVCache
from autospec.engine.drafters.checkpoint import HeadCheckpoint
from autospec.engine.lean.attention import Heads, OneLength, Padded
from autospec.engine.masks import NewTokens, Windows
from autospec.engine.model import CausalLM
from autospec.engine.rows import FlatRows
from autospec.errors import ModelError

_KIND = "full_attention"
_WINDOWS: Windows = {_KIND: None}


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Sizes of the layers.

    Args:
        width: Of its hidden states.
        num_heads: Of queries.
        num_kv_heads: Of keys and values.
        head_dim: Of each head.
        epsilon: Of its norms.
        frequencies: [head_dim / 2] of the rotary embedding.
    """

    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    epsilon: float
    frequencies: Tensor

    @classmethod
    def of(cls, checkpoint: HeadCheckpoint) -> LayerShape:
        """Read them from `config.json`.

        Raises:
            ModelError: Another activation, or an unknown rotary embedding.
        """
        config, source = checkpoint.config, checkpoint.source
        if (activation := config.get("hidden_act", "silu")) != "silu":
            raise ModelError(f"trained heads must have the activation silu, but `{source}` has {activation!r}")
        width, num_heads = checkpoint.number("hidden_size"), checkpoint.number("num_attention_heads")
        head_dim = checkpoint.number("head_dim", width // num_heads)
        num_kv_heads = checkpoint.number("num_key_value_heads", num_heads)
        epsilon = float(config.get("rms_norm_eps", 1e-6))
        return cls(width, num_heads, num_kv_heads, head_dim, epsilon, rotary_frequencies(checkpoint, head_dim))


def rotary_frequencies(checkpoint: HeadCheckpoint, head_dim: int) -> Tensor:
    """Return [head_dim / 2] angles a position, plain, linearly scaled, or scaled as in Llama 3.1.

    Raises:
        ModelError: Scaled in another way.
    """
    config = checkpoint.config
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    base = float(scaling.get("rope_theta") or config.get("rope_theta") or 10000.0)
    plain = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if kind == "default":
        return plain
    if kind == "linear":
        return plain / float(scaling["factor"])
    if kind != "llama3":
        raise ModelError(f"`rope_scaling` of trained heads must be default, linear or llama3, but got {kind!r}")
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    turns = float(scaling["original_max_position_embeddings"]) * plain / (2 * math.pi)
    share = ((turns - low) / (high - low)).clamp(0.0, 1.0)  # 0: scaled, 1: as it was
    return share * plain + (1 - share) * plain / float(scaling["factor"])


class LayerParts:
    """The weights of some layers, on the device and in the number format of a target.

    Args:
        checkpoint: Where they come from.
        target: Whose device and number format they get.
    """

    def __init__(self, checkpoint: HeadCheckpoint, target: CausalLM) -> None:
        self.shape = LayerShape.of(checkpoint)
        self._checkpoint, self._target = checkpoint, target
        self._weights: dict[str, Tensor] = {}

    def load(self, name: str, size: Sequence[int]) -> None:
        """Take a weight, and the bias that belongs to it where there is one.

        Raises:
            ModelError: It is missing or has another size.
        """
        bias = name.removesuffix("weight") + "bias"
        for key, expected in ((name, size), (bias, size[:1])):
            if key == name or key in self._checkpoint.weights:
                weight = self._checkpoint.take(key, expected)
                self._weights[key] = weight.to(self._target.device, self._target.dtype)

    def load_layer(self, layer: str, num_inputs: int = 1) -> None:
        """Take attention, feed-forward part and the norm between them of one layer.

        Args:
            layer: Prefix of its names.
            num_inputs: Of how many vectors of the width, side by side, queries, keys and values are made.

        Raises:
            ModelError: See `load`.
        """
        shape, inner = self.shape, self._checkpoint.number("intermediate_size")
        queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        for name, size in {
            "self_attn.q_proj": (queries, num_inputs * shape.width),
            "self_attn.k_proj": (keys, num_inputs * shape.width),
            "self_attn.v_proj": (keys, num_inputs * shape.width),
            "self_attn.o_proj": (shape.width, queries),
            "mlp.gate_proj": (inner, shape.width),
            "mlp.up_proj": (inner, shape.width),
            "mlp.down_proj": (shape.width, inner),
            "post_attention_layernorm": (shape.width,),
        }.items():
            self.load(f"{layer}.{name}.weight", size)

    def get(self, name: str) -> Tensor | None:
        """Return a weight that was loaded, or None."""
        return self._weights.get(name)

    def linear(self, name: str, inputs: Tensor) -> Tensor:
        """Apply a linear map to [..., inputs]."""
        return linear(inputs, self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias"))

    def norm(self, name: str, states: Tensor) -> Tensor:
        """Apply a root-mean-square norm over the last dimension."""
        wide = states.float()
        scaled = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.shape.epsilon)
        return self._weights[f"{name}.weight"] * scaled.to(states.dtype)

    def feed_forward(self, layer: str, states: Tensor) -> Tensor:
        """Return states [n, width] with what the feed-forward part of a layer adds to them."""
        normed = self.norm(f"{layer}.post_attention_layernorm", states)
        gate, up = self.linear(f"{layer}.mlp.gate_proj", normed), self.linear(f"{layer}.mlp.up_proj", normed)
        return states + self.linear(f"{layer}.mlp.down_proj", silu(gate) * up)

    @property
    def heads(self) -> Heads:
        """How every layer attends."""
        shape = self.shape
        return Heads(_KIND, shape.num_heads, shape.num_kv_heads, shape.head_dim, shape.head_dim**-0.5)

    def project(self, name: str, inputs: Tensor) -> Tensor:
        """Return queries, keys or values of [n, inputs]: [1, n, heads, head_dim]."""
        return self.linear(name, inputs).view(1, len(inputs), -1, self.shape.head_dim)

    def rotate(self, states: Tensor, positions: Tensor) -> Tensor:
        """Rotate queries or keys [1, n, heads, head_dim] to positions [n]."""
        angles = positions.to(states.device)[:, None, None].float() * self.shape.frequencies.to(states.device)
        cosine, sine = angles.cos().to(states.dtype), angles.sin().to(states.dtype)
        first, second = states.chunk(2, dim=-1)
        return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)

    def out(self, layer: str, mixed: Tensor) -> Tensor:
        """Apply the output map of a layer's attention to mixed values [1, n, heads, head_dim]: [n, width]."""
        return self.linear(f"{layer}.self_attn.o_proj", mixed[0].flatten(1))


def beside(cache: KVCache, new: NewTokens, like: Tensor) -> OneLength:
    """Return how the new tokens of one text attend, in heads of full attention.

    Args:
        cache: Of the text.
        new: The tokens.
        like: Hidden states, whose device and number format masks get.
    """
    return OneLength(cache, new, _WINDOWS, like)


def beside_rows(cache: KVCache, flat: FlatRows, like: Tensor) -> Padded:
    """Return how new tokens of several texts attend, one row behind the other; see `beside`."""
    return Padded(cache, flat, _WINDOWS, like)
