"""How a drafter with next-token probabilities grows a draft: chains, rank paths, beams, best-first trees.

Works on any `Expander`, which runs the drafter behind nodes. Children of chains and of rank paths may be drawn,
because the form is known before; those of beams and best-first trees are the most probable ones, because nodes that
are kept for what was drawn would bias the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.sampling import Use, pick, to_probs, uniforms
from autospec.engine.termination import Stopping
from autospec.engine.tree import TokenTree, chain

# What can be grown over an `Expander`.
MODEL_SHAPES: tuple[str, ...] = ("chain", "static", "optimal", "beam", "best_first")


@dataclass(slots=True)
class Growing:
    """A tree while it grows: what an expander is shown.

    Args:
        token_ids: Of every node so far.
        parents: Of every node so far; -1 is the root.
    """

    token_ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)

    def add(self, token_id: int, parent: int) -> int:
        """Append a node and return its index."""
        self.token_ids.append(token_id)
        self.parents.append(parent)
        return len(self.parents) - 1

    def depth(self, node: int) -> int:
        """Return how far a node is from the root, -1, whose depth is 0."""
        depth = 0
        while node >= 0:
            node, depth = self.parents[node], depth + 1
        return depth


class Expander(Protocol):
    """Runs a drafter behind nodes of a growing tree."""

    def expand(self, tree: Growing, nodes: Sequence[int]) -> Tensor:
        """Return the logits behind nodes: [len(nodes), vocab] float32.

        Every node comes after its parent, in the same call or an earlier one; -1 is the root, which comes first and
        alone.
        """
        ...


@dataclass(frozen=True, slots=True)
class Growth:
    """How to grow.

    Args:
        config: Shape, width and budget.
        sampling: Filters of the drafter.
        seed: Seed of the prompt.
        position: Absolute position of the first drafted token.
        max_depth: Longest path allowed now.
        stopping: The stopping rule of this generation.
    """

    config: SpecConfig
    sampling: SamplingParams
    seed: int
    position: int
    max_depth: int
    stopping: Stopping


def grow(expander: Expander, how: Growth) -> TokenTree:
    """Grow the draft of one step; see `autospec.rules.TREE_SHAPES`."""
    how.stopping.begin()
    match how.config.tree_shape:
        case "chain":
            return _greedy_chain(expander, how) if how.sampling.is_greedy else _sampled_chain(expander, how)
        case "static" | "optimal":
            return _ranked(expander, how)
        case "beam":
            return _layered(expander, how, how.config.tree_width)
    return _layered(expander, how, how.config.tree_nodes)


def _greedy_chain(expander: Expander, how: Growth) -> TokenTree:
    tree, stopping = Growing(), how.stopping
    for depth in range(how.max_depth):
        logits = expander.expand(tree, [depth - 1])[0]
        token = int(logits.argmax())
        tree.add(token, depth - 1)
        if stopping.reads_rows and stopping.ends(logits.softmax(dim=-1), token):
            break
    return chain(torch.tensor(tree.token_ids, dtype=torch.int64))


def _sampled_chain(expander: Expander, how: Growth) -> TokenTree:
    tree, rows = Growing(), list[Tensor]()
    positions = range(how.position, how.position + how.max_depth)
    numbers = uniforms(how.seed, positions, Use.DRAFT, range(how.max_depth))
    for depth in range(how.max_depth):
        rows.append(to_probs(expander.expand(tree, [depth - 1])[0], how.sampling))
        token = int(pick(rows[-1], numbers[depth]))
        tree.add(token, depth - 1)
        if how.stopping.reads_rows and how.stopping.ends(rows[-1], token):
            break
    return chain(torch.tensor(tree.token_ids, dtype=torch.int64), torch.stack(rows))


def draft_logprobs(logits: Tensor, sampling: SamplingParams) -> Tensor:
    """Return by what children of deterministic trees are ranked: [..., vocab] log-probabilities.

    Tokens that the filters of sampling exclude can never be drawn from the target with the same filters and a like
    mind, so they come last.
    """
    if sampling.is_greedy:
        return logits.log_softmax(dim=-1)
    return to_probs(logits, sampling).log()


def _ranked(expander: Expander, how: Growth) -> TokenTree:
    """Grow a tree whose form is a list of rank paths, one drafter call for each depth."""
    tree, nodes = Growing(), dict[tuple[int, ...], int]({(): -1})
    for depth in range(1, how.max_depth + 1):
        level = sorted(path for path in how.config.tree_paths if len(path) == depth and path[:-1] in nodes)
        if not level:
            break
        parents = list(dict.fromkeys(path[:-1] for path in level))
        logprobs = draft_logprobs(expander.expand(tree, [nodes[path] for path in parents]), how.sampling)
        widest = 1 + max(path[-1] for path in level)
        ranked = logprobs.topk(min(widest, logprobs.shape[-1]), dim=-1)
        for path in level:
            row, rank = parents.index(path[:-1]), path[-1]
            if rank < ranked.values.shape[1] and ranked.values[row, rank] > -torch.inf:
                nodes[path] = tree.add(int(ranked.indices[row, rank]), nodes[path[:-1]])
    return TokenTree(torch.tensor(tree.token_ids, dtype=torch.int64), tuple(tree.parents))


def _layered(expander: Expander, how: Growth, num_expanded: int) -> TokenTree:
    """Grow depth by depth the most probable paths, and cut all that was seen to the budget.

    Expanded at each depth are the best `num_expanded` nodes of it that are among the best `tree_nodes` of all: with
    `tree_width` of them this is the beam of EAGLE-2 (2406.16858), with `tree_nodes` the best tree of that size, as in
    OPT-Tree (2406.17276), because no path is more probable than its beginning. Trees of one depth then nest by budget.
    """
    tree, weights = Growing(), list[float]()
    budget, least = how.config.tree_nodes, how.stopping.least_path_prob
    frontier = [(-1, 0.0)]  # (node, log-probability of its path)
    for _ in range(how.max_depth):
        logprobs = draft_logprobs(expander.expand(tree, [node for node, _ in frontier]), how.sampling)
        ranked = logprobs.topk(min(how.config.tree_width, logprobs.shape[-1]), dim=-1)
        layer = []
        for (parent, weight), values, tokens in zip(
            frontier, ranked.values.tolist(), ranked.indices.tolist(), strict=True
        ):
            for value, token in zip(values, tokens, strict=True):
                if value > -torch.inf and (least == 0.0 or torch.e ** (weight + value) >= least):
                    layer.append((tree.add(token, parent), weight + value))
                    weights.append(weight + value)
        bound = sorted(weights, reverse=True)[:budget][-1] if weights else 0.0
        best = sorted(layer, key=lambda one: -one[1])[:num_expanded]
        frontier = [one for one in best if one[1] >= bound]
        if not frontier:
            break
    return _cut(tree, weights, budget)


def _cut(tree: Growing, weights: Sequence[float], budget: int) -> TokenTree:
    """Keep the most probable paths; a node never comes before its parent, whose path is at least as probable."""
    kept = sorted(sorted(range(len(weights)), key=lambda node: -weights[node])[:budget])
    places = {node: place for place, node in enumerate(kept)} | {-1: -1}
    token_ids = torch.tensor([tree.token_ids[node] for node in kept], dtype=torch.int64)
    return TokenTree(token_ids, tuple(places[tree.parents[node]] for node in kept))
