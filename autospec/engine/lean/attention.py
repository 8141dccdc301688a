"""How new tokens attend to what a cache holds: rows of one length, or several rows of any length, flattened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from autospec.engine.cache import KVCache
from autospec.engine.masks import NewTokens, Windows, sights
from autospec.engine.rows import FlatRows


@dataclass(frozen=True, slots=True)
class Heads:
    """How a layer attends.

    Args:
        kind: `full_attention` or `sliding_attention`.
        num_queries: Heads of queries.
        num_keys: Heads of keys and of values.
        size: Of one head.
        scale: What products of queries and keys are multiplied by.
    """

    kind: str
    num_queries: int
    num_keys: int
    size: int
    scale: float


class Attending(Protocol):
    """Writes the keys and values of new tokens and mixes what they see."""

    def mix(self, number: int, heads: Heads, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend in one layer.

        Args:
            number: Under which the layer writes into the cache.
            heads: Of the layer.
            queries: [rows, n, query heads, head size], turned.
            keys: [rows, n, key heads, head size], turned.
            values: Likewise.

        Returns:
            [rows, n, query heads, head size].
        """
        ...


class OneLength:
    """Tokens of rows that stand side by side: [rows, n].

    Args:
        cache: Of these rows.
        new: The tokens.
        windows: Of the model's kinds of layers.
        like: A weight, whose device and format masks get.
    """

    def __init__(self, cache: KVCache, new: NewTokens, windows: Windows, like: Tensor) -> None:
        self._cache, self._sights = cache, sights(new, windows, like.dtype, like.device)

    def mix(self, number: int, heads: Heads, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `Attending`."""
        sight = self._sights[heads.kind]
        all_keys, all_values = self._cache.update(keys.transpose(1, 2), values.transpose(1, 2), number)
        mixed = scaled_dot_product_attention(
            queries.transpose(1, 2),
            all_keys,
            all_values,
            sight.mask,
            is_causal=sight.is_causal,
            scale=heads.scale,
            enable_gqa=heads.num_queries != heads.num_keys,
        )
        return mixed.transpose(1, 2)


class SeveralRows:
    """Tokens of several rows of a cache, one behind the other: [1, tokens].

    Linear maps see no padding; only here are queries brought into rows of one length.

    Args:
        cache: Of all rows.
        flat: The tokens.
        windows: Of the model's kinds of layers.
        like: A weight, whose device and format masks get.
    """

    def __init__(self, cache: KVCache, flat: FlatRows, windows: Windows, like: Tensor) -> None:
        self._cache, self._flat = cache, flat
        self._masks = {kind: flat.mask(window, like.dtype).to(like.device) for kind, window in windows.items()}
        self._rows, self._places = flat.rows.to(like.device), flat.places.to(like.device)

    def mix(self, number: int, heads: Heads, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `Attending`."""
        flat = self._flat
        all_keys, all_values = self._cache.write_rows(flat, keys[0], values[0], number)
        padded = queries.new_zeros(flat.num_rows, flat.most_new, heads.num_queries, heads.size)
        padded[self._rows, self._places] = queries[0]
        mixed = scaled_dot_product_attention(
            padded.transpose(1, 2),
            all_keys,
            all_values,
            self._masks[heads.kind],
            scale=heads.scale,
            enable_gqa=heads.num_queries != heads.num_keys,
        )
        return mixed.transpose(1, 2)[self._rows, self._places][None]
