"""Target forwards of several rows, as prompts that are decoded side by side need them."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from autospec.engine.rows import RowTokens
from autospec.profiling.probe import without_collector
from autospec.profiling.samples import Samples, Subject


class BatchVisit:
    """Target forwards of several rows, each with a text of its own; one right behind the other, as no step has them.

    Prompts that are decoded side by side differ in length, and rows that do are attended to in another way than rows
    that stand level: so these do, evenly between half the context and one and a half of it.

    Args:
        subject: What is profiled.
        batch_size: Rows.
        context_length: Tokens before the forward, in the mean of the rows.
        num_tokens: Sizes of the forwards, for each row.
    """

    def __init__(self, subject: Subject, batch_size: int, context_length: int, num_tokens: Sequence[int]) -> None:
        self._target, self._watch, self._context_length = subject.target, subject.watch, context_length
        self._num_tokens, text = sorted(num_tokens), torch.tensor(subject.token_ids)
        most = subject.target.usable_length - context_length - max(num_tokens)
        self._lengths = ragged(context_length, batch_size, most)
        starts = torch.arange(batch_size)[:, None] * max(len(text) // batch_size, 1)
        end = max(self._lengths) + max(num_tokens)
        self._rows = text[(starts + torch.arange(end)) % len(text)]
        self._cache = subject.target.new_cache(end, batch_size)  # of the kind that batches have

    def open(self, samples: Samples) -> None:
        """Run the prompts, timed up to the context."""
        context, longest = self._context_length, max(self._lengths)
        started = self._watch.now()
        self._target.forward(self._rows[:, :context], self._cache, num_logits=1)
        samples.prefills["", len(self._rows), context].append(self._watch.now() - started)
        if longest > context:
            self._target.forward(self._rows[:, context:longest], self._cache, num_logits=1)
        self._rewind()

    def run(self, samples: Samples, order: random.Random) -> None:
        """See `Visit`."""
        sizes = sorted(self._num_tokens, reverse=order.random() < 0.5)  # as the steps of one session
        with without_collector():
            for num_tokens in sizes:
                asked = [
                    RowTokens(row, self._rows[row, length : length + num_tokens].tolist())
                    for row, length in enumerate(self._lengths)
                ]
                started = self._watch.now()
                self._target.forward_rows(asked, self._cache)
                seconds = self._watch.now() - started
                self._rewind()
                samples.forwards[len(asked), self._context_length, num_tokens].append(seconds)

    def _rewind(self) -> None:
        for row, length in enumerate(self._lengths):
            self._cache.crop(row, length)


def ragged(context_length: int, batch_size: int, room: int) -> list[int]:
    """Return lengths of rows, evenly apart, whose mean is the context; given room, the shortest has half of it.

    Args:
        context_length: Tokens.
        batch_size: Rows, at least 2.
        room: By how many tokens the longest may be longer.
    """
    most = min(context_length // 2, max(room, 0))
    return [context_length - most + round(2 * most * row / (batch_size - 1)) for row in range(batch_size)]
