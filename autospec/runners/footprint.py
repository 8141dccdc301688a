"""What a configuration would take in memory where only its own models are loaded, counted from their tensors.

What a device or a process holds says little of one configuration: every drafter of a decoder is loaded whichever is
measured, and on a CPU the interpreter counts too. Not counted are the intermediate results of forwards, and what
drafters keep outside of tensors: suffix trees, n-gram tables, files that are mapped into memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from autospec.config import SpecConfig
from autospec.engine.cache import KVCache
from autospec.engine.draft_checks import num_branches
from autospec.profiling.memory import cache_bytes, held_bytes, weight_bytes

if TYPE_CHECKING:
    from autospec.engine.decoder import SpeculativeDecoder


class Footprint:
    """Counts bytes.

    Args:
        decoder: The models.
    """

    def __init__(self, decoder: SpeculativeDecoder) -> None:
        self._decoder = decoder
        self._fixed: tuple[int, int] | None = None

    def of(self, config: SpecConfig, num_tokens: int) -> int:
        """Return the bytes of target, drafters and caches, right after a call under a configuration.

        Args:
            config: That of the last call, or one that drafts nothing.
            num_tokens: Of prompt and output together, for which the target's cache has room.
        """
        target = self._decoder.target
        drafters = [self._decoder.drafters[name] for name in config.drafter_names]
        room = max([num_branches(config), *(one.needs.target_slots(config) for one in drafters)])
        weights, per_token = self._of_target()
        return weights + per_token * (num_tokens + room) + held_bytes(drafters, target)

    def _of_target(self) -> tuple[int, int]:
        """Return the bytes of its weights, and of one token in its cache, which one forward tells."""
        if self._fixed is None:
            target, cache = self._decoder.target, KVCache(1)
            target.forward(torch.tensor([[0]]), cache, num_logits=1)
            self._fixed = (weight_bytes(target), cache_bytes(cache))
        return self._fixed
