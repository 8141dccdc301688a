"""Lossy rules: which tokens the target lets pass, and the contrastive target.

Each states its guarantee in `autospec.rules.ACCEPT_RULES`; none is chosen unless it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from autospec.config import SpecConfig
from autospec.engine.acceptance.verdict import Verdict
from autospec.engine.tree import TokenTree
from autospec.errors import ConfigError


def typical_tokens(probs: Tensor, config: SpecConfig) -> Tensor:
    """Return what is typical of rows [..., vocab]: bool [..., vocab] (Medusa, 2401.10774, section 2.3.1)."""
    entropies = -torch.xlogy(probs, probs).sum(dim=-1, keepdim=True)
    bound = (config.accept_delta * torch.exp(-entropies)).clamp_max(config.accept_threshold)
    return probs > bound


def lenient_tokens(probs: Tensor, config: SpecConfig) -> Tensor:
    """Return what has at least `accept_threshold` times the highest probability (2211.17192, A.5, greedy)."""
    return probs >= config.accept_threshold * probs.amax(dim=-1, keepdim=True)


def relaxed_tokens(probs: Tensor, config: SpecConfig) -> Tensor:
    """Return the `accept_top` best that are at most `accept_delta` below the best (TensorRT-LLM's relaxed acceptance).

    Tokens as probable as the last of the best pass with it.
    """
    top = probs.topk(min(config.accept_top, probs.shape[-1]), dim=-1).values
    return (probs >= top[..., -1:]) & (probs >= top[..., :1] - config.accept_delta)


def margin_tokens(probs: Tensor, config: SpecConfig) -> Tensor:
    """Return the best token, and the second where it has at least `accept_threshold` times its probability.

    The idea of 2601.15498, which compares logits; a ratio of probabilities does not change when all logits move.
    """
    top = probs.topk(min(2, probs.shape[-1]), dim=-1).values
    return (probs >= top[..., -1:]) & (probs >= config.accept_threshold * top[..., :1])


PASSING: dict[str, Callable[[Tensor, SpecConfig], Tensor]] = {
    "typical": typical_tokens,
    "lenient": lenient_tokens,  # greedily; under sampling it is `accept_candidates` with a lenience
    "relaxed": relaxed_tokens,
    "margin": margin_tokens,
}


def accept_passing(
    tree: TokenTree,
    probs: Tensor,  # [nodes + 1, vocab]
    passing: Tensor,  # [nodes + 1, vocab] bool
    target_ids: Tensor,  # [nodes + 1] the target's own choice behind the root and behind every node
) -> Verdict:
    """Keep the longest path on which every token passes, of equally long ones the most probable; end with the target.

    A token of probability 0 never passes. The host waits for the device once.
    """
    scores, best = {-1: 0.0}, (0, 0.0, -1)
    above = torch.tensor([parent + 1 for parent in tree.parents], dtype=torch.int64, device=probs.device)
    drafted = above, tree.token_ids.to(probs.device)
    passes = passing[drafted] & (probs[drafted] > 0.0)
    found = torch.cat([one.double() for one in (target_ids, passes, probs[drafted].log())]).tolist()
    count = tree.num_nodes
    own, does_pass, logprobs = found[: count + 1], found[count + 1 : 2 * count + 1], found[2 * count + 1 :]
    for node, parent in enumerate(tree.parents):
        if does_pass[node] and parent in scores:
            scores[node] = scores[parent] + logprobs[node]
            # Of equal paths the first wins.
            best = max(best, (tree.depths[node], scores[node], node), key=lambda path: path[:2])
    path, node = list[int](), best[2]
    last = node
    while node >= 0:
        path.append(node)
        node = tree.parents[node]
    return Verdict(tuple(reversed(path)), int(own[last + 1]))


def contrastive_logits(tree: TokenTree, logits: Tensor, config: SpecConfig) -> Tensor:
    """Return the logits that are verified without loss instead of the target's (2311.08981): [nodes + 1, vocab].

    Where something was drafted, (1 + accept_delta) * target - accept_delta * draft over the tokens that have at least
    `accept_threshold` times the highest target probability. Where nothing was drafted, which is behind every leaf, the
    target's own: the drafter's opinion is not known there.

    Args:
        tree: With `draft_logits`.
        logits: [nodes + 1, vocab] the target's.
        config: The knobs.

    Raises:
        ConfigError: The drafter did not say what it thought.
    """
    if tree.num_nodes == 0:
        return logits
    if tree.draft_logits is None:
        raise ConfigError(
            f"accept_rule {config.accept_rule!r} needs the drafter's logits with every draft, "
            f"but drafter {config.drafter!r} gave none"
        )
    firsts = [(row, family[0]) for row, family in enumerate(tree.children) if family]
    rows, nodes = map(list, zip(*firsts, strict=True))
    target = logits[rows].float()
    # A token that the drafter does not know gets no bonus for that: its draft logit is the lowest of those known.
    draft = tree.draft_logits[nodes].to(target)
    lowest = draft.masked_fill(draft == -torch.inf, torch.inf).amin(dim=-1, keepdim=True)
    sharpened = (1.0 + config.accept_delta) * target - config.accept_delta * torch.maximum(draft, lowest)
    probs = target.softmax(dim=-1)
    kept = (probs > 0.0) & (probs >= config.accept_threshold * probs.amax(dim=-1, keepdim=True))
    modified = logits.float().clone()
    modified[rows] = sharpened.masked_fill(~kept, -torch.inf)
    return modified
