"""EAGLE's draft network: one Llama layer over the target's features and the embeddings of the next tokens.

The layouts are those of the authors' code (SafeAILab/EAGLE: cnets1.py for EAGLE-1 and 2, cnets.py for EAGLE-3):
`config.json` of a Llama, `fc.weight`, and one layer under `layers.0.` or `midlayer.`. EAGLE-1 (2401.15077) feeds
fc([embedding; feature]) to a layer without an input norm and reads its output with the target's own head. EAGLE-3
(2503.01840) fuses three layers of the target by `fc`, feeds [norm(embedding); norm(feature)] to the attention, and has
`norm.weight` and `lm_head.weight` of its own, over a reduced vocabulary where `d2t` tells what to add to an index.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from autospec.engine.cache import KVCache
from autospec.engine.drafters.checkpoint import HeadCheckpoint
from autospec.engine.masks import NewTokens, attention_mask
from autospec.engine.model import CausalLM
from autospec.errors import ModelError


@dataclass(frozen=True, slots=True)
class EagleShape:
    """Sizes of the draft network.

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
    def of(cls, checkpoint: HeadCheckpoint) -> EagleShape:
        """Read them from `config.json`.

        Raises:
            ModelError: It has more than one layer, another activation, or an unknown rotary embedding.
        """
        config, source = checkpoint.config, checkpoint.source
        if (num_layers := checkpoint.number("num_hidden_layers", 1)) != 1:
            raise ModelError(f"EAGLE heads must have one layer, but `{source}` has {num_layers}")
        if (activation := config.get("hidden_act", "silu")) != "silu":
            raise ModelError(f"EAGLE heads must have the activation silu, but `{source}` has {activation!r}")
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
        raise ModelError(f"`rope_scaling` of EAGLE heads must be default, linear or llama3, but got {kind!r}")
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    turns = float(scaling["original_max_position_embeddings"]) * plain / (2 * math.pi)
    share = ((turns - low) / (high - low)).clamp(0.0, 1.0)  # 0: scaled, 1: as it was
    return share * plain + (1 - share) * plain / float(scaling["factor"])


class EagleModel:
    """The draft network.

    Args:
        checkpoint: In a published layout.
        target: Its target: gives embeddings, and the head where there is none of its own.

    Raises:
        ModelError: A weight is missing or does not fit, or the configuration is unknown.
    """

    def __init__(self, checkpoint: HeadCheckpoint, target: CausalLM) -> None:
        self.checkpoint = _with_one_naming(checkpoint)
        self.target, self.shape = target, EagleShape.of(checkpoint)
        self.is_third = "layer.hidden_norm.weight" in self.checkpoint.weights
        self.feature_layers = _feature_layers(checkpoint, target) if self.is_third else (-1,)
        shape, num_inputs = self.shape, 2 if self.is_third else 1
        queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        inner = checkpoint.number("intermediate_size")
        self._weights: dict[str, Tensor] = {}
        for name, size in {
            "fc.weight": (shape.width, self._fc_inputs()),
            "layer.self_attn.q_proj.weight": (queries, num_inputs * shape.width),
            "layer.self_attn.k_proj.weight": (keys, num_inputs * shape.width),
            "layer.self_attn.v_proj.weight": (keys, num_inputs * shape.width),
            "layer.self_attn.o_proj.weight": (shape.width, queries),
            "layer.mlp.gate_proj.weight": (inner, shape.width),
            "layer.mlp.up_proj.weight": (inner, shape.width),
            "layer.mlp.down_proj.weight": (shape.width, inner),
            "layer.post_attention_layernorm.weight": (shape.width,),
        }.items():
            self._load(name, size)
        self._load_optional()
        self.target_ids = self._target_ids()

    def _fc_inputs(self) -> int:
        return len(self.feature_layers) * self.target.width if self.is_third else self.shape.width + self.target.width

    def _load(self, name: str, size: Sequence[int]) -> None:
        weight = self.checkpoint.take(name, size)
        self._weights[name] = weight.to(device=self.target.device, dtype=self.target.dtype)

    def _load_optional(self) -> None:
        """Load what only some layouts have: biases, embeddings, the norms and the head of EAGLE-3."""
        weights, width = self.checkpoint.weights, self.shape.width
        for name in self._weights.copy():
            bias = name.removesuffix("weight") + "bias"
            if bias in weights:
                self._load(bias, self._weights[name].shape[:1])
        if self.is_third:
            for name in ("layer.input_layernorm.weight", "layer.hidden_norm.weight", "norm.weight"):
                self._load(name, (width,))
            self._load("lm_head.weight", (self.checkpoint.number("draft_vocab_size", self.target.vocab_size), width))
        if "embed_tokens.weight" in weights:
            self._load("embed_tokens.weight", (self.target.vocab_size, width))
        elif self.target.width != width:
            raise ModelError(
                f"EAGLE heads without embeddings must be as wide as their target, but `{self.checkpoint.source}` is "
                f"{width} wide and `{self.target.name}` {self.target.width}"
            )
        if not self.is_third and self.target.width != width:
            raise ModelError(
                f"EAGLE-1 heads must be as wide as their target, but `{self.checkpoint.source}` is {width} wide and "
                f"`{self.target.name}` {self.target.width}"
            )

    def _target_ids(self) -> Tensor | None:
        """Return which token of the target each row of the head is: [draft vocabulary]; None where they are all."""
        if not self.is_third or "d2t" not in self.checkpoint.weights:
            return None
        size = self._weights["lm_head.weight"].shape[0]
        ids = torch.arange(size) + self.checkpoint.take("d2t", (size,)).long()
        if len(ids.unique()) != size or int(ids.min()) < 0 or int(ids.max()) >= self.target.vocab_size:
            raise ModelError(
                f"`d2t` of `{self.checkpoint.source}` must lead to {size} different tokens below "
                f"{self.target.vocab_size}, but leads to {len(ids.unique())} from {int(ids.min())} to {int(ids.max())}"
            )
        marked = self.checkpoint.weights.get("t2d")
        if marked is not None and marked.bool().nonzero()[:, 0].tolist() != ids.sort().values.tolist():
            raise ModelError(f"`t2d` of `{self.checkpoint.source}` must mark the tokens that `d2t` leads to")
        return ids.to(self.target.device)

    @torch.inference_mode()
    def fuse(self, features: Tensor) -> Tensor:
        """Return the target's features [n, layers * target width] as the network takes them: [n, width]."""
        return self._linear("fc", features) if self.is_third else features

    @torch.inference_mode()
    def forward(
        self,
        token_ids: Tensor,
        hidden: Tensor,
        cache: KVCache,
        tree_mask: Tensor | None = None,
        depths: Sequence[int] | None = None,
    ) -> Tensor:
        """Run pairs of a feature and the token behind it, and append them to the cache.

        Args:
            token_ids: [n] token i + 1 for each position i.
            hidden: [n, width] feature of position i: fused ones of the target, or outputs of this network.
            cache: Of this network; advanced by n.
            tree_mask: As for `CausalLM.forward`.
            depths: As for `CausalLM.forward`.

        Returns:
            [n, width] the features it expects at positions i + 1.
        """
        embedded = self._embed(token_ids)
        if self.is_third:
            states = hidden
            inputs = torch.cat(
                [self._norm("layer.input_layernorm", embedded), self._norm("layer.hidden_norm", hidden)], -1
            )
        else:
            states = inputs = self._linear("fc", torch.cat([embedded, hidden], dim=-1))
        states = states + self._attend(inputs, cache, tree_mask, depths)
        normed = self._norm("layer.post_attention_layernorm", states)
        gate, up = self._linear("layer.mlp.gate_proj", normed), self._linear("layer.mlp.up_proj", normed)
        return states + self._linear("layer.mlp.down_proj", silu(gate) * up)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Return what its outputs [n, width] say of the next token: [n, vocab of the target] float32."""
        if not self.is_third:
            return self.target.head(hidden).float()
        own = self._linear("lm_head", self._norm("norm", hidden)).float()
        if self.target_ids is None:
            return own
        full = torch.full((len(own), self.target.vocab_size), -torch.inf, device=own.device)
        full[:, self.target_ids] = own
        return full

    def _embed(self, token_ids: Tensor) -> Tensor:
        own = self._weights.get("embed_tokens.weight")
        return self.target.embed(token_ids) if own is None else own[token_ids.to(own.device)]

    def _linear(self, name: str, inputs: Tensor) -> Tensor:
        return linear(inputs, self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias"))

    def _norm(self, name: str, states: Tensor) -> Tensor:
        wide = states.float()
        scaled = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.shape.epsilon)
        return self._weights[f"{name}.weight"] * scaled.to(states.dtype)

    def _attend(
        self, inputs: Tensor, cache: KVCache, tree_mask: Tensor | None, depths: Sequence[int] | None
    ) -> Tensor:
        num_new, shape = len(inputs), self.shape
        offsets = torch.arange(num_new) if depths is None else torch.tensor(depths)
        positions = (cache.length + offsets).to(inputs.device)
        query, key, value = (
            self._linear(f"layer.self_attn.{name}_proj", inputs).view(1, num_new, -1, shape.head_dim).transpose(1, 2)
            for name in "qkv"
        )
        query, key = self._rotate(query, positions), self._rotate(key, positions)
        mask = attention_mask(NewTokens(cache.lengths, num_new, tree_mask), {"full_attention": None}, inputs.dtype)
        keys, values = cache.update(key, value, 0)
        repeats = shape.num_heads // shape.num_kv_heads
        keys, values = keys.repeat_interleave(repeats, 1), values.repeat_interleave(repeats, 1)
        mask = None if mask is None else mask.to(inputs.device)
        mixed = scaled_dot_product_attention(query, keys, values, mask, is_causal=mask is None and num_new > 1)
        cache.advance(num_new)
        return self._linear("layer.self_attn.o_proj", mixed.transpose(1, 2).reshape(num_new, -1))

    def _rotate(self, states: Tensor, positions: Tensor) -> Tensor:
        angles = positions[:, None].float() * self.shape.frequencies.to(states.device)
        cosine, sine = angles.cos().to(states.dtype), angles.sin().to(states.dtype)
        first, second = states.chunk(2, dim=-1)
        return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def _with_one_naming(checkpoint: HeadCheckpoint) -> HeadCheckpoint:
    """Call the layer `layer.`, whichever of its published names it has."""
    weights = {}
    for name, weight in checkpoint.weights.items():
        short = name.removeprefix("model.")
        for prefix in ("layers.0.", "midlayer."):
            if short.startswith(prefix):
                short = "layer." + short.removeprefix(prefix)
        weights[short] = weight
    return HeadCheckpoint(checkpoint.source, checkpoint.config, weights)


def _feature_layers(checkpoint: HeadCheckpoint, target: CausalLM) -> tuple[int, ...]:
    """Return which hidden states are fused: named in the configuration, or the inputs of layers 2, n / 2 and n - 3."""
    nested = checkpoint.config.get("eagle_config") or {}
    name = "eagle_aux_hidden_state_layer_ids"
    named = checkpoint.config.get(name) or nested.get(name)
    layers = tuple(named or (2, target.num_layers // 2, target.num_layers - 3))
    if not all(type(layer) is int and 0 <= layer < target.num_layers for layer in layers):
        raise ModelError(
            f"EAGLE-3 features must come from hidden states 0 .. {target.num_layers - 1} of the target, "
            f"but `{checkpoint.source}` takes {list(layers)}"
        )
    return layers
