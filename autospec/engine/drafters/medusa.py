"""Medusa heads (2401.10774): each looks at the target's last hidden state and guesses one token further ahead.

The layout is that of the authors' code (FasterDecoding/Medusa, medusa_model_legacy.py), which others
read too: `medusa_lm_head.pt` or `.safetensors` with `{head}.{layer}.linear.weight|bias` for the residual blocks
h + SiLU(W h + b), and, in checkpoints of the first kind, `{head}.{layers}.weight` for a head of its own over the
vocabulary; where there is none, the target's is used. `config.json` tells `medusa_num_heads` and `medusa_num_layers`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from autospec.engine.drafters.base import DraftPlan, ForkedByCopy, Needs, Question, Trail
from autospec.engine.drafters.checkpoint import HeadCheckpoint, read_checkpoint
from autospec.engine.growth import MODEL_SHAPES, Growing, Growth, grow
from autospec.engine.model import CausalLM
from autospec.engine.tree import TokenTree, empty_tree

WEIGHT_FILES = ("medusa_lm_head.safetensors", "medusa_lm_head.pt", "model.safetensors", "pytorch_model.bin")


class MedusaHeads:
    """The heads.

    Args:
        checkpoint: In the published layout.
        target: Gives the width, the vocabulary, and the language-model head where a head has none of its own.

    Raises:
        ModelError: A weight is missing or does not fit the target.
    """

    def __init__(self, checkpoint: HeadCheckpoint, target: CausalLM) -> None:
        checkpoint = _without_prefix(checkpoint)
        self._target = target
        self.num_heads = checkpoint.number("medusa_num_heads")
        num_layers = checkpoint.number("medusa_num_layers", default=1, least=0)
        width = target.width

        def take(name: str, *shape: int) -> Tensor:
            return checkpoint.take(name, shape).to(target.device, target.dtype)

        self._blocks: list[list[tuple[Tensor, Tensor]]] = []
        self._heads: list[Tensor | None] = []
        for head in range(self.num_heads):
            names = [f"{head}.{layer}.linear" for layer in range(num_layers)]
            weights = [take(f"{name}.weight", width, width) for name in names]
            biases = [take(f"{name}.bias", width) for name in names]
            self._blocks.append(list(zip(weights, biases, strict=True)))
            own = f"{head}.{num_layers}.weight"
            self._heads.append(take(own, target.vocab_size, width) if own in checkpoint.weights else None)

    @torch.inference_mode()
    def logits(self, hidden: Tensor, head: int) -> Tensor:
        """Return what one head says: [..., vocab] float32.

        Args:
            hidden: [..., width] the target's last, normalised hidden state at position i.
            head: It guesses token i + 2 + head; token i + 1 is the target's own.
        """
        for weight, bias in self._blocks[head]:
            hidden = hidden + torch.nn.functional.silu(torch.nn.functional.linear(hidden, weight, bias))
        own = self._heads[head]
        return (self._target.head(hidden) if own is None else torch.nn.functional.linear(hidden, own)).float()


def _without_prefix(checkpoint: HeadCheckpoint) -> HeadCheckpoint:
    """Take the heads out of checkpoints that hold the whole model, whose names begin with `medusa_head.`."""
    prefix = "medusa_head."
    own = {name.removeprefix(prefix): weight for name, weight in checkpoint.weights.items() if name.startswith(prefix)}
    return HeadCheckpoint(checkpoint.source, checkpoint.config, own or checkpoint.weights)


class MedusaDrafter(ForkedByCopy):
    """Every depth has one row, whatever the path that leads there; a draft is as deep as there are heads.

    Args:
        heads: The heads.
        source: Where they come from.
    """

    has_probs = True
    shapes = MODEL_SHAPES
    needs = Needs(hidden_layers=(-1,))

    def __init__(self, heads: MedusaHeads, source: str) -> None:
        self.heads, self.source = heads, f"medusa:{source}"

    @classmethod
    def load(cls, source: str, target: CausalLM) -> MedusaDrafter:
        """Load heads from a folder or a hub.

        Raises:
            ModelError: They cannot be found or read, or do not fit the target.
        """
        return cls(MedusaHeads(read_checkpoint(source, WEIGHT_FILES), target), source)

    def start(self, prompt_ids: Sequence[int], plan: DraftPlan) -> None:
        self._plan = plan
        self._num_tokens = len(prompt_ids)
        self._hidden: Tensor | None = None  # at the last position that the target has seen
        self._rows: dict[int, Tensor] = {}  # head -> its logits there

    def propose(self, max_length: int) -> TokenTree:
        how = self.begin(max_length)
        return empty_tree() if how is None else grow(self, how)

    @property
    def shared(self) -> tuple[object, ...]:
        """The heads; see `DraftsTogether`."""
        return (self.heads,)

    def begin(self, max_length: int) -> Growth | None:
        """Return how to grow; see `DraftsTogether`."""
        length = min(max_length, self.heads.num_heads)
        if length < 1 or self._hidden is None:
            return None
        return self._plan.growth(self._num_tokens, length)

    @classmethod
    def expand_all(cls, questions: Sequence[Question[MedusaDrafter]]) -> list[Tensor]:
        """Ask each head once, for all rows that have come to its depth; see `DraftsTogether`."""
        waiting: dict[int, list[MedusaDrafter]] = {}
        for one in questions:
            for head in {one.tree.depth(node) for node in one.nodes} - set(one.drafter._rows):
                waiting.setdefault(head, []).append(one.drafter)
        for head, drafters in waiting.items():
            hidden = [drafter._hidden for drafter in drafters if drafter._hidden is not None]
            for drafter, row in zip(drafters, drafters[0].heads.logits(torch.stack(hidden), head), strict=True):
                drafter._rows[head] = row
        return [one.drafter.expand(one.tree, one.nodes) for one in questions]

    def end(self) -> None:
        """Keep what the heads said, it holds until the next commit; see `DraftsTogether`."""

    def expand(self, tree: Growing, nodes: Sequence[int]) -> Tensor:
        """Return the logits behind nodes, those of one depth all the same; see `Expander`."""
        return torch.stack([self._row(tree.depth(node)) for node in nodes])

    def commit(self, token_ids: Sequence[int], trail: Trail | None = None) -> None:
        self._num_tokens += len(token_ids)
        if trail is not None and trail.hidden is not None:
            assert trail.position + len(trail.hidden) == self._num_tokens - 1, (trail.position, self._num_tokens)
            self._hidden, self._rows = trail.hidden[-1], {}

    def _row(self, head: int) -> Tensor:
        assert self._hidden is not None
        if head not in self._rows:
            self._rows[head] = self.heads.logits(self._hidden, head)
        return self._rows[head]
