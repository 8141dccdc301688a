"""Attention over slots named by tensors, whatever the text's length."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from autospec.engine.cache import States
from autospec.engine.lean.attention import Heads


class FixedAttention:
    """Writes keys and values at slots named by a tensor, and looks at so many slots whatever the text's length.

    Queries that share keys stand behind one another as if they were tokens of one head: fused attention that takes
    both a mask and fewer heads of keys than of queries is not to be had on every device.

    Args:
        keys: Of the cache.
        values: Of the cache.
        slots: [n] where new tokens go; of several rows [rows, n].
        masks: By kind of layer [rows, 1, n, reach].
        rows: [rows, n] to which row of the cache each token belongs; None: all of them to the only one.
    """

    def __init__(
        self, keys: States, values: States, slots: Tensor, masks: Mapping[str, Tensor], rows: Tensor | None = None
    ) -> None:
        self._keys, self._values, self._slots, self._masks, self._rows = keys, values, slots, masks, rows
        self._folded: dict[tuple[str, int], Tensor] = {}

    def mix(self, number: int, heads: Heads, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `Attending`."""
        num_rows, num_new, num_shared = *queries.shape[:2], heads.num_queries // heads.num_keys
        mask = self._mask(heads.kind, num_shared)
        by_keys = queries.view(num_rows, num_new, heads.num_keys, num_shared, heads.size).transpose(1, 2)
        mixed = scaled_dot_product_attention(
            by_keys.reshape(num_rows, heads.num_keys, num_new * num_shared, heads.size),
            self._written(self._keys[number], keys)[:num_rows, :, : mask.shape[-1]],
            self._written(self._values[number], values)[:num_rows, :, : mask.shape[-1]],
            mask,
            scale=heads.scale,
        )
        apart = mixed.view(num_rows, heads.num_keys, num_new, num_shared, heads.size).transpose(1, 2)
        return apart.reshape(num_rows, num_new, heads.num_queries, heads.size)

    def _written(self, cached: Tensor, states: Tensor) -> Tensor:
        """Write states [rows, n, heads, size] into [rows of the cache, heads, slots, size], and return that."""
        if self._rows is None:
            cached.index_copy_(2, self._slots, states.transpose(1, 2))
        else:
            cached.transpose(1, 2).index_put_((self._rows, self._slots), states)
        return cached

    def _mask(self, kind: str, num_shared: int) -> Tensor:
        """Return a mask with one row for each query that shares keys: [rows, 1, n * shared, reach]."""
        if num_shared == 1:
            return self._masks[kind]
        if (kind, num_shared) not in self._folded:
            self._folded[kind, num_shared] = self._masks[kind].repeat_interleave(num_shared, dim=2)
        return self._folded[kind, num_shared]
