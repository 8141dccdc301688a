"""The target's own layers draft: the first few of them, or a given set, under its last norm and head.

Self-speculation without further memory: the layers that draft write where they write when they verify, behind the
committed tokens in the target's own cache, and the verification that follows writes over it.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor

from autospec.config import SpecConfig
from autospec.engine.cache import KVCache
from autospec.engine.drafters.base import DraftPlan, Needs, Question, Trail
from autospec.engine.drafters.launched import launched_chain
from autospec.engine.drafters.slots import DraftSlots, num_run_nodes
from autospec.engine.growth import MODEL_SHAPES, Growing, Growth, grow
from autospec.engine.layers import keep_layers
from autospec.engine.model import CausalLM
from autospec.engine.rows import RowTokens
from autospec.engine.tree import TokenTree, empty_tree
from autospec.errors import ConfigError, ModelError


class EarlyExitDrafter:
    """Early exit as in LayerSkip (2404.16710), and skipped layers as in Draft & Verify (2309.08168).

    Args:
        target: The target itself.
        layers: Layers that draft, counted from 0; empty leaves it to `exit_layer` of the configuration, which is how
            many of the first layers draft, 0 a half of them.

    Raises:
        ModelError: The target has no such layers, or only one.
    """

    has_probs = True
    shapes = MODEL_SHAPES
    needs = Needs(target_slots=num_run_nodes)

    def __init__(self, target: CausalLM, layers: Sequence[int] = ()) -> None:
        self.target, self.layers = target, tuple(layers)
        self.source = "early_exit" + (f":{','.join(map(str, layers))}" if layers else "")
        self._total = target.num_layers
        if self._total < 2:
            raise ModelError(f"a target that drafts itself needs at least 2 layers, but `{target.name}` has 1")
        self._models: dict[tuple[int, ...], CausalLM] = {}
        if layers:
            self._models[self.layers] = keep_layers(target, layers)
        self._text: list[int] = []
        self._slots = DraftSlots()

    @classmethod
    def parse(cls, target: CausalLM, layers: str) -> EarlyExitDrafter:
        """Make it of what stands behind the colon of its source: layers with commas between them, or nothing.

        Raises:
            ModelError: See the class; or that is no list of numbers.
        """
        try:
            return cls(target, [int(layer) for layer in layers.split(",")] if layers else ())
        except ValueError as error:
            raise ModelError(f"layers of `early_exit:` must be numbers with commas, but got {layers!r}") from error

    def check(self, config: SpecConfig) -> None:
        """Refuse an exit that the target does not have; see `ChecksConfig`."""
        if self.layers and config.exit_layer:
            raise ConfigError(f"`exit_layer` must be 0 where layers are given, but got {config.exit_layer}")
        if config.exit_layer >= self._total:
            raise ConfigError(
                f"`exit_layer` must be below the number of layers of the target, {self._total}, "
                f"but got {config.exit_layer}"
            )

    def start(self, prompt_ids: Sequence[int], plan: DraftPlan) -> None:
        self.check(plan.config)
        layers = self.layers or tuple(range(plan.config.exit_layer or (self._total + 1) // 2))
        if layers not in self._models:
            self._models[layers] = keep_layers(self.target, layers)
        self._plan, self._model = plan, self._models[layers]
        self._text = list(prompt_ids)

    def fork(self, num_rows: int) -> list[EarlyExitDrafter]:
        """Return drafters of the same layers; see `Forks`."""
        forked = [copy(self) for _ in range(num_rows)]
        for one in forked:
            one._slots = DraftSlots()
        return forked

    def propose(self, max_length: int) -> TokenTree:
        how = self.begin(max_length)
        if how is None:
            return empty_tree()
        launched = launched_chain(self._model, self._text[-1:], self._cache, how, self.target.vocab_size)
        tree = grow(self, how) if launched is None else launched
        self.end()
        return tree

    @property
    def shared(self) -> tuple[object, ...]:
        """The layers that draft, and the target's own cache; see `DraftsTogether`."""
        return self._model, self._cache.whole

    def begin(self, max_length: int) -> Growth | None:
        """Return how to grow; see `DraftsTogether`."""
        if max_length < 1:
            return None
        self._num_committed = self._cache.length
        self._slots.clear()
        return self._plan.growth(len(self._text), max_length)

    @classmethod
    def expand_all(cls, questions: Sequence[Question[EarlyExitDrafter]]) -> list[Tensor]:
        """Run the layers once for all of them; see `DraftsTogether`."""
        first = questions[0].drafter
        asked = [one.drafter._ask(one.tree, one.nodes) for one in questions]
        return [logits.float() for logits, _ in first._model.forward_rows(asked, first._cache.whole)]

    def end(self) -> None:
        """Take back what was written into the target's cache; see `DraftsTogether`."""
        self._cache.crop(0, self._num_committed)

    def expand(self, tree: Growing, nodes: Sequence[int]) -> Tensor:
        """Return the logits behind nodes; see `Expander`."""
        asked = self._ask(tree, nodes)
        token_ids = torch.tensor([asked.token_ids])
        logits = self._model.forward(token_ids, self._cache, tree_mask=asked.tree_mask, depths=asked.depths)
        return logits[0].float()

    def commit(self, token_ids: Sequence[int], trail: Trail | None = None) -> None:
        self._text.extend(token_ids)

    @property
    def _cache(self) -> KVCache:
        return self._plan.target_cache

    def _ask(self, tree: Growing, nodes: Sequence[int]) -> RowTokens:
        """Return what must be run for the logits behind nodes."""
        if nodes[0] == -1:
            return RowTokens(self._cache.place, self._text[-1:])
        placed = self._slots.place(tree, nodes)
        token_ids = [tree.token_ids[node] for node in nodes]
        return RowTokens(self._cache.place, token_ids, placed.tree_mask, placed.depths)
