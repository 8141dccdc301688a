"""Asks any drafter for its drafts behind every position of a recorded text, through the protocol all drafters have.

The target runs the text once; the drafter is told of it token by token and sees the cache that it would see.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from autospec.config import MAX_DRAFT_LENGTH, SamplingParams, SpecConfig
from autospec.engine.cache import KVCache
from autospec.engine.drafters import Drafter, DraftPlan, Needs, Trail
from autospec.engine.model import CausalLM
from autospec.engine.termination import Stopping


class LiveText:
    """One text, run through the target.

    Args:
        target: The target.
        text: Prompt and output.
        num_prompt: Tokens of the prompt.
        needs: What is to be told of the target.
    """

    def __init__(self, target: CausalLM, text: Sequence[int], num_prompt: int, needs: Needs) -> None:
        self._text, self._num_prompt, self._needs = list(text), num_prompt, needs
        self._cache, input_ids = KVCache(len(text)), torch.tensor([self._text])
        if layers := needs.hidden_layers:
            logits, hidden = target.forward_with_hidden(input_ids, self._cache, layers)
            self._hidden = hidden[0]
        else:
            logits = target.forward(input_ids, self._cache)
        self._logits = logits[0]

    def walk(self, drafter: Drafter, config: SpecConfig, sampling: SamplingParams, seed: int) -> Iterator[int]:
        """Bring a drafter behind one token of the output after the other; yield how many of them it knows."""
        prompt, output = self._text[: self._num_prompt], self._text[self._num_prompt :]
        room = len(self._text) + MAX_DRAFT_LENGTH
        cache = KVCache(room + max(config.tree_nodes, len(config.tree_paths)) + self._needs.target_slots(config))
        plan = DraftPlan(config, sampling, seed, room, Stopping(config), cache)
        drafter.start(prompt, plan)
        for place in range(len(output) - 1):
            known = self._num_prompt + place
            told = 0 if place == 0 else known - 1
            self._copy(cache, told, known)
            drafter.commit(output[place : place + 1], self._trail(told, known))
            yield place + 1

    @torch.inference_mode()  # the tensors were made in it
    def _copy(self, cache: KVCache, start: int, end: int) -> None:
        """Give the drafter's view of the target's cache some more tokens; what it wrote behind them is lost."""
        for own, whole in ((cache.keys, self._cache.keys), (cache.values, self._cache.values)):
            for layer, states in whole.items():
                if layer not in own:
                    own[layer] = states.new_zeros(*states.shape[:2], cache.capacity, states.shape[3])
                own[layer][:, :, start:end] = states[:, :, start:end]
        cache.lengths = [end]

    def _trail(self, start: int, end: int) -> Trail | None:
        if not self._needs.anything:
            return None
        logits = self._logits[start:end] if self._needs.logits else None
        return Trail(start, logits, self._hidden[start:end] if self._needs.hidden_layers else None)
