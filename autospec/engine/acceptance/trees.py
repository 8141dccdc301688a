"""Lossless rules for trees, sampled or deterministic; and the lenient one, which is a lossless one set loose.

Both try the children of a node in the order in which they were drawn. What the rejected ones could not have been is
taken off the target's row, and off the draft's row what cannot be drawn again.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from autospec.engine.acceptance.verdict import Chance, Verdict
from autospec.engine.sampling import normalized, one_hot
from autospec.engine.tree import TokenTree


def accept_candidates(
    tree: TokenTree,
    target_probs: Tensor,  # [nodes + 1, vocab]: behind the root, then behind every node
    chance: Chance,
    with_replacement: bool = False,
    lenience: float = 1.0,
) -> Verdict:
    """Try one child after the other against what is left of the target (recursive rejection sampling).

    SpecInfer (2305.09781) with replacement, Sequoia (2402.12374) without. A child that was not drawn is certain of
    itself: kept with the target's probability of it, then taken off the target. On a chain this is rejection sampling.

    Args:
        tree: The draft.
        target_probs: In the same filters as the draft's, or in others.
        chance: Coins and draws.
        with_replacement: Whether siblings were drawn independently.
        lenience: The draft's row counts only that much (2211.17192, A.5). Below 1 more is kept, yet no token is more
            probable than target / lenience: if the later siblings hold to that against what is left to them, the
            first one does against the target.
    """
    path, node = list[int](), -1
    while tree.children[node + 1]:
        left = target_probs[node + 1].double()
        for child, draft in _draft_rows(tree, node, left, with_replacement):
            token = int(tree.token_ids[child])
            if chance.keeps(child, _ratio(left[token], lenience * draft[token])):
                path.append(child)
                node = child
                break
            left = normalized((left - lenience * draft).clamp_min(0.0), otherwise=left)
        else:
            return Verdict(tuple(path), chance.correction(left))
    return Verdict(tuple(path), chance.bonus(target_probs[node + 1], len(path)))


def accept_traversal(
    tree: TokenTree,
    target_probs: Tensor,  # [nodes + 1, vocab]: behind the root, then behind every node
    chance: Chance,
    with_replacement: bool = False,
) -> Verdict:
    """Judge whole paths from the leaves up (2505.12398); on a chain this is block verification, coin by coin.

    Args:
        tree: The draft.
        target_probs: In the same filters as the draft's, or in others.
        chance: Coins and draws.
        with_replacement: Whether siblings were drawn independently.
    """

    def visit(node: int, weight: float, path: tuple[int, ...]) -> Verdict | None:
        """Return the verdict if it falls at a node or below, whose path so far has a weight; None: all rejected."""
        left = target_probs[node + 1].double()
        for child, draft in _draft_rows(tree, node, left, with_replacement):
            token = int(tree.token_ids[child])
            verdict = visit(child, _ratio(weight * left[token], draft[token]), (*path, child))
            if verdict is not None:
                return verdict
            rest = (weight * left - draft).clamp_min(0.0)
            total = float(rest.sum())
            if total == 0.0:  # nothing of the target is above the draft: what was rejected is not owed here
                weight = float(weight == 1.0)
                break
            weight, left = total / (total + (1.0 - weight)), rest / total
        if node >= 0 and not chance.keeps(node, weight):
            return None
        is_leaf = not tree.children[node + 1]
        return Verdict(path, chance.bonus(left, len(path)) if is_leaf else chance.correction(left))

    verdict = visit(-1, 1.0, ())
    assert verdict is not None  # the root is always kept
    return verdict


def _ratio(target_prob: Tensor, draft_prob: Tensor) -> float:
    """Return min(1, target / draft) of a drawn token; a draft row cannot be 0 where it was drawn from."""
    return min(1.0, float(target_prob) / max(float(draft_prob), torch.finfo(torch.float64).tiny))


def _draft_rows(tree: TokenTree, node: int, like: Tensor, with_replacement: bool) -> Iterator[tuple[int, Tensor]]:
    """Yield the children of a node in order, each with the row it was drawn from given that it was its turn."""
    row = None
    for child in tree.children[node + 1]:
        token = tree.token_ids[child].to(like.device)
        if tree.draft_probs is None:
            row = one_hot(token, like.shape[-1]).double()
        elif row is None:
            row = tree.draft_probs[child].to(like)
        yield child, row
        if not with_replacement:
            row = normalized(row.index_fill(0, token, 0.0), otherwise=row)
