"""How a drafter with next-token probabilities grows a draft: chains, rank paths, beams, best-first trees.

Asks for the logits behind nodes, which whoever runs the drafter answers: an `Expander` for one draft, or one forward
for the drafts of many prompts. Children of chains and of rank paths may be drawn, because the form is known before;
those of beams and best-first trees are the most probable ones, because nodes that are kept for what was drawn would
bias the output.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.sampling import Use, gumbels, key_of, pick, to_probs, uniform, uniforms
from autospec.engine.termination import Stopping
from autospec.engine.tree import TokenTree, draw_of
from autospec.rules import ACCEPT_RULES, draws_children

# What can be grown over an `Expander`.
MODEL_SHAPES: tuple[str, ...] = ("chain", "static", "optimal", "beam", "best_first")


@dataclass(slots=True)
class Growing:
    """A tree while it grows: what an expander is shown.

    Args:
        token_ids: Of every node so far.
        parents: Of every node so far; -1 is the root.
        rows: [vocab] each, the filtered distribution every node was drawn from; empty where none is drawn.
        logits: [vocab] each, what the drafter thought where every node stands; empty where the rule does not ask.
    """

    token_ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)

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

    def finish(self, kept: Sequence[int] | None = None) -> TokenTree:
        """Return the draft, of all nodes or of those kept, parents before children."""
        nodes = range(len(self.parents)) if kept is None else kept
        places = {node: place for place, node in enumerate(nodes)} | {-1: -1}
        token_ids = torch.tensor([self.token_ids[node] for node in nodes], dtype=torch.int64)
        parents = tuple(places[self.parents[node]] for node in nodes)
        rows, logits = (torch.stack([of[node] for node in nodes]) if of else None for of in (self.rows, self.logits))
        return TokenTree(token_ids, parents, rows, logits)


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

    @property
    def is_coupled(self) -> bool:
        """Whether tokens are chosen with the noise that the target will use at the same position."""
        return self.config.accept_rule == "coupled" and not self.sampling.is_greedy

    @property
    def draws_children(self) -> bool:
        """Whether siblings of a tree of rank paths are drawn."""
        return draws_children(self.config.accept_rule, self.config.tree_shape) and not self.sampling.is_greedy

    @property
    def is_plain_chain(self) -> bool:
        """Whether the draft is tokens one after the other, each the most probable or drawn by a number of its own."""
        return self.config.tree_shape == "chain" and not self.is_coupled and not self.shows_logits

    @property
    def shows_logits(self) -> bool:
        """Whether the acceptance rule reads what the drafter thought."""
        return ACCEPT_RULES[self.config.accept_rule].needs_logits


# A draft that grows: asks for the logits behind nodes of its tree, is sent them, and returns the draft.
Asking = Generator[tuple[Growing, list[int]], Tensor, TokenTree]


def growing(how: Growth) -> Asking:
    """Return the draft of one step while it grows; see `autospec.rules.TREE_SHAPES`."""
    how.stopping.begin()
    match how.config.tree_shape:
        case "chain":
            return _greedy_chain(how) if how.sampling.is_greedy else _sampled_chain(how)
        case "static" | "optimal":
            return _ranked(how)
        case "beam":
            return _layered(how, how.config.tree_width)
    return _layered(how, how.config.tree_nodes)


def grow(expander: Expander, how: Growth) -> TokenTree:
    """Grow the draft of one step over an expander."""
    asking = growing(how)
    try:
        tree, nodes = next(asking)
        while True:
            tree, nodes = asking.send(expander.expand(tree, nodes))
    except StopIteration as finished:
        draft: TokenTree = finished.value
        return draft


def _greedy_chain(how: Growth) -> Asking:
    tree, stopping = Growing(), how.stopping
    for depth in range(how.max_depth):
        logits = (yield tree, [depth - 1])[0]
        token = int(logits.argmax())
        tree.add(token, depth - 1)
        tree.logits += [logits] * how.shows_logits
        if stopping.reads_rows and stopping.ends(logits.softmax(dim=-1), token):
            break
    return tree.finish()


def _sampled_chain(how: Growth) -> Asking:
    tree = Growing()
    positions = range(how.position, how.position + how.max_depth)
    numbers = uniforms(how.seed, positions, Use.DRAFT, range(how.max_depth))
    for depth in range(how.max_depth):
        logits = yield tree, [depth - 1]
        row = to_probs(logits[0], how.sampling)
        token = int(_scores(logits, how, depth + 1).argmax() if how.is_coupled else pick(row, numbers[depth]))
        tree.add(token, depth - 1)
        tree.rows.append(row)
        tree.logits += [logits[0]] * how.shows_logits
        if how.stopping.reads_rows and how.stopping.ends(row, token):
            break
    return tree.finish()


def draft_logprobs(logits: Tensor, sampling: SamplingParams) -> Tensor:
    """Return by what children of deterministic trees are ranked: [..., vocab] log-probabilities.

    Tokens that the filters of sampling exclude can never be drawn from the target with the same filters and a like
    mind, so they come last.
    """
    if sampling.is_greedy:
        return logits.log_softmax(dim=-1)
    return to_probs(logits, sampling).log()


def _scores(logits: Tensor, how: Growth, depth: int) -> Tensor:
    """Return by what the children of nodes are ranked: [nodes, vocab], a log-probability.

    Under coupled acceptance the noise of the position is added and the sum taken as logits: what the target will
    choose with the same noise is then likely to be among the first.
    """
    logprobs = draft_logprobs(logits, how.sampling)
    if not how.is_coupled:
        return logprobs
    key = key_of(how.seed, how.position + depth - 1, Use.NOISE)
    return (logprobs + gumbels([key], logits.shape[-1], logits.device)).log_softmax(dim=-1)


def _drawn_children(rows: Tensor, how: Growth, depth: int, num_children: int) -> Tensor:
    """Draw the children of nodes from rows [nodes, vocab]: [nodes, num_children], -1 where nothing is left to draw."""
    (num_nodes, vocab_size), at = rows.shape, how.position + depth - 1
    if how.config.with_replacement:
        places = range(num_nodes * num_children)
        drawn = [uniform(how.seed, at, Use.DRAFT, draw_of(depth, place)) for place in places]
        numbers = torch.tensor(drawn, dtype=torch.float64).view(num_nodes, num_children)
        return pick(rows[:, None].expand(-1, num_children, -1), numbers)
    keys = [key_of(how.seed, at, Use.DRAFT, draw_of(depth, place)) for place in range(num_nodes)]
    return _best(rows.log() + gumbels(keys, vocab_size, rows.device), num_children)


def _best(scores: Tensor, num_children: int) -> Tensor:
    """Return the tokens of the highest scores, -1 where those of tokens that cannot come begin."""
    best = scores.topk(min(num_children, scores.shape[-1]), dim=-1)
    return best.indices.masked_fill(best.values == -torch.inf, -1)


def _ranked(how: Growth) -> Asking:
    """Grow a tree whose form is a list of rank paths, one drafter call for each depth.

    Children that are drawn are drawn in the order of their ranks.
    """
    tree, nodes, draws = Growing(), dict[tuple[int, ...], int]({(): -1}), how.draws_children
    paths = sorted((path for path in how.config.tree_paths if len(path) <= how.max_depth), key=lambda p: (len(p), p))
    for depth in range(1, max(map(len, paths), default=0) + 1):
        level = [path for path in paths if len(path) == depth and path[:-1] in nodes]
        if not level:
            break
        families = dict[tuple[int, ...], list[int]]()
        for path in level:
            families.setdefault(path[:-1], []).append(path[-1])
        logits = yield tree, [nodes[parent] for parent in families]
        rows = to_probs(logits, how.sampling) if draws else logits
        if draws:
            tokens = _drawn_children(rows, how, depth, max(map(len, families.values()))).cpu()
        else:
            tokens = _best(_scores(logits, how, depth), 1 + max(path[-1] for path in level)).cpu()
        for row, (parent, ranks) in enumerate(families.items()):
            for place, rank in enumerate(ranks):
                column = place if draws else rank
                if column < tokens.shape[1] and tokens[row, column] >= 0:
                    nodes[*parent, rank] = tree.add(int(tokens[row, column]), nodes[parent])
                    tree.rows += [rows[row]] * draws
                    tree.logits += [logits[row]] * how.shows_logits
    return tree.finish()


def _layered(how: Growth, num_expanded: int) -> Asking:
    """Grow depth by depth the most probable paths, and cut all that was seen to the budget.

    Expanded at each depth are the best `num_expanded` nodes of it that are among the best `tree_nodes` of all: with
    `tree_width` of them this is the beam of EAGLE-2 (2406.16858), with `tree_nodes` the best tree of that size, as in
    OPT-Tree (2406.17276), because no path is more probable than its beginning. Trees of one depth then nest by budget.
    """
    tree, weights = Growing(), list[float]()
    budget, least = how.config.tree_nodes, how.stopping.least_path_prob
    frontier = [(-1, 0.0)]  # (node, log-probability of its path)
    for depth in range(1, how.max_depth + 1):
        logits = yield tree, [node for node, _ in frontier]
        ranked = _scores(logits, how, depth).topk(min(how.config.tree_width, logits.shape[-1]), dim=-1)
        layer = []
        for (parent, weight), values, tokens, row in zip(
            frontier, ranked.values.tolist(), ranked.indices.tolist(), logits, strict=True
        ):
            for value, token in zip(values, tokens, strict=True):
                if value > -torch.inf and (least == 0.0 or torch.e ** (weight + value) >= least):
                    layer.append((tree.add(token, parent), weight + value))
                    weights.append(weight + value)
                    tree.logits += [row] * how.shows_logits
        bound = sorted(weights, reverse=True)[:budget][-1] if weights else 0.0
        best = sorted(layer, key=lambda one: -one[1])[:num_expanded]
        frontier = [one for one in best if one[1] >= bound]
        if not frontier:
            break
    return _cut(tree, weights, budget)


def _cut(tree: Growing, weights: Sequence[float], budget: int) -> TokenTree:
    """Keep the most probable paths; a node never comes before its parent, whose path is at least as probable."""
    return tree.finish(sorted(sorted(range(len(weights)), key=lambda node: -weights[node])[:budget]))
