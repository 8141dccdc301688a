"""Chains that a model drafts in launches: one for the whole draft, or a few where a rule may end it sooner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from autospec.config import SamplingParams
from autospec.engine.cache import KVCache
from autospec.engine.growth import Growth
from autospec.engine.lean.fixed import ChainForm
from autospec.engine.model import CausalLM
from autospec.engine.sampling import Use, uniform_bits
from autospec.engine.termination import KnownDrawn
from autospec.engine.tree import TokenTree

_PIECE = 4  # tokens of a launch whose draft may end sooner: what comes behind its end was run for nothing


def launched_chain(
    model: CausalLM, fresh: Sequence[int], cache: KVCache, how: Growth, vocab_size: int
) -> TokenTree | None:
    """Draft what `autospec.engine.growth.grow` would, the host waiting once for each launch.

    Args:
        model: What drafts.
        fresh: Tokens of the text behind those cached.
        cache: Of one row. Holds the text and the draft but for its last token afterwards.
        how: To grow.
        vocab_size: Tokens to draft lie below.

    Returns:
        The draft; None where it must be drafted token by token, and nothing was done.
    """
    if not how.is_plain_chain:
        return None
    start, stopping, is_greedy = cache.length + len(fresh), how.stopping, how.sampling.is_greedy
    # Launches are alike for all seeds, which only numbers outside depend on.
    sampling = SamplingParams() if is_greedy else replace(how.sampling, seed=0)
    stopping.begin()
    tokens, rows = list[int](), list[torch.Tensor]()
    is_ended = False
    while not is_ended and len(tokens) < how.max_depth:
        left = how.max_depth - len(tokens)
        form = ChainForm(min(left, _PIECE) if stopping.reads_rows else left, vocab_size, sampling, stopping.reads_rows)
        outputs = model.draft_chain(fresh, cache, form, () if is_greedy else _draws(how, len(tokens), form.length))
        if outputs is None:
            if tokens:
                break  # at the end of the room: what there is is a draft
            return None
        num_before = len(tokens)
        for one in outputs[0].tolist():  # the host waits here
            tokens.append(int(one if len(outputs) == 1 else one[0]))
            if stopping.reads_rows and stopping.ends_with(KnownDrawn(one[1], one[2], (one[3], one[4]))):
                is_ended = True
                break
        if not is_greedy:
            rows.append(outputs[1][: len(tokens) - num_before])
        fresh = tokens[-1:]
    cache.crop(0, start + len(tokens) - 1)
    return TokenTree(torch.tensor(tokens), tuple(range(-1, len(tokens) - 1)), torch.cat(rows) if rows else None)


def _draws(how: Growth, first: int, length: int) -> list[int]:
    """Return the numbers by which the tokens of a draft from `first` on are drawn."""
    places = range(first, first + length)
    return [uniform_bits(how.seed, how.position + place, Use.DRAFT, place) for place in places]
