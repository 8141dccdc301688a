"""EAGLE (2401.15077, 2406.16858, 2503.01840): drafts token by token on the target's features.

At committed positions the features are always the target's own, never those that the network expected while it
drafted: a draft then depends on the text alone, and errors do not pile up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from autospec.engine.cache import KVCache
from autospec.engine.drafters.base import DraftPlan, ForkedByCopy, Needs, Trail
from autospec.engine.drafters.checkpoint import read_checkpoint
from autospec.engine.drafters.eagle_model import EagleModel
from autospec.engine.drafters.slots import DraftSlots, num_run_nodes
from autospec.engine.growth import MODEL_SHAPES, Growing, grow
from autospec.engine.model import CausalLM
from autospec.engine.tree import TokenTree, empty_tree

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


class FeatureModel(Protocol):
    """What drafts: see `EagleModel`, whose methods these are."""

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """Which hidden states of the target it takes."""
        ...

    def fuse(self, features: Tensor) -> Tensor:
        """Return the target's features as the network takes them."""
        ...

    def forward(
        self,
        token_ids: Tensor,
        hidden: Tensor,
        cache: KVCache,
        tree_mask: Tensor | None = None,
        depths: Sequence[int] | None = None,
    ) -> Tensor:
        """Run pairs of a feature and the token behind it."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Return what its outputs say of the next token."""
        ...


class EagleDrafter(ForkedByCopy):
    """Slot i of its cache holds the pair of the feature of position i and token i + 1.

    Args:
        model: The draft network.
        source: See `Drafter`.
    """

    has_probs = True
    shapes = MODEL_SHAPES

    def __init__(self, model: FeatureModel, source: str) -> None:
        self.model, self.source = model, source
        self.needs = Needs(hidden_layers=model.feature_layers)
        self._slots = DraftSlots()

    @classmethod
    def load(cls, source: str, target: CausalLM) -> EagleDrafter:
        """Load heads of EAGLE-1, 2 or 3 from a folder or a hub.

        Raises:
            ModelError: They cannot be found or read, or do not fit the target.
        """
        return cls(EagleModel(read_checkpoint(source, WEIGHT_FILES), target), f"eagle:{source}")

    def start(self, prompt_ids: Sequence[int], plan: DraftPlan) -> None:
        self._plan = plan
        self._text = list(prompt_ids)
        self._cache = KVCache(plan.capacity + num_run_nodes(plan.config))
        self._fresh: list[Tensor] = []  # fused features of positions that are not in the cache yet
        self._num_told = 0  # positions whose features are known
        self._num_cached = 0  # committed pairs in the cache
        self._root: Tensor | None = None  # [1, width] what the network expects behind the last committed pair
        self._slots.clear()

    def propose(self, max_length: int) -> TokenTree:
        if max_length < 1 or self._num_told == 0:
            return empty_tree()
        tree = grow(self, self._plan.growth(len(self._text), max_length))
        self._cache.crop(0, self._num_cached)
        self._slots.clear()
        return tree

    def expand(self, tree: Growing, nodes: Sequence[int]) -> Tensor:
        """Return the logits behind nodes; see `Expander`."""
        if nodes[0] == -1:
            root = self._run_committed()
            self._expected = {-1: root[0]}
            return self.model.logits(root)
        token_ids = torch.tensor([tree.token_ids[node] for node in nodes])
        hidden = torch.stack([self._expected[tree.parents[node]] for node in nodes])
        placed = self._slots.place(tree, nodes)
        expected = self.model.forward(token_ids, hidden, self._cache, placed.tree_mask, placed.depths)
        self._expected.update(zip(nodes, expected, strict=True))
        return self.model.logits(expected)

    def commit(self, token_ids: Sequence[int], trail: Trail | None = None) -> None:
        self._text.extend(token_ids)
        if trail is not None and trail.hidden is not None:
            assert trail.position == self._num_told, (trail.position, self._num_told)
            self._fresh.append(self.model.fuse(trail.hidden))
            self._num_told += len(trail.hidden)
            assert self._num_told == len(self._text) - 1, (self._num_told, len(self._text))

    def _run_committed(self) -> Tensor:
        """Run the committed pairs that are new, all at once, and return what is expected behind the last."""
        if self._fresh:
            features = torch.cat(self._fresh)
            token_ids = torch.tensor(self._text[self._num_cached + 1 :])
            self._root = self.model.forward(token_ids, features, self._cache)[-1:]
            self._num_cached, self._fresh = self._num_told, []
        assert self._root is not None
        return self._root
