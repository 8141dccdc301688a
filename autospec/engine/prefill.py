"""The prompt through the target, piece by piece."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from autospec.engine.cache import KVCache
from autospec.engine.drafters.base import Needs
from autospec.engine.model import CausalLM

PIECE = 1024  # tokens that are run at once: what stands between layers is no larger, whatever the prompt's length


def run_prompt(
    target: CausalLM, prompt_ids: Sequence[int], cache: KVCache, needs: Needs
) -> tuple[Tensor, Tensor | None]:
    """Run a prompt into an empty cache.

    Args:
        target: The model.
        prompt_ids: At least one.
        cache: Of one row.
        needs: What a drafter must be told of it.

    Returns:
        Logits [1, vocab] of the last token, or [n, vocab] of all where they are needed; hidden states
        [n, width * layers] where some are.
    """
    num_logits = 0 if needs.logits else 1  # those of a whole prompt would be large
    logits, hidden = list[Tensor](), list[Tensor]()
    for start in range(0, len(prompt_ids), PIECE):
        piece = torch.tensor([prompt_ids[start : start + PIECE]])
        if needs.hidden_layers:
            own, states = target.forward_with_hidden(piece, cache, needs.hidden_layers, num_logits=num_logits)
            hidden.append(states[0])
        else:
            own = target.forward(piece, cache, num_logits=num_logits)
        logits = [*logits, own[0]] if needs.logits else [own[0]]
    return torch.cat(logits), torch.cat(hidden) if hidden else None
