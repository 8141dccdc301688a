"""Another causal language model with the same vocabulary drafts a chain, one token after another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from autospec.engine.cache import KVCache
from autospec.engine.drafters.base import DraftPlan
from autospec.engine.model import CausalLM
from autospec.engine.sampling import Use, pick, to_probs, uniforms
from autospec.engine.termination import stops_by_confidence
from autospec.engine.tree import TokenTree, chain, empty_tree


class SmallModelDrafter:
    """Leviathan et al. (2211.17192): the draft model samples as the target would, filters included.

    Args:
        model: The draft model.
        vocab_size: Of the target; padded logits beyond it are cut, missing ones can never be drafted.
    """

    has_probs = True

    def __init__(self, model: CausalLM, vocab_size: int) -> None:
        self.model, self.vocab_size = model, vocab_size
        self.source = model.name
        self._context: list[int] = []
        self._cached: list[int] = []

    def start(self, prompt_ids: Sequence[int], plan: DraftPlan) -> None:
        self._plan = plan
        self._context, self._cached = list(prompt_ids), []
        self._cache = KVCache(min(plan.capacity, self.model.usable_length))

    def propose(self, max_length: int) -> TokenTree:
        self.commit(())  # forgets a draft that was never answered
        # The last token of a draft is never fed, so a draft may reach one token beyond the cache.
        length = min(max_length, self._cache.capacity - len(self._context) + 1)
        if length < 1:
            return empty_tree()
        return self._greedy(length) if self._plan.sampling.is_greedy else self._sampled(length)

    def commit(self, token_ids: Sequence[int]) -> None:
        known = len(self._context)
        self._context.extend(token_ids)
        while known < len(self._cached) and known < len(self._context) and self._cached[known] == self._context[known]:
            known += 1
        # The newest token is always fed again, because its logits are what the next draft begins with.
        del self._cached[min(known, len(self._context) - 1) :]
        self._cache.crop(0, len(self._cached))

    def _greedy(self, length: int) -> TokenTree:
        drafted: list[int] = []
        config = self._plan.config
        for _ in range(length):
            logits = self._next_logits(drafted)
            drafted.append(int(logits.argmax()))
            if config.stop_rule == "confidence":
                confidence = float(logits.softmax(dim=-1)[drafted[-1]])
                if stops_by_confidence(confidence, config.stop_threshold):
                    break
        return chain(torch.tensor(drafted))

    def _sampled(self, length: int) -> TokenTree:
        drafted: list[int] = []
        rows: list[Tensor] = []
        plan, start = self._plan, len(self._context)
        numbers = uniforms(plan.seed, range(start, start + length), Use.DRAFT, range(length))
        for depth in range(length):
            rows.append(to_probs(self._next_logits(drafted), plan.sampling))
            drafted.append(int(pick(rows[-1], numbers[depth])))
            if plan.config.stop_rule == "confidence":
                confidence = float(rows[-1][drafted[-1]])
                if stops_by_confidence(confidence, plan.config.stop_threshold):
                    break
        return chain(torch.tensor(drafted), torch.stack(rows))

    def _next_logits(self, drafted: list[int]) -> Tensor:
        """Feed whatever of the text and the draft is not cached yet; return the logits behind it: [vocab]."""
        fresh = self._context[len(self._cached) :] + drafted if not drafted else drafted[-1:]
        logits = self.model.forward(torch.tensor([fresh]), self._cache, num_logits=1)[0, -1].float()
        self._cached.extend(fresh)
        missing = self.vocab_size - logits.shape[0]
        if missing > 0:
            return torch.nn.functional.pad(logits, (0, missing), value=-torch.inf)
        return logits[: self.vocab_size]
