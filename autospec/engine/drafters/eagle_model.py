"""EAGLE's draft network: one Llama layer over the target's features and the embeddings of the next tokens.

The layouts are those of the authors' code (SafeAILab/EAGLE: cnets1.py for EAGLE-1 and 2, cnets.py for EAGLE-3):
`config.json` of a Llama, `fc.weight`, and one layer under `layers.0.` or `midlayer.`. EAGLE-1 (2401.15077) feeds
fc([embedding; feature]) to a layer without an input norm and reads its output with the target's own head. EAGLE-3
(2503.01840) fuses three layers of the target by `fc`, feeds [norm(embedding); norm(feature)] to the attention, and has
`norm.weight` and `lm_head.weight` of its own, over a reduced vocabulary where `d2t` tells what to add to an index.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from autospec.engine.cache import KVCache
from autospec.engine.drafters.checkpoint import HeadCheckpoint
from autospec.engine.drafters.layer_parts import LayerParts, beside, beside_rows
from autospec.engine.lean.attention import Attending
from autospec.engine.masks import NewTokens
from autospec.engine.model import CausalLM
from autospec.engine.rows import FlatRows, RowTokens
from autospec.errors import ModelError


class EagleModel:
    """The draft network.

    Args:
        checkpoint: In a published layout.
        target: Its target: gives embeddings, and the head where there is none of its own.

    Raises:
        ModelError: A weight is missing or does not fit, or the configuration is unknown.
    """

    def __init__(self, checkpoint: HeadCheckpoint, target: CausalLM) -> None:
        if (num_layers := checkpoint.number("num_hidden_layers", 1)) != 1:
            raise ModelError(f"EAGLE heads must have one layer, but `{checkpoint.source}` has {num_layers}")
        self.checkpoint, self.target = _with_one_naming(checkpoint), target
        self._parts = LayerParts(self.checkpoint, target)
        self.is_third = "layer.hidden_norm.weight" in self.checkpoint.weights
        self.feature_layers = _feature_layers(checkpoint, target) if self.is_third else (-1,)
        width = self._parts.shape.width
        self._parts.load_layer("layer", 2 if self.is_third else 1)
        has_embeddings = "embed_tokens.weight" in self.checkpoint.weights
        if has_embeddings:
            self._parts.load("embed_tokens.weight", (target.vocab_size, width))
        if width != target.width and not (self.is_third and has_embeddings):
            raise ModelError(
                f"EAGLE heads that use embeddings or head of their target must be as wide, but `{checkpoint.source}` "
                f"is {width} wide and `{target.name}` {target.width}"
            )
        if self.is_third:
            self._parts.load("fc.weight", (width, len(self.feature_layers) * target.width))
            for name in ("layer.input_layernorm.weight", "layer.hidden_norm.weight", "norm.weight"):
                self._parts.load(name, (width,))
            self._num_rows = checkpoint.number("draft_vocab_size", target.vocab_size)
            self._parts.load("lm_head.weight", (self._num_rows, width))
        else:
            self._parts.load("fc.weight", (width, 2 * width))
        self.target_ids = self._target_ids()

    def _target_ids(self) -> Tensor | None:
        """Return which token of the target each row of the head is: [draft vocabulary]; None where they are all."""
        if not self.is_third or "d2t" not in self.checkpoint.weights:
            return None
        size = self._num_rows
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
        return self._parts.linear("fc", features) if self.is_third else features

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
        new = NewTokens(cache.lengths, len(token_ids), tree_mask, depths)
        expected = self._through(token_ids, hidden, new.positions[0], beside(cache, new, hidden))
        cache.advance(len(token_ids))
        return expected

    @torch.inference_mode()
    def forward_rows(self, asked: Sequence[RowTokens], hidden: Tensor, cache: KVCache) -> Tensor:
        """Run pairs of several rows at once; see `forward`.

        Args:
            asked: The tokens of each row.
            hidden: [tokens, width] the features, row behind row.
            cache: Of all rows; each is advanced by its own number of tokens.

        Returns:
            [tokens, width], row behind row.
        """
        flat = FlatRows(cache.lengths, asked)
        expected = self._through(flat.token_ids, hidden, flat.positions, beside_rows(cache, flat, hidden))
        for one in asked:
            cache.lengths[one.row] += len(one.token_ids)
        return expected

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Return what its outputs [n, width] say of the next token: [n, vocab of the target] float32."""
        if not self.is_third:
            return self.target.head(hidden).float()
        own = self._parts.linear("lm_head", self._parts.norm("norm", hidden)).float()
        if self.target_ids is None:
            return own
        full = torch.full((len(own), self.target.vocab_size), -torch.inf, device=own.device)
        full[:, self.target_ids] = own
        return full

    def _embed(self, token_ids: Tensor) -> Tensor:
        own = self._parts.get("embed_tokens.weight")
        return self.target.embed(token_ids) if own is None else own[token_ids.to(own.device)]

    def _through(self, token_ids: Tensor, hidden: Tensor, positions: Tensor, attending: Attending) -> Tensor:
        """Run pairs that stand at positions [n], whatever rows they belong to."""
        parts, embedded = self._parts, self._embed(token_ids)
        if self.is_third:
            states, normed = hidden, parts.norm("layer.hidden_norm", hidden)
            inputs = torch.cat([parts.norm("layer.input_layernorm", embedded), normed], -1)
        else:
            states = inputs = parts.linear("fc", torch.cat([embedded, hidden], dim=-1))
        query, key, value = (parts.project(f"layer.self_attn.{name}_proj", inputs) for name in "qkv")
        query, key = parts.rotate(query, positions), parts.rotate(key, positions)
        states = states + parts.out("layer", attending.mix(0, parts.heads, query, key, value))
        return parts.feed_forward("layer", states)


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
