"""A causal language model that follows a text and runs the nodes of drafts behind it, with a cache of its own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import torch
from torch import Tensor

from autospec.config import SpecConfig
from autospec.engine.cache import KVCache
from autospec.engine.drafters.launched import launched_chain
from autospec.engine.drafters.slots import DraftSlots, num_run_nodes, text_cache
from autospec.engine.growth import Growing, Growth
from autospec.engine.model import CausalLM
from autospec.engine.rows import RowTokens
from autospec.engine.tree import TokenTree


class RunningModel:
    """Keeps of a text what it has run, and runs the rest when it is asked what comes next.

    Its cache holds a part of the text and behind it the nodes of the last draft that were run.

    Args:
        model: Its vocabulary is that of the text.
        cache: Where it keeps what it has run, such as a row of one that other texts share; None takes one of the
            model's for every text.
    """

    def __init__(self, model: CausalLM, cache: KVCache | None = None) -> None:
        self.model, self._given = model, cache
        self.text: list[int] = []
        self._slots = DraftSlots()

    def start(self, token_ids: Sequence[int], capacity: int, config: SpecConfig) -> None:
        """Begin another text.

        Args:
            token_ids: The text so far.
            capacity: Most tokens it may come to hold, a path of a draft included.
            config: Says how many nodes stand beside such a path.
        """
        self.cache = KVCache(0)  # the last one's memory can be had again
        self.text = list(token_ids)
        capacity = min(capacity, self.model.usable_length) + num_run_nodes(config)
        self.cache = text_cache(self._given or self.model.new_cache(capacity), capacity)
        self.num_cached = 0  # tokens of the text that are in the cache
        self._slots.clear()

    @property
    def room(self) -> int:
        """Most tokens that can be drafted now; the last is never run, so it may stand beyond the model's length."""
        return self.model.usable_length - len(self.text) + 1

    def extend(self, token_ids: Sequence[int]) -> None:
        """Append tokens to the text; those that were run as nodes of the last draft are not run again."""
        path = self._slots.path(token_ids)
        self.text.extend(token_ids)
        if path and self.num_cached:
            self.cache.keep(0, self.num_cached - 1, [0, *path])
        # The newest token is always run again, because its logits are what the next draft begins with.
        self.num_cached = min(self.num_cached + len(path), len(self.text) - 1)
        self.cache.crop(0, self.num_cached)
        self._slots.clear()

    def replace(self, token_ids: Sequence[int]) -> None:
        """Make the text another one; what they share at the beginning is not run again."""
        pairs = zip(self.text, token_ids, strict=False)
        num_shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if num_shared < len(self.text):
            self._slots.clear()
            self.text = self.text[:num_shared]
            self.num_cached = min(self.num_cached, num_shared)
        self.extend(token_ids[num_shared:])

    def run_text(self) -> Tensor:
        """Return the logits [1, vocab] behind the text."""
        asked = self.ask_text()
        return self.model.forward(torch.tensor([asked.token_ids]), self.cache, num_logits=1)[0]

    def run_nodes(self, tree: Growing, nodes: Sequence[int]) -> Tensor:
        """Return the logits [len(nodes), vocab] behind nodes of a draft; see `Expander`."""
        asked = self.ask_nodes(tree, nodes)
        token_ids = torch.tensor([asked.token_ids])
        return self.model.forward(token_ids, self.cache, tree_mask=asked.tree_mask, depths=asked.depths)[0]

    def run_chain(self, how: Growth, vocab_size: int) -> TokenTree | None:
        """Draft a chain in launches; see `launched_chain`.

        Args:
            how: To grow.
            vocab_size: Tokens to draft lie below.

        Returns:
            The draft, whose nodes were run but for the last; None where they must be run one by one.
        """
        draft = launched_chain(self.model, self.text[self.num_cached :], self.cache, how, vocab_size)
        if draft is None:
            return None
        self.num_cached, tree = len(self.text), Growing()
        for node, token in enumerate(draft.token_ids.tolist()):
            tree.add(token, node - 1)
            if node < draft.num_nodes - 1:
                self._slots.place(tree, [node])
        return draft

    def ask(self, tree: Growing, nodes: Sequence[int]) -> RowTokens:
        """Return what must be run for the logits behind nodes, and take it for run."""
        return self.ask_text() if nodes[0] == -1 else self.ask_nodes(tree, nodes)

    def ask_text(self) -> RowTokens:
        """Return what must be run for the logits behind the text, and take it for run."""
        fresh = self.text[self.num_cached :]
        self.num_cached = len(self.text)
        return RowTokens(self.cache.place, fresh, num_logits=1)

    def ask_nodes(self, tree: Growing, nodes: Sequence[int]) -> RowTokens:
        """Return what must be run for the logits behind nodes of a draft, and take it for run."""
        placed = self._slots.place(tree, nodes)
        token_ids = [tree.token_ids[node] for node in nodes]
        return RowTokens(self.cache.place, token_ids, placed.tree_mask, placed.depths)
