"""From logits to tokens: filtered probabilities, counter-based random numbers, and draws by inverse cumulative sum.

Pure functions. A random number is a function of (seed, position, use, draw), so it does not depend on what else is
in the batch, on the order of calls, or on how many numbers were drawn before.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

from autospec.config import SamplingParams

MASK64 = (1 << 64) - 1
UNIFORM_STEP = 2.0**-53


class Use(IntEnum):
    """What a random number is for; no number serves two uses."""

    TARGET = 1  # draws the target's own token: the plain loop, sample-and-match, the bonus token
    DRAFT = 2  # draws a draft token
    ACCEPT = 3  # decides whether a draft token is kept
    CORRECTION = 4  # draws the token after a rejection
    NOISE = 5  # the noise of a position that target and drafter share under coupled acceptance


def _mix(state: int) -> int:
    """Scramble 64 bits (the finalizer of SplitMix64, Steele et al. 2014, doi:10.1145/2660193.2660195)."""
    state = (state + 0x9E3779B97F4A7C15) & MASK64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK64
    return state ^ (state >> 31)


def uniform(seed: int, position: int, use: Use, draw: int = 0) -> float:
    """Return a number in [0, 1) that only the four arguments decide.

    Args:
        seed: Seed of the prompt.
        position: Absolute position of the token that the number helps to choose.
        use: What it is for.
        draw: Tells apart several numbers for one position and use; drafts count the distance from the root, so that
            a position drafted again in a later step gets a fresh number. (Block verification looks at the whole
            draft, so a number it has seen must not come back.)
    """
    return uniform_bits(seed, position, use, draw) * UNIFORM_STEP


def uniform_bits(seed: int, position: int, use: Use, draw: int = 0) -> int:
    """Return the whole number below 2**53 that `uniform` makes a number in [0, 1) of, exactly."""
    return key_of(seed, position, use, draw) >> 11


def key_of(seed: int, position: int, use: Use, draw: int = 0) -> int:
    """Return the 64 bits that the arguments of `uniform` decide."""
    state = _mix(seed & MASK64)
    for word in (position, int(use), draw):
        state = _mix(state ^ word)
    return state


def gumbels(keys: Sequence[int], vocab_size: int, device: torch.device | None = None) -> Tensor:
    """Return Gumbel noise that only a key and the token decide: [len(keys), vocab] float64, all finite.

    The largest of log-probability plus noise is a draw from the probabilities; the k largest are k draws without
    replacement in the order in which they would have been drawn (1903.06059).

    Args:
        keys: From `key_of`.
        vocab_size: Tokens.
        device: Where to make it; the bits are the same everywhere.
    """
    signed = torch.tensor([_signed(key) for key in keys], dtype=torch.int64, device=device)
    tokens = torch.arange(vocab_size, device=device)
    bits = _shifted(_mixed(signed[:, None] ^ tokens), 12)
    return -torch.log(-torch.log((bits.double() + 0.5) * 2.0**-52))


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _shifted(state: Tensor, num_bits: int) -> Tensor:
    """Shift 64 bits to the right and fill with zeros; torch fills with the sign."""
    return (state >> num_bits) & ((1 << (64 - num_bits)) - 1)


def _mixed(state: Tensor) -> Tensor:
    """Do what `_mix` does to every element; int64 wraps around as unsigned numbers do."""
    state = state + _signed(0x9E3779B97F4A7C15)
    state = (state ^ _shifted(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shifted(state, 27)) * _signed(0x94D049BB133111EB)
    return state ^ _shifted(state, 31)


def uniforms(seed: int, positions: range, use: Use, draws: range | None = None) -> Tensor:
    """Return one number for each position as a float64 tensor [len(positions)]; draws default to 0."""
    steps = draws if draws is not None else [0] * len(positions)
    numbers = [uniform(seed, position, use, draw) for position, draw in zip(positions, steps, strict=True)]
    return torch.tensor(numbers, dtype=torch.float64)


def to_probs(logits: Tensor, sampling: SamplingParams) -> Tensor:
    """Turn logits into the filtered distribution from which tokens are drawn.

    Temperature, then top-k, then top-p, as transformers orders them; all in float32.

    Args:
        logits: [..., vocab].
        sampling: The same for target and drafter.

    Returns:
        [..., vocab] float32, rows sum to 1. Greedy decoding gives the one-hot row of the most probable token.
    """
    if sampling.is_greedy:
        return one_hot(logits.argmax(dim=-1), logits.shape[-1])
    scores = logits.float() / sampling.temperature
    if 0 < sampling.top_k < scores.shape[-1]:
        least = scores.topk(sampling.top_k, dim=-1).values[..., -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    probs = scores.softmax(dim=-1)
    if sampling.top_p < 1.0:
        ordered, order = probs.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(dim=-1) - ordered
        kept = ordered.masked_fill(before >= sampling.top_p, 0.0)
        probs = torch.zeros_like(probs).scatter(-1, order, kept)
        probs = probs / probs.sum(dim=-1, keepdim=True)
    return probs


def one_hot(token_ids: Tensor, vocab_size: int) -> Tensor:
    """Return the distribution that is certain of each token: [..., vocab] float32."""
    rows = torch.zeros(*token_ids.shape, vocab_size, device=token_ids.device)
    return rows.scatter(-1, token_ids[..., None], 1.0)


def pick(probs: Tensor, numbers: Tensor) -> Tensor:
    """Draw one token a row by inverting the cumulative distribution.

    Args:
        probs: [..., vocab], rows sum to about 1.
        numbers: [...] float64 in [0, 1).

    Returns:
        [...] int64. A token of probability 0 is never drawn: the goal stays below the whole sum, because the largest
        number, 1 - 2**-53, times any float64 rounds to less than it.
    """
    cumulative = probs.double().cumsum(dim=-1)
    goal = numbers.to(probs.device)[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, goal, right=True)[..., 0]


def residual(target_probs: Tensor, draft_probs: Tensor) -> Tensor:
    """Return norm(max(0, target - draft)) [..., vocab]; the target itself where nothing is left.

    Leviathan et al. (2211.17192), Algorithm 1. Nothing is left only where both are equal; then nothing is rejected.
    """
    return normalized((target_probs - draft_probs).clamp_min(0.0), otherwise=target_probs)


def normalized(weights: Tensor, otherwise: Tensor) -> Tensor:
    """Return weights [..., vocab] divided by their sum, and `otherwise` where the sum is 0."""
    total = weights.sum(dim=-1, keepdim=True)
    return torch.where(total > 0.0, weights / total.clamp_min(torch.finfo(weights.dtype).tiny), otherwise)
