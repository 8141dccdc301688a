"""Another causal language model with the same vocabulary drafts what it would write itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from autospec.engine.cache import KVCache
from autospec.engine.drafters.base import DraftPlan, Needs, Question, Trail
from autospec.engine.drafters.running import RunningModel
from autospec.engine.growth import MODEL_SHAPES, Growing, Growth, grow
from autospec.engine.model import CausalLM
from autospec.engine.tree import TokenTree, empty_tree


class SmallModelDrafter:
    """Leviathan et al. (2211.17192): the draft model samples as the target would, filters included.

    Args:
        model: The draft model.
        vocab_size: Of the target; padded logits beyond it are cut, missing ones can never be drafted.
        cache: Of the draft model; see `RunningModel`.
    """

    has_probs = True
    shapes = MODEL_SHAPES
    needs = Needs()

    def __init__(self, model: CausalLM, vocab_size: int, cache: KVCache | None = None) -> None:
        self.model, self.vocab_size = model, vocab_size
        self.source = model.name
        self.running = RunningModel(model, cache)

    def start(self, prompt_ids: Sequence[int], plan: DraftPlan) -> None:
        self._plan = plan
        self.running.start(prompt_ids, plan.capacity, plan.config)

    def fork(self, num_rows: int) -> list[SmallModelDrafter]:
        """Return drafters that share one cache; see `Forks`."""
        cache = self.model.new_cache(0, num_rows)
        return [SmallModelDrafter(self.model, self.vocab_size, cache.row(row)) for row in range(num_rows)]

    def propose(self, max_length: int) -> TokenTree:
        how = self.begin(max_length)
        if how is None:
            return empty_tree()
        launched = self.running.run_chain(how, self.vocab_size)
        return grow(self, how) if launched is None else launched

    @property
    def shared(self) -> tuple[object, ...]:
        """Model and cache; see `DraftsTogether`."""
        return self.model, self.running.cache.whole

    def begin(self, max_length: int) -> Growth | None:
        """Return how to grow; see `DraftsTogether`."""
        self.commit(())  # forgets a draft that was never answered
        length = min(max_length, self.running.room)
        return None if length < 1 else self._plan.growth(len(self.running.text), length)

    @classmethod
    def expand_all(cls, questions: Sequence[Question[SmallModelDrafter]]) -> list[Tensor]:
        """Run the model once for all of them; see `DraftsTogether`."""
        running = questions[0].drafter.running
        asked = [one.drafter.running.ask(one.tree, one.nodes) for one in questions]
        answers = running.model.forward_rows(asked, running.cache.whole)
        return [one.drafter._read(logits) for one, (logits, _) in zip(questions, answers, strict=True)]

    def end(self) -> None:
        """Leave the draft where it is, its nodes may become text; see `DraftsTogether`."""

    def expand(self, tree: Growing, nodes: Sequence[int]) -> Tensor:
        """Return the logits behind nodes; see `Expander`."""
        return self._read(self.running.run_text() if nodes[0] == -1 else self.running.run_nodes(tree, nodes))

    def commit(self, token_ids: Sequence[int], trail: Trail | None = None) -> None:
        self.running.extend(token_ids)

    def _read(self, logits: Tensor) -> Tensor:
        return fit_vocabulary(logits.float(), self.vocab_size)


def fit_vocabulary(logits: Tensor, vocab_size: int) -> Tensor:
    """Cut logits [n, m] of padded tokens, and give tokens that are missing no chance: [n, vocab_size]."""
    missing = vocab_size - logits.shape[-1]
    if missing > 0:
        return torch.nn.functional.pad(logits, (0, missing), value=-torch.inf)
    return logits[:, :vocab_size]
