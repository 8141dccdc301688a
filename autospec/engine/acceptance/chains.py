"""Lossless rules for chains: rejection sampling and block verification.

Tensor functions over leading dimensions, split into the law and the draw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from autospec.engine.acceptance.verdict import Verdict
from autospec.engine.sampling import normalized, one_hot, pick, residual


@dataclass(frozen=True, slots=True)
class ChainRule:
    """A lossless rule for chains, split into its law and the draw.

    Args:
        accept_probs: (draft_ids [..., k], draft_probs [..., k, vocab], target_probs [..., k + 1, vocab])
            -> [..., k].
        correction_probs: The same arguments -> [..., k, vocab]: the distribution drawn from when exactly the first i
            tokens were accepted, i < k. (After k accepted, the bonus comes from the target.)
        is_sequential: True: tokens are tried in order and the first failure ends the draft. False: every position is
            tried and the last success decides.
    """

    accept_probs: Callable[[Tensor, Tensor, Tensor], Tensor]
    correction_probs: Callable[[Tensor, Tensor, Tensor], Tensor]
    is_sequential: bool

    def num_accepted(self, accept_probs: Tensor, coins: Tensor) -> Tensor:
        """Return how many tokens survive coins in [0, 1): [...] int64, from two tensors [..., k]."""
        wins = coins.to(accept_probs.device) < accept_probs
        if self.is_sequential:
            return wins.long().cumprod(dim=-1).sum(dim=-1)
        places = torch.arange(1, wins.shape[-1] + 1, device=wins.device)
        return (wins * places).amax(dim=-1)


def _of_drafted(probs: Tensor, draft_ids: Tensor) -> Tensor:
    return probs.gather(-1, draft_ids[..., None])[..., 0]


def rejection_accept_probs(draft_ids: Tensor, draft_probs: Tensor, target_probs: Tensor) -> Tensor:
    """Return min(1, target / draft) of every drafted token (2211.17192, Algorithm 1)."""
    drafted = _of_drafted(draft_probs, draft_ids)
    return (_of_drafted(target_probs[..., :-1, :], draft_ids) / drafted).clamp_max(1.0)


def rejection_correction_probs(draft_ids: Tensor, draft_probs: Tensor, target_probs: Tensor) -> Tensor:
    """Return norm(max(0, target - draft)) at every position."""
    return residual(target_probs[..., :-1, :], draft_probs)


def _block_weights(draft_ids: Tensor, draft_probs: Tensor, target_probs: Tensor) -> Tensor:
    """Return P_0 .. P_k of block verification: P_i = min(1, P_(i-1) * target / draft)."""
    ratios = _of_drafted(target_probs[..., :-1, :], draft_ids) / _of_drafted(draft_probs, draft_ids)
    weights = [torch.ones_like(ratios[..., 0])]
    for position in range(ratios.shape[-1]):
        weights.append((weights[-1] * ratios[..., position]).clamp_max(1.0))
    return torch.stack(weights, dim=-1)


def block_accept_probs(draft_ids: Tensor, draft_probs: Tensor, target_probs: Tensor) -> Tensor:
    """Return h_1 .. h_k of block verification (2403.10444, Algorithm 2)."""
    weights = _block_weights(draft_ids, draft_probs, target_probs)
    inner = weights[..., 1:-1]
    left = (inner[..., None] * target_probs[..., 1:-1, :] - draft_probs[..., 1:, :]).clamp_min(0.0).sum(dim=-1)
    total = left + 1.0 - inner
    kept = torch.where(total > 0.0, left / total.clamp_min(torch.finfo(left.dtype).tiny), torch.ones_like(left))
    return torch.cat([kept, weights[..., -1:]], dim=-1)


def block_correction_probs(draft_ids: Tensor, draft_probs: Tensor, target_probs: Tensor) -> Tensor:
    """Return norm(max(0, P_i * target_i - draft_i)) for i = 0 .. k - 1."""
    weights = _block_weights(draft_ids, draft_probs, target_probs)[..., :-1, None]
    left = (weights * target_probs[..., :-1, :] - draft_probs).clamp_min(0.0)
    return normalized(left, otherwise=target_probs[..., :-1, :])


CHAIN_RULES: dict[str, ChainRule] = {
    "rejection": ChainRule(rejection_accept_probs, rejection_correction_probs, is_sequential=True),
    "block": ChainRule(block_accept_probs, block_correction_probs, is_sequential=False),
}


def accept_chain(
    rule: ChainRule,
    draft_ids: Tensor,  # [k]
    draft_probs: Tensor | None,  # [k, vocab]; None: the draft was not drawn, it is one-hot
    target_probs: Tensor,  # [k + 1, vocab]
    numbers: Tensor,  # [k + 2] in [0, 1): k coins, then for the correction, then for the bonus
) -> Verdict:
    """Decide one step of one row so that the target's distribution is unchanged; the host waits for it once."""
    num_drafted, vocab_size = draft_ids.shape[0], target_probs.shape[-1]
    if num_drafted == 0:
        return Verdict((), int(pick(target_probs[-1], numbers[-1])))
    draft_probs = one_hot(draft_ids, vocab_size) if draft_probs is None else draft_probs.to(target_probs.device)
    law = (draft_ids, draft_probs, target_probs)
    count = rule.num_accepted(rule.accept_probs(*law), numbers[:num_drafted])
    is_whole = count == num_drafted
    correction = rule.correction_probs(*law).index_select(0, count.clamp_max(num_drafted - 1)[None])[0]
    number = torch.where(is_whole, numbers[-1].to(count.device), numbers[-2].to(count.device))
    next_id = pick(torch.where(is_whole, target_probs[-1], correction), number)
    num_accepted, token = torch.stack([count, next_id]).tolist()
    return Verdict(tuple(range(num_accepted)), token)
