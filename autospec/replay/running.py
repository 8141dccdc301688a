"""Runs a draft model behind many positions of a text at once: the text is run once, every draft sees its own part.

For drafters that are a causal language model over the target's tokens: small models, and the target's own layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autospec.config import SamplingParams
from autospec.engine.cache import KVCache
from autospec.engine.drafters import Drafter, EarlyExitDrafter, SmallModelDrafter
from autospec.engine.drafters.small_model import fit_vocabulary
from autospec.engine.growth import draft_logprobs
from autospec.engine.layers import keep_layers
from autospec.engine.model import CausalLM
from autospec.replay.forest import DraftForest, Ints, Rows


class TextRunner:
    """A draft model over one recorded text.

    Nodes that were run stay in its cache behind the text, until there are more than `max_nodes` of them.

    Args:
        model: Of the drafter.
        text: Prompt and output.
        vocab_size: Of the target.
        max_nodes: Most draft nodes held.
    """

    def __init__(self, model: CausalLM, text: Sequence[int], vocab_size: int, max_nodes: int = 4096) -> None:
        self._model, self._vocab_size, self._max_nodes = model, vocab_size, max_nodes
        length = min(len(text), model.usable_length)
        self._text, self._length = list(text), length
        self._cache = KVCache(length + max_nodes)
        self.logits = self._fit(model.forward(torch.tensor([self._text[:length]]), self._cache)[0])
        self._slots: dict[int, int] = {}  # node -> slot in the cache

    def expand(
        self, forest: DraftForest, parents: Ints, ranks: Ints, contexts: NDArray[np.int64], first: int
    ) -> Tensor:
        """Return the logits behind candidates of nodes: [n, vocab].

        Args:
            forest: Holds the parents.
            parents: [n] nodes.
            ranks: [n] candidates of them.
            contexts: Tokens of the text before each position.
            first: Node that the first of these will be.
        """
        batch = 512
        parts = []
        for start in range(0, len(parents), batch):
            some = slice(start, start + batch)
            parts.append(self._expand(forest, parents[some], ranks[some], contexts, first + start))
        return torch.cat(parts)

    def _expand(
        self, forest: DraftForest, parents: Ints, ranks: Ints, contexts: NDArray[np.int64], first: int
    ) -> Tensor:
        new = list[tuple[int, int, int]]()  # (node, parent, token), parents before children
        needed = self._missing([int(parent) for parent in parents], forest)
        if len(self._slots) + len(needed) + len(parents) > self._max_nodes:
            self.forget()
            needed = self._missing([int(parent) for parent in parents], forest)
        for node in needed:
            parent = int(forest.parents[node])
            new.append((node, parent, int(forest.rows.tokens[parent, forest.ranks[node]])))
        for place, (parent, rank) in enumerate(zip(parents.tolist(), ranks.tolist(), strict=True)):
            new.append((first + place, parent, int(forest.rows.tokens[parent, rank])))
        start = self._cache.length
        mask = torch.zeros(len(new), start + len(new), dtype=torch.bool)
        depths = []
        known = {node: start + row for row, (node, _, _) in enumerate(new)}
        slots = self._slots | known
        for row, (_, parent, _) in enumerate(new):
            mask[row, start + row] = True
            depth, at = 0, parent
            while (before := int(forest.parents[at])) >= 0:
                mask[row, slots[at]] = True
                depth, at = depth + 1, before
            context = int(contexts[at])
            mask[row, :context] = True
            depths.append(context + depth - start)
        tokens = torch.tensor([[token for _, _, token in new]])
        logits = self._model.forward(tokens, self._cache, tree_mask=mask, depths=depths)[0]
        self._slots = slots
        return self._fit(logits[len(needed) :])

    def forget(self) -> None:
        """Drop the draft nodes from the cache; what is asked behind them later runs them again."""
        self._slots = {}
        self._cache.crop(0, self._length)

    def _missing(self, nodes: Sequence[int], forest: DraftForest) -> list[int]:
        """Return the nodes on the ways to these that are not in the cache, parents before children."""
        found = set[int]()
        for node in nodes:
            while forest.parents[node] >= 0 and node not in self._slots and node not in found:
                found.add(node)
                node = int(forest.parents[node])
        return sorted(found)

    def _fit(self, logits: Tensor) -> Tensor:
        return fit_vocabulary(logits.float(), self._vocab_size)


def draft_model(drafter: Drafter, target: CausalLM, exit_layer: int) -> CausalLM | None:
    """Return the model that a drafter runs over the target's own tokens; None where it is no such drafter."""
    if isinstance(drafter, SmallModelDrafter):
        return drafter.model
    if isinstance(drafter, EarlyExitDrafter):
        if drafter.layers != tuple(range(len(drafter.layers))):
            # A layer behind one that is left out reads what the whole target wrote into its cache: no model has that.
            return None
        return keep_layers(target, drafter.layers or tuple(range(exit_layer or (target.num_layers + 1) // 2)))
    return None


def rows_of(logits: Tensor, width: int, sampling: SamplingParams = SamplingParams()) -> Rows:  # noqa: B008  (frozen)
    """Return the candidates of logits [n, vocab], as deterministic drafts rank them."""
    logprobs = draft_logprobs(logits, sampling)
    probs = logprobs.exp()
    top = logprobs.topk(min(width, logprobs.shape[-1]), dim=-1)
    entropies = -torch.xlogy(probs, probs).sum(dim=-1)
    return Rows(
        top.indices.to(torch.int32).cpu().numpy(),
        top.values.cpu().numpy().astype(np.float32),
        entropies.cpu().numpy().astype(np.float32),
    )
