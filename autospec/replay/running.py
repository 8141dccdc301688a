"""Runs a draft model behind many positions of many texts at once: a text is run once, every draft sees its own part.

For drafters that are a causal language model over the target's tokens: small models, and the target's own layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
from autospec.engine.rows import RowTokens
from autospec.errors import ModelError, ReplayError
from autospec.replay.forest import DraftForest, Ints, Rows

_ROOM = 256  # nodes behind each text for which there is room from the start
_LOGITS_AT_ONCE, _LEAST_AT_ONCE = 1 << 23, 128  # numbers that one forward returns, and tokens that it may have anyway


@dataclass(frozen=True, slots=True)
class Roots:
    """Where the first nodes of a forest stand, those behind recorded text.

    Args:
        rows: [roots] which of a runner's texts.
        contexts: [roots] tokens of the text before each.
    """

    rows: NDArray[np.int64]
    contexts: NDArray[np.int64]


class TextsRunner:
    """A draft model over recorded texts, side by side.

    Nodes that were run stay in its cache behind their text until `forget`; each sees its own part of the text and the
    nodes before it, and what all texts ask goes into one forward.

    Args:
        model: Of the drafter.
        texts: Prompts and outputs.
        vocab_size: Of the target.
    """

    def __init__(self, model: CausalLM, texts: Sequence[Sequence[int]], vocab_size: int) -> None:
        self._model, self._vocab_size = model, vocab_size
        self._texts = [list(text[: model.usable_length]) for text in texts]
        capacity = max(map(len, self._texts)) + _ROOM
        try:
            model.check_room(len(texts), capacity)
        except ModelError as error:
            raise ReplayError(f"texts are recorded side by side and must fit the memory: {error}") from error
        self._cache = KVCache(capacity, len(texts))
        self._slots = np.zeros(0, dtype=np.int64)  # of each node in the cache of its text; -1 where it is not
        self._most = max(_LEAST_AT_ONCE, _LOGITS_AT_ONCE // model.vocab_size)

    @property
    def has_read(self) -> bool:
        """Whether every text is in the cache."""
        return min(self._cache.lengths) > 0

    def read(self, row: int, contexts: NDArray[np.int64]) -> Tensor:
        """Run a text, and return the logits behind so many of its tokens: [n, vocab].

        Args:
            row: Which text.
            contexts: [n] ascending; those beyond the model's length count as that, and are of no use.
        """
        text = self._texts[row]
        self._cache.lengths[row] = 0
        places = np.minimum(contexts, len(text))
        wanted = len(text) - int(places.min(initial=len(text))) + 1
        logits = self._model.forward(torch.tensor([text]), self._cache.row(row), num_logits=wanted)[0]
        return self._fit(logits[torch.from_numpy(places - 1 - (len(text) - wanted))])

    def expand(self, forest: DraftForest, parents: Ints, ranks: Ints, roots: Roots) -> Iterator[tuple[slice, Tensor]]:
        """Yield the logits behind candidates of nodes, some at a time: which of them, and [some, vocab].

        They are taken to become the next nodes of the forest, in order, once all are run.

        Args:
            forest: Holds the parents.
            parents: [n] nodes.
            ranks: [n] candidates of them.
            roots: Where the forest's first nodes stand.
        """
        first = forest.num_nodes
        grown = np.full(first + len(parents), -1, dtype=np.int64)
        known = min(len(self._slots), first)
        grown[:known] = self._slots[:known]
        self._slots = grown
        tokens = forest.rows.tokens[parents, ranks]
        self._run_missing(forest, parents, roots)
        for start in range(0, len(parents), self._most):
            some = slice(start, min(start + self._most, len(parents)))
            nodes = np.arange(first + some.start, first + some.stop)
            yield some, self._run(forest, nodes, parents[some].astype(np.int64), tokens[some], roots)

    def forget(self) -> None:
        """Drop the draft nodes from the cache; what is asked behind them later runs them again."""
        self._slots = np.zeros(0, dtype=np.int64)
        for row, text in enumerate(self._texts):
            self._cache.crop(row, min(self._cache.lengths[row], len(text)))

    def _run_missing(self, forest: DraftForest, nodes: Ints, roots: Roots) -> None:
        """Run the nodes on the ways to these that are not in the cache, depth by depth."""
        layers = list[NDArray[np.int64]]()
        at = np.unique(nodes).astype(np.int64)
        while len(at := at[(forest.parents[at] >= 0) & (self._slots[at] < 0)]):
            layers.append(at)
            at = np.unique(forest.parents[at]).astype(np.int64)
        for layer in reversed(layers):
            layer = layer[self._slots[layer] < 0]
            for start in range(0, len(layer), self._most):
                some = layer[start : start + self._most]
                parents = forest.parents[some].astype(np.int64)
                self._run(forest, some, parents, forest.rows.tokens[parents, forest.ranks[some]], roots)

    def _run(
        self, forest: DraftForest, nodes: NDArray[np.int64], parents: NDArray[np.int64], tokens: Ints, roots: Roots
    ) -> Tensor:
        """Run nodes whose parents are in the cache or stand behind the text; return their logits, in order."""
        above, at = list[NDArray[np.int64]](), parents
        while (within := forest.parents[at] >= 0).any():
            above.append(np.where(within, self._slots[at], -1))
            at = np.where(within, forest.parents[at], at)
        depths = sum((slots >= 0).astype(np.int64) for slots in above) + roots.contexts[at]
        rows, asked, order = roots.rows[at], list[RowTokens](), list[NDArray[np.int64]]()
        lengths = self._cache.lengths
        needed = max(lengths) + int(np.bincount(rows).max())
        if needed > self._cache.capacity:
            self._cache.reserve(max(needed, self._cache.capacity * 3 // 2))
        for row in np.unique(rows).tolist():
            own, start = np.nonzero(rows == row)[0], lengths[row]
            every = np.arange(len(own))
            mask = np.arange(start + len(own)) < roots.contexts[at[own], None]
            for slots in above:
                seen = slots[own] >= 0
                mask[every[seen], slots[own][seen]] = True
            mask[every, start + every] = True
            self._slots[nodes[own]] = start + every
            places = (np.asarray(depths)[own] - start).tolist()
            asked.append(RowTokens(row, tokens[own].tolist(), torch.from_numpy(mask), places))
            order.append(own)
        parts = [logits for logits, _ in self._model.forward_rows(asked, self._cache)]
        back = np.argsort(np.concatenate(order), kind="stable")
        return self._fit(torch.cat(parts)[torch.from_numpy(back)])

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
