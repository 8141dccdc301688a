"""Preallocated KV cache: append, keep an accepted path, crop.

Duck-typed to what transformers asks of a cache; rows may have different lengths. Knows nothing of tokens or trees
beyond the slots their keys and values occupy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from autospec.errors import ModelError

if TYPE_CHECKING:
    from autospec.engine.rows import FlatRows

# By layer: [rows, heads, capacity, head_dim].
States = dict[int, Tensor]


class KVCache:
    """Keys and values of `batch_size` rows with room for `capacity` tokens each.

    A forward of n tokens writes slots `lengths[row] .. lengths[row] + n - 1` of every layer; `advance` then makes
    them part of the cache, and `keep` or `crop` takes back what was not accepted.

    Args:
        capacity: Tokens of each row.
        batch_size: Rows.
    """

    is_compileable = False  # transformers asks: True would make it build masks over the whole capacity

    def __init__(self, capacity: int, batch_size: int = 1) -> None:
        self.capacity = capacity
        self.lengths: list[int] = [0] * batch_size
        self.keys: States = {}
        self.values: States = {}

    @property
    def length(self) -> int:
        """Length of the longest row."""
        return max(self.lengths)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new tokens of one layer and return all keys and values up to the last one written.

        Args:
            key_states: [batch, heads, n, head_dim].
            value_states: [batch, heads, n, head_dim]; its head_dim may differ from the keys'.
            layer_idx: Which layer asks.

        Raises:
            ModelError: The cache is full.
        """
        num_new = key_states.shape[2]
        end = self.length + num_new
        self.check_room(end)
        keys, values = self.of_layer(layer_idx, key_states, value_states)
        if min(self.lengths) == self.length:
            keys[:, :, end - num_new : end] = key_states
            values[:, :, end - num_new : end] = value_states
        else:
            for row, length in enumerate(self.lengths):
                keys[row, :, length : length + num_new] = key_states[row]
                values[row, :, length : length + num_new] = value_states[row]
        return keys[:, :, :end], values[:, :, :end]

    def write_rows(
        self, flat: FlatRows, key_states: Tensor, value_states: Tensor, layer_idx: int
    ) -> tuple[Tensor, Tensor]:
        """Write the new tokens of several rows in one layer; see `update`.

        Args:
            flat: Which tokens of which rows.
            key_states: [tokens, heads, head_dim].
            value_states: Likewise.
            layer_idx: Which layer asks.

        Returns:
            Keys and values [rows, heads, longest, head_dim] of the rows up to the last that asks.

        Raises:
            ModelError: The cache is full.
        """
        self.check_room(flat.longest)
        keys, values = self.of_layer(layer_idx, key_states[None].transpose(1, 2), value_states[None].transpose(1, 2))
        rows, slots = flat.rows.to(keys.device), flat.slots.to(keys.device)
        keys[rows, :, slots] = key_states
        values[rows, :, slots] = value_states
        return keys[: flat.num_rows, :, : flat.longest], values[: flat.num_rows, :, : flat.longest]

    def check_room(self, num_tokens: int) -> None:
        """Refuse more tokens of a row than it has slots.

        Raises:
            ModelError: It has fewer.
        """
        if num_tokens > self.capacity:
            raise ModelError(f"a cache of {self.capacity} tokens cannot hold {num_tokens}")

    def of_layer(self, layer_idx: int, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        """Return the whole memory of one layer, keys and values [rows, heads, capacity, head_dim].

        Args:
            layer_idx: Which layer.
            key_states: New ones [batch, heads, n, head_dim], which say what a layer is like that has no memory yet.
            value_states: Likewise.
        """
        if layer_idx not in self.keys:
            self.keys[layer_idx] = self._allocate(key_states)
            self.values[layer_idx] = self._allocate(value_states)
        return self.keys[layer_idx], self.values[layer_idx]

    def _allocate(self, states: Tensor) -> Tensor:
        _, heads, _, head_dim = states.shape
        size = (len(self.lengths), heads, self.capacity, head_dim)
        return torch.zeros(size, dtype=states.dtype, device=states.device)

    @torch.inference_mode()  # the tensors were made in it
    def reserve(self, capacity: int) -> None:
        """Make room for at least so many tokens in every row; what is cached stays."""
        if capacity <= self.capacity:
            return
        for store in (self.keys, self.values):
            for layer, old in store.items():
                store[layer] = torch.nn.functional.pad(old, (0, 0, 0, capacity - self.capacity))
        self.capacity = capacity

    def row(self, row: int) -> KVCache:
        """Return one row as a cache of its own, in the same memory."""
        return _Row(self, row)

    @property
    def whole(self) -> KVCache:
        """The cache that this is a row of; itself where it is none."""
        return self

    @property
    def place(self) -> int:
        """Which row of the whole cache its row 0 is."""
        return 0

    def advance(self, num_tokens: int) -> None:
        """Count the tokens that the last forward wrote to every row."""
        self.lengths = [length + num_tokens for length in self.lengths]

    def crop(self, row: int, length: int) -> None:
        """Forget everything behind the first `length` tokens of a row."""
        assert 0 <= length <= self.lengths[row], (length, self.lengths[row])
        self.lengths[row] = length

    @torch.inference_mode()  # the tensors were made in it
    def wipe(self, row: int) -> None:
        """Make a row as empty as new: what a text left behind could be no number."""
        self.crop(row, 0)
        for states in (*self.keys.values(), *self.values.values()):
            states[row].zero_()

    @torch.inference_mode()  # the tensors were made in it
    def keep(self, row: int, start: int, path: Sequence[int]) -> None:
        """Compact a verified tree to its accepted path.

        Keys were rotated by depth when they were written, so moving them is enough (SpecInfer, 2305.09781).

        Args:
            row: Which row.
            start: Slot of the tree's root.
            path: Accepted nodes in order of depth, counted from the root, which is 0 and always kept.
        """
        assert path[0] == 0, path
        assert list(path) == sorted(set(path)), path
        if path[-1] != len(path) - 1:
            moved = torch.tensor([start + node for node in path])
            for store in (self.keys, self.values):
                for tensor in store.values():
                    kept = tensor[row].index_select(1, moved.to(tensor.device))
                    tensor[row, :, start : start + len(path)] = kept
        self.crop(row, start + len(path))

    # What transformers asks of a cache besides `update`.
    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of cached tokens (of the longest row)."""
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Return length and offset of the keys that a forward of `query_length` tokens will see."""
        return self.length + query_length, 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Return the position of the next token."""
        return self.length


class _Row(KVCache):
    """One row of a cache of several; its row is 0."""

    def __init__(self, whole: KVCache, row: int) -> None:
        self._whole, self._place = whole, row

    @property
    def whole(self) -> KVCache:
        return self._whole

    @property
    def place(self) -> int:
        return self._place

    @property
    def capacity(self) -> int:  # type: ignore[override]
        return self._whole.capacity

    @property
    def lengths(self) -> list[int]:
        return [self._whole.lengths[self._place]]

    @lengths.setter
    def lengths(self, lengths: list[int]) -> None:
        (self._whole.lengths[self._place],) = lengths

    @property
    def keys(self) -> dict[int, Tensor]:  # type: ignore[override]
        return {layer: tensor[self._place : self._place + 1] for layer, tensor in self._whole.keys.items()}

    @property
    def values(self) -> dict[int, Tensor]:  # type: ignore[override]
        return {layer: tensor[self._place : self._place + 1] for layer, tensor in self._whole.values.items()}

    def crop(self, row: int, length: int) -> None:
        assert row == 0, row
        self._whole.crop(self._place, length)

    def reserve(self, capacity: int) -> None:
        self._whole.reserve(capacity)

    def of_layer(self, layer_idx: int, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self._whole.of_layer(layer_idx, key_states, value_states)
        return keys[self._place : self._place + 1], values[self._place : self._place + 1]
