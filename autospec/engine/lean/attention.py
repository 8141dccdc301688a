"""How new tokens attend to what a cache holds: rows of one length, or several rows of any length, flattened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from autospec.engine.cache import KVCache
from autospec.engine.lean.causal import attend_causally, pays
from autospec.engine.masks import NewTokens, Windows, sights
from autospec.engine.rows import FlatRows

# Bytes of keys and values of one layer that are read while one more call is made: on a CPU, and on a GPU.
_CALL_BYTES = (320 << 10, 16 << 20)


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
        queries = queries.transpose(1, 2)
        all_keys, all_values = self._cache.update(keys.transpose(1, 2), values.transpose(1, 2), number)
        if sight.is_causal and len(queries) == 1 and pays(queries):
            return attend_causally(queries, all_keys, all_values, heads.scale)
        mixed = scaled_dot_product_attention(
            queries,
            all_keys,
            all_values,
            sight.mask,
            is_causal=sight.is_causal,
            scale=heads.scale,
            enable_gqa=heads.num_queries != heads.num_keys,
        )
        return mixed.transpose(1, 2)


class Padded:
    """Tokens of several rows of a cache, one behind the other: [1, tokens]; all rows attend at once.

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


class RowByRow:
    """The same, but each row attends by itself and reads no more keys than it has.

    Args:
        cache: As for `Padded`, like the rest.
        flat: The tokens.
        windows: Of the model's kinds of layers.
        like: A weight, whose device and format masks get.
    """

    def __init__(self, cache: KVCache, flat: FlatRows, windows: Windows, like: Tensor) -> None:
        self._cache, self._flat = cache, flat
        self._sizes = [len(one.token_ids) for one in flat.asked]
        self._sights = [sights(new, windows, like.dtype, like.device) for new in flat.by_row()]

    def mix(self, number: int, heads: Heads, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `Attending`."""
        all_keys, all_values = self._cache.write_rows(self._flat, keys[0], values[0], number)
        keys_of, values_of = all_keys.split(1), all_values.split(1)
        by_row = zip(
            self._flat.asked, self._flat.ends, self._sights, queries.transpose(1, 2).split(self._sizes, 2), strict=True
        )
        mixed = [
            scaled_dot_product_attention(
                own,
                keys_of[one.row].narrow(2, 0, end),
                values_of[one.row].narrow(2, 0, end),
                sight[heads.kind].mask,
                is_causal=sight[heads.kind].is_causal,
                scale=heads.scale,
                enable_gqa=heads.num_queries != heads.num_keys,
            )
            for one, end, sight, own in by_row
        ]
        return torch.cat(mixed, dim=2).transpose(1, 2)


def attending_rows(cache: KVCache, flat: FlatRows, windows: Windows, like: Tensor, heads: Heads) -> Attending:
    """Return what costs less: reading keys and values that stand for no token, or a call for each row.

    Args:
        cache: Of all rows.
        flat: The tokens.
        windows: Of the model's kinds of layers.
        like: A weight.
        heads: Of a layer.
    """
    bytes_per_token = 2 * heads.num_keys * heads.size * like.itemsize
    wasted = (flat.num_rows * flat.longest - sum(flat.ends)) * bytes_per_token
    kind = RowByRow if wasted > len(flat.asked) * _CALL_BYTES[like.device.type != "cpu"] else Padded
    return kind(cache, flat, windows, like)
