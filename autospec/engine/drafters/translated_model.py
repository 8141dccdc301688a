"""A draft model with another vocabulary than its target: it drafts with the tokens that both have.

Token-level intersection (Timor et al., 2502.05202): rows are cut to the shared tokens and made to sum up to 1 again.
That is lossless, because verification is told the rows that tokens were drawn from.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor

from autospec.engine.drafters.base import DraftPlan, Needs, Trail
from autospec.engine.drafters.running import RunningModel
from autospec.engine.growth import MODEL_SHAPES, Growing, grow
from autospec.engine.model import CausalLM
from autospec.engine.text import TextCodec
from autospec.engine.tree import TokenTree, empty_tree
from autospec.engine.vocabulary import MIN_OVERLAP, Retokenizer, SharedTokens, shared_tokens
from autospec.errors import ModelError


class TranslatedModelDrafter:
    """Reads the whole committed text in its own tokens, and drafts in the target's.

    Args:
        model: The draft model.
        codec: Its tokenizer.
        target: The target.
        target_codec: The target's tokenizer.

    Raises:
        ModelError: Fewer than `MIN_OVERLAP` of the tokens are shared, or a tokenizer is of an unknown kind.
    """

    has_probs = True
    shapes = MODEL_SHAPES
    needs = Needs()

    def __init__(self, model: CausalLM, codec: TextCodec, target: CausalLM, target_codec: TextCodec) -> None:
        self.model, self.vocab_size, self.source = model, target.vocab_size, model.name
        self.retokenizer = Retokenizer(target_codec, codec)
        self.shared = self._usable(target)
        if self.shared.overlap < MIN_OVERLAP:
            raise ModelError(
                f"at least {MIN_OVERLAP:.0%} of the smaller vocabulary must be shared with the target, but "
                f"`{model.name}` shares {self.shared.overlap:.1%}, {len(self.shared.target_ids)} tokens, "
                f"with `{target.name}`"
            )
        self._draft_ids = dict(zip(self.shared.target_ids.tolist(), self.shared.draft_ids.tolist(), strict=True))
        self.running = RunningModel(model)
        self._target_text: list[int] = []

    def _usable(self, target: CausalLM) -> SharedTokens:
        """Return the shared tokens that both models have logits for."""
        shared = shared_tokens(self.retokenizer.target_pieces, self.retokenizer.draft_pieces)
        kept = (shared.target_ids < target.vocab_size) & (shared.draft_ids < self.model.vocab_size)
        return SharedTokens(shared.target_ids[kept], shared.draft_ids[kept], shared.overlap)

    def fork(self, num_rows: int) -> list[TranslatedModelDrafter]:
        """Return drafters with texts of their own; see `Forks`."""
        forked = [copy(self) for _ in range(num_rows)]
        for one in forked:
            one.running = RunningModel(self.model)
        return forked

    def start(self, prompt_ids: Sequence[int], plan: DraftPlan) -> None:
        self._plan = plan
        self._target_text = list(prompt_ids)
        text = self.retokenizer.encode(prompt_ids)
        # The output will be about as many tokens as the target's; where that is too few, `_follow` makes room.
        self._begin(text, len(text) + 2 * (plan.capacity - len(prompt_ids)))

    def propose(self, max_length: int) -> TokenTree:
        self._follow(max_length)
        length = min(max_length, self.running.room)
        if length < 1 or not self.running.text:
            return empty_tree()
        return grow(self, self._plan.growth(len(self._target_text), length))

    def expand(self, tree: Growing, nodes: Sequence[int]) -> Tensor:
        """Return the logits behind nodes, in the target's vocabulary; see `Expander`."""
        if nodes[0] == -1:
            logits = self.running.run_text()
        else:
            own = Growing([self._draft_ids[token_id] for token_id in tree.token_ids], tree.parents)
            logits = self.running.run_nodes(own, nodes)
        fitted = torch.full((len(nodes), self.vocab_size), -torch.inf, device=logits.device)
        fitted[:, self.shared.target_ids.to(logits.device)] = logits[
            :, self.shared.draft_ids.to(logits.device)
        ].float()
        return fitted

    def commit(self, token_ids: Sequence[int], trail: Trail | None = None) -> None:
        self._target_text.extend(token_ids)

    def _begin(self, text: Sequence[int], capacity: int) -> None:
        self._capacity = capacity
        self.running.start(text, capacity, self._plan.config)

    def _follow(self, max_length: int) -> None:
        """Read the committed text again; only what stands behind the longest common beginning is run again."""
        text = self.retokenizer.encode(self._target_text)
        if len(text) + max_length > self._capacity:
            self._begin(text, 2 * (len(text) + max_length))
        else:
            self.running.replace(text)
