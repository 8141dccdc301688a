"""How good a target and its draft are: bits per byte, verbatim loops, agreement, cost.

Works on loaded models and token ids. Nothing here times a decoding loop; the engine does that.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import DynamicCache, PreTrainedModel

from autospec.clock import Clock
from autospec.engine.forwards import cache_argument

END_ID = 0  # the end-of-text token, which is the first of every tokenizer that `tokens.train_tokenizer` makes


@dataclass(frozen=True, slots=True)
class Continuation:
    """A prompt and what the target wrote behind it, as token ids; an end-of-text token is the last one kept."""

    category: str
    prompt_ids: tuple[int, ...]
    new_ids: tuple[int, ...]


@torch.no_grad()
def bits_per_byte(model: PreTrainedModel, tokenizer: Tokenizer, texts: Sequence[str], window: int) -> float:
    """Return what the model needs to write the texts down, in bits for each byte of them.

    Each text follows an end-of-text token and is cut into windows of `window` tokens that do not see each other.
    """
    nats, num_bytes = 0.0, 0
    for text in texts:
        ids = torch.tensor([END_ID, *tokenizer.encode(text).ids], device=model.device)
        num_bytes += len(text.encode())
        for start in range(0, len(ids) - 1, window):
            piece = ids[start : start + window + 1]
            logits = model(input_ids=piece[None, :-1], use_cache=False).logits[0].float()
            nats += float(torch.nn.functional.cross_entropy(logits, piece[1:], reduction="sum"))
    return nats / math.log(2) / num_bytes


def loop_mask(ids: Sequence[int], min_span: int = 4, min_repeats: int = 3) -> NDArray[np.bool_]:
    """Mark the tokens inside a verbatim loop: a span of at least `min_span` tokens, `min_repeats` times in a row.

    With period s, a stretch of m positions at which `ids[i] == ids[i + s]` repeats a span of s tokens over m + s
    tokens, which is `min_repeats` times or more where m >= (min_repeats - 1) * s.
    """
    array = np.asarray(ids)
    inside = np.zeros(len(array), dtype=np.bool_)
    for span in range(min_span, len(array) // min_repeats + 1):
        same = np.concatenate([[False], array[:-span] == array[span:], [False]]).astype(np.int8)
        edges = np.flatnonzero(np.diff(same))
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            if end - start >= (min_repeats - 1) * span:
                inside[start : end + span] = True
    return inside


def loop_share(rows: Sequence[Sequence[int]]) -> float:
    """Return which share of all tokens of the rows lies inside a verbatim loop."""
    return sum(int(loop_mask(row).sum()) for row in rows) / max(1, sum(map(len, rows)))


@torch.no_grad()
def continue_greedily(
    target: PreTrainedModel, prompts: Sequence[tuple[str, Sequence[int]]], num_new: int, batch_size: int = 16
) -> list[Continuation]:
    """Let the target continue (category, token ids) prompts greedily, prompts of like length together."""
    target.generation_config.eos_token_id = END_ID
    target.generation_config.pad_token_id = END_ID
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i][1]))
    found: dict[int, Continuation] = {}
    for first in range(0, len(order), batch_size):
        members = order[first : first + batch_size]
        longest = max(len(prompts[i][1]) for i in members)
        padded = [[END_ID] * (longest - len(prompts[i][1])) + list(prompts[i][1]) for i in members]
        mask = [[0] * (longest - len(prompts[i][1])) + [1] * len(prompts[i][1]) for i in members]
        written = target.generate(  # type: ignore[operator]  # nn.Module hides what mixins add
            torch.tensor(padded, device=target.device),
            attention_mask=torch.tensor(mask, device=target.device),
            max_new_tokens=num_new,
            do_sample=False,
        )
        for i, row in zip(members, written[:, longest:].tolist(), strict=True):
            kept = row[: row.index(END_ID) + 1] if END_ID in row else row
            found[i] = Continuation(prompts[i][0], tuple(prompts[i][1]), tuple(kept))
    return [found[i] for i in range(len(prompts))]


@torch.no_grad()
def first_position_agreement(draft: PreTrainedModel, continuations: Sequence[Continuation]) -> dict[str, float]:
    """Return, for each category and `overall`, how often the draft's first choice is the target's next token.

    Under greedy decoding this is `position_acceptance[0]` of a chain: a step starts behind committed text, which is
    a prefix of the target's own greedy continuation; the first draft token is the draft's most probable one there,
    and it is accepted exactly where it is the next token of that continuation. Here every position counts once; a
    live run only tests the positions at which its steps happen to start, so its figure differs a little.
    """
    hits: dict[str, list[bool]] = {}
    for one in continuations:
        ids = torch.tensor([[*one.prompt_ids, *one.new_ids]], device=draft.device)
        logits = draft(input_ids=ids[:, :-1], use_cache=False).logits[0, len(one.prompt_ids) - 1 :]
        agreed = (logits.argmax(-1) == ids[0, len(one.prompt_ids) :]).tolist()
        hits.setdefault(one.category, []).extend(agreed)
    shares = {category: sum(values) / len(values) for category, values in sorted(hits.items())}
    everything = [hit for values in hits.values() for hit in values]
    return {"overall": sum(everything) / len(everything), **shares}


@torch.no_grad()
def forward_seconds(
    models: Sequence[PreTrainedModel], context: torch.Tensor, num_repeats: int = 100, num_warmup: int = 10
) -> list[float]:
    """Return the median seconds of a one-token forward of each model behind a context [1, L], measured in turn."""
    caches = [DynamicCache(config=model.config) for model in models]
    options = [{cache_argument(model): cache} for model, cache in zip(models, caches, strict=True)]
    for model, option in zip(models, options, strict=True):
        model(input_ids=context, use_cache=True, **option)
    clock = Clock(context.device)
    seconds: list[list[float]] = [[] for _ in models]
    for repeat in range(num_warmup + num_repeats):
        for values, model, cache, option in zip(seconds, models, caches, options, strict=True):
            started = clock.now()
            model(input_ids=context[:, -1:], use_cache=True, **option)
            if repeat >= num_warmup:
                values.append(clock.now() - started)
            cache.crop(-1)
    return [statistics.median(values) for values in seconds]
