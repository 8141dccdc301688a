"""What runs tokens through a model: transformers' own forward, or a lean one where that is proven the same."""

from __future__ import annotations

import inspect
from typing import Any, Protocol

import torch
from torch import Tensor

from autospec.engine.cache import KVCache
from autospec.engine.masks import NewTokens, Windows, attention_mask
from autospec.engine.rows import FlatRows


class Forward(Protocol):
    """Runs new tokens behind those cached and writes their keys and values; does not advance the cache."""

    def run(
        self, input_ids: Tensor, new: NewTokens, cache: KVCache, num_logits: int, wants_hidden: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run them.

        Args:
            input_ids: [rows, n].
            new: Where they stand.
            cache: Written to.
            num_logits: Compute logits of the last so many tokens only; 0 is all.
            wants_hidden: Return hidden states too.

        Returns:
            Logits [rows, num_logits or n, vocab], and hidden states [rows, n, width] of the embeddings, of each layer,
            the last of them normalised; none where they are not wanted.
        """
        ...

    def run_rows(self, flat: FlatRows, cache: KVCache, wants_hidden: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run new tokens of several rows, laid one behind the other: [1, tokens] stands for [rows, n].

        Args:
            flat: The tokens, and of which of them logits are wanted.
            cache: Of all rows; written to.
            wants_hidden: Return hidden states too.
        """
        ...

    def head(self, hidden: Tensor) -> Tensor:
        """Return the logits [..., vocab] of normalised last hidden states [..., width]."""
        ...


class TransformersForward:
    """Any model, by its own forward.

    Args:
        model: Of transformers.
        windows: Of its kinds of layers.
    """

    def __init__(self, model: Any, windows: Windows) -> None:
        self._model, self._windows = model, windows
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._cache_name = cache_argument(model)

    def run(
        self, input_ids: Tensor, new: NewTokens, cache: KVCache, num_logits: int, wants_hidden: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run tokens; see `Forward`."""
        device: torch.device = self._model.device
        options: dict[str, Any] = {"logits_to_keep": num_logits} if self._keeps_logits else {}
        if wants_hidden:
            options["output_hidden_states"] = True
        output = self._model(
            input_ids=input_ids.to(device),
            attention_mask=attention_mask(new, self._windows, self._model.dtype, device),
            position_ids=new.positions.to(device),
            use_cache=True,
            **{self._cache_name: cache},
            **options,
        )
        logits: Tensor = output.logits[:, -num_logits:]  # all of them where it is 0
        return logits, tuple(output.hidden_states) if wants_hidden else ()

    def run_rows(self, flat: FlatRows, cache: KVCache, wants_hidden: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run tokens row by row, because nothing is known of how such a model takes rows of several lengths."""
        results = []
        for one in flat.asked:
            own, ids = cache.row(one.row), torch.tensor([list(one.token_ids)])
            new = NewTokens(own.lengths, ids.shape[1], one.tree_mask, one.depths)
            results.append(self.run(ids, new, own, one.num_logits, wants_hidden))
        logits = torch.cat([logits for logits, _ in results], dim=1)
        by_layer = zip(*(hidden for _, hidden in results), strict=True)
        return logits, tuple(torch.cat(states, dim=1) for states in by_layer)

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits; see `Forward`."""
        logits: Tensor = self._model.get_output_embeddings()(hidden)
        return logits


def cache_argument(model: Any) -> str:
    """Return under which name a forward takes its KV cache: transformers 5.24 renamed `past_key_values`."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
