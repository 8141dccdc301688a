"""What a draft must be before the target is asked about it, whoever made the drafter.

A draft that breaks this would end in a wrong text or in an error deep inside a model. Read are only numbers that the
step reads anyway and `TokenTree` keeps (its tokens as a list, its depth), so a good draft costs a few comparisons.
"""

from __future__ import annotations

import torch

from autospec.config import SpecConfig
from autospec.engine.tree import TokenTree
from autospec.errors import DrafterError

_SUM_TOLERANCE = 0.02  # rows in half precision


def num_branches(config: SpecConfig) -> int:
    """Return how many nodes a verified tree may hold beside those along its longest path."""
    return 0 if config.tree_shape == "chain" else max(config.tree_nodes, len(config.tree_paths))


def check_kind(tree: object, name: str) -> None:
    """Refuse what is no draft at all.

    Raises:
        DrafterError: It is no `TokenTree`.
    """
    if not isinstance(tree, TokenTree):
        raise DrafterError(f"drafter {name!r} must propose a `TokenTree`, but proposed {tree!r}")


def check_draft(tree: TokenTree, config: SpecConfig, limit: int, vocab_size: int) -> None:
    """Refuse a draft that cannot be verified.

    Args:
        tree: What a drafter returned.
        config: Names the drafter and the shape.
        limit: Longest path that was asked for.
        vocab_size: Of the target.

    Raises:
        DrafterError: It is no `TokenTree`, deeper or larger than allowed, branches where a chain was asked for, holds
            tokens or rows of another vocabulary, or rows that its tokens cannot have been drawn from.
    """
    check_kind(tree, config.drafter)
    _check_form(tree, config, limit)
    _check_tokens(tree, config, vocab_size)
    if tree.draft_probs is not None and tree.num_nodes:
        _check_rows(tree.draft_probs, tree.token_ids, config)


def _check_form(tree: TokenTree, config: SpecConfig, limit: int) -> None:
    if tree.depth > limit:
        raise DrafterError(
            f"drafter {config.drafter!r} may draft at most {limit} tokens along a path here, but drafted {tree.depth}"
        )
    if config.tree_shape == "chain" and not tree.is_chain:
        raise DrafterError(
            f"drafter {config.drafter!r} must draft a chain, but drafted a tree with the parents {tree.parents}"
        )
    most = limit + num_branches(config)
    if tree.num_nodes > most:
        raise DrafterError(
            f"drafter {config.drafter!r} may draft at most {most} nodes here, but drafted {tree.num_nodes}"
        )


def _check_tokens(tree: TokenTree, config: SpecConfig, vocab_size: int) -> None:
    if tree.token_ids.dtype != torch.int64:
        raise DrafterError(
            f"tokens of drafter {config.drafter!r} must be of type torch.int64, but are {tree.token_ids.dtype}"
        )
    if tree.tokens and not 0 <= min(tree.tokens) <= max(tree.tokens) < vocab_size:
        raise DrafterError(
            f"tokens of drafter {config.drafter!r} must lie in 0 .. {vocab_size - 1}, "
            f"but they reach from {min(tree.tokens)} to {max(tree.tokens)}"
        )
    for name, rows in (("draft_probs", tree.draft_probs), ("draft_logits", tree.draft_logits)):
        if rows is not None and rows.shape != (tree.num_nodes, vocab_size):
            raise DrafterError(
                f"{name} of drafter {config.drafter!r} must be of shape {(tree.num_nodes, vocab_size)}, "
                f"but are {tuple(rows.shape)}"
            )


def _check_rows(rows: torch.Tensor, token_ids: torch.Tensor, config: SpecConfig) -> None:
    """Refuse what acceptance rules would divide by: one broken row makes a lossless rule write a wrong text."""
    sums, drawn = rows.sum(dim=-1), rows.gather(-1, token_ids[:, None].to(rows.device))[:, 0]
    # Written so that a NaN fails.
    if not bool((((sums - 1.0).abs() < _SUM_TOLERANCE) & (drawn > 0.0)).all()):
        raise DrafterError(
            f"draft_probs of drafter {config.drafter!r} must be rows that sum to 1 and are above 0 for the token "
            f"that was drawn, but they sum to {[round(one, 4) for one in sums.tolist()]} and give their tokens "
            f"{[round(one, 4) for one in drawn.tolist()]}"
        )
