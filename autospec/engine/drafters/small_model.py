"""Another causal language model with the same vocabulary drafts what it would write itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from autospec.engine.cache import KVCache
from autospec.engine.drafters.base import DraftPlan, Needs, Trail
from autospec.engine.growth import Growing, grow
from autospec.engine.model import CausalLM
from autospec.engine.tree import TokenTree, empty_tree


class SmallModelDrafter:
    """Leviathan et al. (2211.17192): the draft model samples as the target would, filters included.

    Its cache holds a part of the committed text and behind it the nodes of the last draft that were run.

    Args:
        model: The draft model.
        vocab_size: Of the target; padded logits beyond it are cut, missing ones can never be drafted.
    """

    has_probs = True
    shapes: tuple[str, ...] = ("chain", "static", "optimal", "beam", "best_first")
    needs = Needs()

    def __init__(self, model: CausalLM, vocab_size: int) -> None:
        self.model, self.vocab_size = model, vocab_size
        self.source = model.name
        self._context: list[int] = []

    def start(self, prompt_ids: Sequence[int], plan: DraftPlan) -> None:
        self._plan = plan
        self._context = list(prompt_ids)
        room = plan.capacity + _num_slots(plan)
        self._cache = KVCache(min(room, self.model.usable_length + _num_slots(plan)))
        self._num_cached = 0  # tokens of the text that are in the cache
        self._forget_draft()

    def propose(self, max_length: int) -> TokenTree:
        self.commit(())  # forgets a draft that was never answered
        # The last token of a draft is never fed, so a draft may reach one token beyond the model's length.
        length = min(max_length, self.model.usable_length - len(self._context) + 1)
        if length < 1:
            return empty_tree()
        return grow(self, self._plan.growth(len(self._context), length))

    def expand(self, tree: Growing, nodes: Sequence[int]) -> Tensor:
        """Return the logits behind nodes; see `Expander`."""
        if nodes[0] == -1:
            fresh = self._context[self._num_cached :]
            logits = self.model.forward(torch.tensor([fresh]), self._cache, num_logits=1)[0]
            self._num_cached = len(self._context)
        else:
            logits = self._expand_nodes(tree, nodes)
        return self._fit(logits.float())

    def commit(self, token_ids: Sequence[int], trail: Trail | None = None) -> None:
        path = self._known_path(token_ids)
        self._context.extend(token_ids)
        root = self._num_cached - 1
        if path and self._num_cached:
            self._cache.keep(0, root, [0, *path])
        # The newest token is always fed again, because its logits are what the next draft begins with.
        self._num_cached = min(self._num_cached + len(path), len(self._context) - 1)
        self._cache.crop(0, self._num_cached)
        self._forget_draft()

    def _expand_nodes(self, tree: Growing, nodes: Sequence[int]) -> Tensor:
        num_before = len(self._slots)
        for node in nodes:
            self._slots[node] = len(self._slots) + 1
            self._edges[tree.parents[node], tree.token_ids[node]] = node
        token_ids = torch.tensor([[tree.token_ids[node] for node in nodes]])
        if list(self._slots) == list(range(len(self._slots))) and _is_chain(tree, len(self._slots)):
            return self.model.forward(token_ids, self._cache)[0]  # causal, without a mask
        mask = torch.zeros(len(nodes), len(self._slots), dtype=torch.bool)
        offsets = []
        for row, node in enumerate(nodes):
            depth, above = 0, node
            while above >= 0:
                mask[row, self._slots[above] - 1] = True
                depth, above = depth + 1, tree.parents[above]
            offsets.append(depth - 1 - num_before)
        return self.model.forward(token_ids, self._cache, tree_mask=mask, depths=offsets)[0]

    def _known_path(self, token_ids: Sequence[int]) -> list[int]:
        """Return the slots, behind the root's, of those committed tokens that were run as nodes of the last draft."""
        path, parent = list[int](), -1
        for token_id in token_ids:
            node = self._edges.get((parent, token_id))
            if node is None:
                break
            path.append(self._slots[node])
            parent = node
        return path

    def _forget_draft(self) -> None:
        self._slots: dict[int, int] = {}  # node -> how many slots behind the root it stands
        self._edges: dict[tuple[int, int], int] = {}  # (parent, token) -> node

    def _fit(self, logits: Tensor) -> Tensor:
        missing = self.vocab_size - logits.shape[-1]
        if missing > 0:
            return torch.nn.functional.pad(logits, (0, missing), value=-torch.inf)
        return logits[:, : self.vocab_size]


def _is_chain(tree: Growing, num_nodes: int) -> bool:
    return tree.parents[:num_nodes] == list(range(-1, num_nodes - 1))


def _num_slots(plan: DraftPlan) -> int:
    """Return how many nodes of one draft may be run besides those along a path."""
    config = plan.config
    if config.tree_shape == "chain":
        return 0
    if config.tree_paths:
        return len(config.tree_paths)
    return config.draft_length * min(config.tree_nodes, config.tree_width if config.tree_shape == "beam" else 512)
