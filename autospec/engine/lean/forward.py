"""The forward of a decoder of the Llama kind over our cache: root-mean-square norms, rotary attention, gated parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding, rms_norm

from autospec.engine.cache import KVCache
from autospec.engine.lean.attention import Attending, Heads, OneLength, attending_rows
from autospec.engine.lean.maps import LinearMap
from autospec.engine.lean.rotary import RotaryTable, rotate
from autospec.engine.masks import NewTokens, Windows
from autospec.engine.rows import FlatRows


class Norm:
    """Root-mean-square norm (1910.07467) over the last dimension.

    Args:
        weight: [width].
        epsilon: Added to the mean square.
    """

    def __init__(self, weight: Tensor, epsilon: float) -> None:
        self.weight, self.epsilon = weight, epsilon
        width = len(weight)
        self._is_single = weight.dtype == torch.float32
        # sqrt(mean of squares + epsilon) is hypot(length, sqrt(width * epsilon)) / sqrt(width): two small operations.
        self._scaled = weight * math.sqrt(width)
        self._least = torch.tensor(math.sqrt(width * epsilon), device=weight.device)

    def __call__(self, states: Tensor) -> Tensor:
        """Return states [..., width] of root-mean-square 1, times the weight."""
        if not self._is_single:  # the length of a vector in half precision would lose what the mean square keeps
            return rms_norm(states, self.weight.shape, self.weight, self.epsilon)
        lengths = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
        return states / torch.hypot(lengths, self._least) * self._scaled


@dataclass(frozen=True, slots=True)
class LeanLayer:
    """One decoder layer.

    Args:
        number: Under which it writes into the cache.
        heads: How it attends.
        norm_before: Of what attention reads.
        project: To queries, keys and values, side by side.
        head_norms: Of each query and each key, or None.
        out: From mixed values.
        norm_between: Of what the gated part reads.
        gate: First map of the gated part.
        up: Second map.
        down: From their product.
    """

    number: int
    heads: Heads
    norm_before: Norm
    project: LinearMap
    head_norms: tuple[Norm, Norm] | None
    out: LinearMap
    norm_between: Norm
    gate: LinearMap
    up: LinearMap
    down: LinearMap

    @property
    def maps(self) -> tuple[LinearMap, ...]:
        """All linear maps."""
        return (self.project, self.out, self.gate, self.up, self.down)

    @property
    def norms(self) -> tuple[Norm, ...]:
        """All norms."""
        return (self.norm_before, self.norm_between, *(self.head_norms or ()))

    def run(self, states: Tensor, rope: tuple[Tensor, Tensor], attending: Attending) -> Tensor:
        """Return the states [rows, n, width] behind this layer."""
        return self.after(states, attending.mix(self.number, self.heads, *self.before(states, rope)))

    def before(self, states: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return what attention reads of states [rows, n, width]: queries, keys and values [rows, n, heads, size]."""
        heads = self.heads
        split = self.project(self.norm_before(states)).view(*states.shape[:2], -1, heads.size)
        num_turned = heads.num_queries + heads.num_keys
        turned = rotate(self._normed(split[:, :, :num_turned]), rope)
        return turned[:, :, : heads.num_queries], turned[:, :, heads.num_queries :], split[:, :, num_turned:]

    def after(self, states: Tensor, mixed: Tensor) -> Tensor:
        """Return the states behind this layer.

        Args:
            states: [rows, n, width] before it.
            mixed: [rows, n, query heads, head size] that attention made of them.
        """
        states = self.out.plus(mixed.flatten(2), states)
        between = self.norm_between(states)
        return self.down.plus(self.up.times(between, self.gate.silu(between)), states)

    def _normed(self, split: Tensor) -> Tensor:
        if self.head_norms is None:
            return split
        for_queries, for_keys = self.head_norms
        queries, keys = split.split([self.heads.num_queries, self.heads.num_keys], dim=2)
        return torch.cat([for_queries(queries), for_keys(keys)], dim=2)


class LeanForward:
    """Runs tokens through layers; see `autospec.engine.forwards.Forward`.

    Args:
        embeddings: [vocab, width].
        layers: In order.
        norm: Behind the last layer.
        output_map: To logits.
        rotary: Angles.
        windows: Over how many tokens each kind of layer looks.

    All of them are attributes of the same names.
    """

    def __init__(
        self,
        embeddings: Tensor,
        layers: Sequence[LeanLayer],
        norm: Norm,
        output_map: LinearMap,
        rotary: RotaryTable,
        windows: Windows,
    ) -> None:
        self.embeddings, self.layers, self.norm = embeddings, tuple(layers), norm
        self.output_map, self.rotary, self.windows = output_map, rotary, windows

    def run(
        self, input_ids: Tensor, new: NewTokens, cache: KVCache, num_logits: int, wants_hidden: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run tokens; see `Forward`."""
        attending = self.attending(new, cache)
        return self.through(input_ids, self._rope(new), attending, slice(-num_logits, None), wants_hidden)

    def run_rows(self, flat: FlatRows, cache: KVCache, wants_hidden: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run tokens of several rows, one after the other; see `Forward`."""
        rope = self.rotary.at_each(flat.positions[None], flat.longest)
        attending = self.attending_rows(flat, cache)
        return self.through(flat.token_ids[None], rope, attending, flat.with_logits, wants_hidden)

    def attending(self, new: NewTokens, cache: KVCache) -> Attending:
        """Return how tokens of rows that stand side by side attend to what a cache holds."""
        return OneLength(cache, new, self.windows, self.like)

    def attending_rows(self, flat: FlatRows, cache: KVCache) -> Attending:
        """Return how tokens of several rows, one after the other, attend to what a cache holds."""
        return attending_rows(cache, flat, self.windows, self.like, self.layers[0].heads)

    def through(
        self,
        input_ids: Tensor,
        rope: tuple[Tensor, Tensor],
        attending: Attending,
        with_logits: slice | Tensor,
        wants_hidden: bool,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run tokens, whatever they attend to; see `Forward`.

        Args:
            input_ids: [rows, n].
            rope: Cosines and signed sines of their positions; see `rotate`.
            attending: How they attend.
            with_logits: Of which of them logits are wanted.
            wants_hidden: Return hidden states too.
        """
        states = embedding(input_ids.to(self.embeddings.device), self.embeddings)
        hidden = []
        for layer in self.layers:
            if wants_hidden:
                hidden.append(states)
            states = layer.run(states, rope, attending)
        if not wants_hidden:
            return self.output_map(self.norm(states[:, with_logits])), ()
        states = self.norm(states)
        return self.output_map(states[:, with_logits]), (*hidden, states)

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits; see `Forward`."""
        return self.output_map(hidden)

    def _rope(self, new: NewTokens) -> tuple[Tensor, Tensor]:
        if new.depths is None and new.is_level:
            return self.rotary.at(new.lengths[0], new.num_new)
        positions = new.positions
        return self.rotary.at_each(positions, int(positions.max()))

    @property
    def layer_numbers(self) -> tuple[int, ...]:
        """Under which its layers write into a cache."""
        return tuple(layer.number for layer in self.layers)

    @property
    def like(self) -> Tensor:
        """A weight of its device and format: the embeddings [vocab, width]."""
        return self.embeddings

    def weights(self) -> list[Tensor]:
        """Return every tensor of the model that it runs with, in the form in which it holds it."""
        maps = (*(one for layer in self.layers for one in layer.maps), self.output_map)
        norms = (*(one for layer in self.layers for one in layer.norms), self.norm)
        own = [weight for one in maps for weight in one.weights()]
        return [self.embeddings, *own, *(one.weight for one in norms)]

    def keep(self, layers: Sequence[int]) -> LeanForward:
        """Return one of some of its layers, which write where they always do."""
        kept = [self.layers[layer] for layer in layers]
        return LeanForward(self.embeddings, kept, self.norm, self.output_map, self.rotary, self.windows)
