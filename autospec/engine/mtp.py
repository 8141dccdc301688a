"""The multi-token module that a checkpoint was published with, in transformers' own form: features and tokens in.

The layout is that of DeepSeek-V3 (2412.19437) and GLM-4.5: behind the decoder layers one more, `model.layers.{n}.*`,
with `enorm`, `hnorm`, `eh_proj`, a decoder layer of the model's own kind, and `shared_head.norm`; embeddings and head
are those of the model, and copies of them are not read. Transformers leaves it out when it loads the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from autospec.engine.cache import KVCache
from autospec.engine.masks import NewTokens, attention_mask, layer_windows
from autospec.engine.model import CausalLM
from autospec.engine.probing import first_line
from autospec.engine.rows import FlatRows, RowTokens
from autospec.errors import ModelError


class MtpModule:
    """One module, used again for every further token, on what it expected itself.

    Args:
        target: Loaded from a folder or a hub, where the module is looked for.

    Raises:
        ModelError: The target has no such module, or several, or it lies in another layout.
    """

    feature_layers = (-1,)

    def __init__(self, target: CausalLM) -> None:
        config: Any = target.model.config.get_text_config()
        number = getattr(config, "num_mtp_layers", 0) or 0
        if number != 1:
            raise ModelError(f"`mtp` needs a target with one multi-token module, but `{target.name}` names {number}")
        self._target, self._module = target, _load(target)
        if set(layer_windows(self._module.config, target.name)) != {"full_attention"}:
            raise ModelError(
                f"a multi-token module must have full attention, but that of `{target.name}` has a window"
            )

    def fuse(self, features: Tensor) -> Tensor:
        """Return the target's features [n, width] as they are."""
        return features

    @torch.inference_mode()
    def forward(
        self,
        token_ids: Tensor,
        hidden: Tensor,
        cache: KVCache,
        tree_mask: Tensor | None = None,
        depths: Sequence[int] | None = None,
    ) -> Tensor:
        """Run pairs of a feature and the token behind it; see `EagleModel.forward`."""
        num_new = len(hidden)
        causal = torch.ones(num_new, num_new, dtype=torch.bool).tril() if tree_mask is None else tree_mask
        new = NewTokens(cache.lengths, num_new, causal, depths)
        mask = attention_mask(new, {"full_attention": None}, hidden.dtype, hidden.device)
        expected = self._through(token_ids, hidden, new.positions, mask, cache)
        cache.advance(num_new)
        return expected

    @torch.inference_mode()
    def forward_rows(self, asked: Sequence[RowTokens], hidden: Tensor, cache: KVCache) -> Tensor:
        """Run pairs of several rows at once; see `EagleModel.forward_rows`.

        The layer is transformers', of whatever kind: it is shown one long text, of which each pair sees its own row.
        """
        flat = FlatRows(cache.lengths, asked)
        mask = _own_rows(flat, hidden.dtype).to(hidden.device)
        expected = self._through(flat.token_ids, hidden, flat.positions[None], mask, _OneText(cache, flat))
        for one in asked:
            cache.lengths[one.row] += len(one.token_ids)
        return expected

    def _through(
        self, token_ids: Tensor, hidden: Tensor, positions: Tensor, mask: Any, cache: KVCache | _OneText
    ) -> Tensor:
        embedded, positions = self._target.embed(token_ids)[None], positions.to(hidden.device)
        states: Tensor = self._module.layers[0](
            embedded,
            hidden[None],
            position_embeddings=self._module.rotary_emb(embedded, position_ids=positions),
            attention_mask=mask,
            position_ids=positions,
            cache=cache,
        )
        return states[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """Return what its outputs [n, width] say of the next token: [n, vocab] float32."""
        return self._target.head(hidden).float()


class _OneText:
    """What transformers asks of a cache: all rows of one, one behind the other.

    Args:
        cache: Of all rows.
        flat: The new tokens.
    """

    def __init__(self, cache: KVCache, flat: FlatRows) -> None:
        self._cache, self._flat = cache, flat

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write new keys and values [1, heads, tokens, head_dim]; return all: [1, heads, rows * longest, head_dim]."""
        new_keys, new_values = key_states[0].transpose(0, 1), value_states[0].transpose(0, 1)
        keys, values = self._cache.write_rows(self._flat, new_keys, new_values, layer_idx)
        return keys.transpose(0, 1).flatten(1, 2)[None], values.transpose(0, 1).flatten(1, 2)[None]


def _own_rows(flat: FlatRows, dtype: torch.dtype) -> Tensor:
    """Return the mask of one long text in which each token sees its own row: [1, 1, tokens, rows * longest]."""
    own = flat.mask(None, dtype)[flat.rows, 0, flat.places]
    mask = own.new_full((len(own), flat.num_rows, flat.longest), torch.finfo(dtype).min)
    mask[torch.arange(len(own)), flat.rows] = own
    return mask.flatten(1)[None, None]


def _load(target: CausalLM) -> Any:
    try:
        from transformers.modeling_layers import MtpModel
    except ImportError as error:
        raise ModelError("`mtp` needs a transformers that knows multi-token modules: 5.24 or newer") from error

    # Transformers looks for what this says is left out, and knows that of the published depths only.
    depth = target.model.config.get_text_config().num_hidden_layers
    target.model._keys_to_ignore_on_load_unexpected = [rf"^(model\.)?layers\.{depth}\."]
    try:
        module = MtpModel.from_pretrained(target.model, device_map={"": target.device})
    except Exception as error:  # transformers and safetensors raise what they like
        raise ModelError(
            f"the checkpoint of `{target.name}` must hold a multi-token module behind its layers, in the layout of "
            f"DeepSeek-V3 and GLM-4.5, but it cannot be read: {first_line(error)}"
        ) from error
    module.to(target.dtype)  # type: ignore[arg-type]  # their decorator of `to` hides its signature
    return module.eval()
