"""EAGLE (2401.15077, 2406.16858, 2503.01840): drafts token by token on the target's features.

At committed positions the features are always the target's own, never those that the network expected while it
drafted: a draft then depends on the text alone, and errors do not pile up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from autospec.engine.cache import KVCache
from autospec.engine.drafters.base import DraftPlan, Needs, Question, Trail
from autospec.engine.drafters.checkpoint import read_checkpoint
from autospec.engine.drafters.eagle_model import EagleModel
from autospec.engine.drafters.slots import DraftSlots, num_run_nodes, text_cache
from autospec.engine.growth import MODEL_SHAPES, Growing, Growth, grow
from autospec.engine.model import CausalLM
from autospec.engine.rows import RowTokens
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

    def forward_rows(self, asked: Sequence[RowTokens], hidden: Tensor, cache: KVCache) -> Tensor:
        """Run pairs of several rows of a cache at once, one row behind the other."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Return what its outputs say of the next token."""
        ...


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Tokens, and [tokens, width] the features of the positions before them."""

    tokens: RowTokens
    hidden: Tensor


class EagleDrafter:
    """Slot i of its cache holds the pair of the feature of position i and token i + 1.

    Args:
        model: The draft network.
        source: See `Drafter`.
        cache: Of the network; see `text_cache`.
    """

    has_probs = True
    shapes = MODEL_SHAPES

    def __init__(self, model: FeatureModel, source: str, cache: KVCache | None = None) -> None:
        self.model, self.source, self._given = model, source, cache
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
        self._cache = text_cache(self._given, plan.capacity + num_run_nodes(plan.config))
        self._fresh: list[Tensor] = []  # fused features of positions that are not in the cache yet
        self._num_told = 0  # positions whose features are known
        self._num_cached = 0  # committed pairs in the cache
        self._root: Tensor | None = None  # [1, width] what the network expects behind the last committed pair
        self._slots.clear()

    def fork(self, num_rows: int) -> list[EagleDrafter]:
        """Return drafters that share one cache; see `Forks`."""
        cache = KVCache(0, num_rows)
        return [EagleDrafter(self.model, self.source, cache.row(row)) for row in range(num_rows)]

    def propose(self, max_length: int) -> TokenTree:
        how = self.begin(max_length)
        if how is None:
            return empty_tree()
        tree = grow(self, how)
        self.end()
        return tree

    @property
    def shared(self) -> tuple[object, ...]:
        """Network and cache; see `DraftsTogether`."""
        return self.model, self._cache.whole

    def begin(self, max_length: int) -> Growth | None:
        """Return how to grow; see `DraftsTogether`."""
        if max_length < 1 or self._num_told == 0:
            return None
        return self._plan.growth(len(self._text), max_length)

    @classmethod
    def expand_all(cls, questions: Sequence[Question[EagleDrafter]]) -> list[Tensor]:
        """Run the network once for all of them; see `DraftsTogether`."""
        model, whole = questions[0].drafter.model, questions[0].drafter._cache.whole
        asked = [one.drafter._ask(one.tree, one.nodes) for one in questions]
        running = [pairs for pairs in asked if pairs is not None]
        answers = iter(())
        if running:
            hidden = torch.cat([pairs.hidden for pairs in running])
            expected = model.forward_rows([pairs.tokens for pairs in running], hidden, whole)
            answers = iter(expected.split([len(pairs.hidden) for pairs in running]))
        states = [
            one.drafter._take(one.nodes, None if pairs is None else next(answers))
            for one, pairs in zip(questions, asked, strict=True)
        ]
        return list(model.logits(torch.cat(states)).split([len(own) for own in states]))

    def end(self) -> None:
        """Forget the nodes: what becomes text is run again on the target's features; see `DraftsTogether`."""
        self._cache.crop(0, self._num_cached)
        self._slots.clear()

    def expand(self, tree: Growing, nodes: Sequence[int]) -> Tensor:
        """Return the logits behind nodes; see `Expander`."""
        pairs, expected = self._ask(tree, nodes), None
        if pairs is not None:
            tokens = pairs.tokens
            token_ids = torch.tensor(tokens.token_ids)
            expected = self.model.forward(token_ids, pairs.hidden, self._cache, tokens.tree_mask, tokens.depths)
        return self.model.logits(self._take(nodes, expected))

    def commit(self, token_ids: Sequence[int], trail: Trail | None = None) -> None:
        self._text.extend(token_ids)
        if trail is not None and trail.hidden is not None:
            assert trail.position == self._num_told, (trail.position, self._num_told)
            self._fresh.append(self.model.fuse(trail.hidden))
            self._num_told += len(trail.hidden)
            assert self._num_told == len(self._text) - 1, (self._num_told, len(self._text))

    def _ask(self, tree: Growing, nodes: Sequence[int]) -> _Pairs | None:
        """Return what must be run for what is expected behind nodes, and take it for run; None where that is known.

        For the root these are the committed pairs that are new, all at once.
        """
        if nodes[0] == -1:
            if not self._fresh:
                return None
            tokens, hidden = self._text[self._num_cached + 1 :], torch.cat(self._fresh)
            self._num_cached, self._fresh = self._num_told, []
            return _Pairs(RowTokens(self._cache.place, tokens), hidden)
        hidden = torch.stack([self._expected[tree.parents[node]] for node in nodes])
        placed = self._slots.place(tree, nodes)
        token_ids = [tree.token_ids[node] for node in nodes]
        return _Pairs(RowTokens(self._cache.place, token_ids, placed.tree_mask, placed.depths), hidden)

    def _take(self, nodes: Sequence[int], expected: Tensor | None) -> Tensor:
        """Keep what came of `_ask`, and return what is expected behind nodes: [nodes, width]."""
        if nodes[0] == -1:
            self._root = self._root if expected is None else expected[-1:]
            assert self._root is not None
            self._expected = {-1: self._root[0]}
            return self._root
        assert expected is not None
        self._expected.update(zip(nodes, expected, strict=True))
        return expected
