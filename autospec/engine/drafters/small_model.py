"""Another causal language model with the same vocabulary drafts what it would write itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from autospec.engine.drafters.base import DraftPlan, Needs, Trail
from autospec.engine.drafters.running import RunningModel
from autospec.engine.growth import MODEL_SHAPES, Growing, grow
from autospec.engine.model import CausalLM
from autospec.engine.tree import TokenTree, empty_tree


class SmallModelDrafter:
    """Leviathan et al. (2211.17192): the draft model samples as the target would, filters included.

    Args:
        model: The draft model.
        vocab_size: Of the target; padded logits beyond it are cut, missing ones can never be drafted.
    """

    has_probs = True
    shapes = MODEL_SHAPES
    needs = Needs()

    def __init__(self, model: CausalLM, vocab_size: int) -> None:
        self.model, self.vocab_size = model, vocab_size
        self.source = model.name
        self.running = RunningModel(model)

    def start(self, prompt_ids: Sequence[int], plan: DraftPlan) -> None:
        self._plan = plan
        self.running.start(prompt_ids, plan.capacity, plan.config)

    def propose(self, max_length: int) -> TokenTree:
        self.commit(())  # forgets a draft that was never answered
        length = min(max_length, self.running.room)
        if length < 1:
            return empty_tree()
        return grow(self, self._plan.growth(len(self.running.text), length))

    def expand(self, tree: Growing, nodes: Sequence[int]) -> Tensor:
        """Return the logits behind nodes; see `Expander`."""
        logits = self.running.run_text() if nodes[0] == -1 else self.running.run_nodes(tree, nodes)
        return fit_vocabulary(logits.float(), self.vocab_size)

    def commit(self, token_ids: Sequence[int], trail: Trail | None = None) -> None:
        self.running.extend(token_ids)


def fit_vocabulary(logits: Tensor, vocab_size: int) -> Tensor:
    """Cut logits [n, m] of padded tokens, and give tokens that are missing no chance: [n, vocab_size]."""
    missing = vocab_size - logits.shape[-1]
    if missing > 0:
        return torch.nn.functional.pad(logits, (0, missing), value=-torch.inf)
    return logits[:, :vocab_size]
