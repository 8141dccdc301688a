"""Making a draft agree with its target: text the target writes, and the loss that compares the two models.

What a drafter is asked in use is the target's next token on the target's own text, so half of the windows are
continuations the target wrote itself. Knows nothing of tokenizers or files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from autospec.training.trainer import BatchSource


@dataclass(frozen=True, slots=True)
class Continuations:
    """How the target writes: prefixes from the corpus, every other batch greedy, the others sampled."""

    num_tokens: int
    prefix_length: int = 128
    num_new_tokens: int = 129
    batch_size: int = 64
    temperature: float = 0.8

    @property
    def num_batches(self) -> int:
        """Batches that hold at least `num_tokens` tokens."""
        return -(-self.num_tokens // ((self.prefix_length + self.num_new_tokens) * self.batch_size))


def write_continuations(
    target: PreTrainedModel, tokens: NDArray[np.uint16], how: Continuations, seed: int
) -> Iterator[NDArray[np.uint16]]:
    """Yield batches of rows of prefix and continuation, [batch_size, prefix_length + num_new_tokens].

    A document's end does not end a row: the corpus goes on with another document there, and so does the target.
    """
    source = np.random.default_rng([seed, 7])
    target.generation_config.eos_token_id = None
    target.generation_config.pad_token_id = 0
    for index in range(how.num_batches):
        torch.manual_seed(seed + index)
        starts = source.integers(len(tokens) - how.prefix_length, size=how.batch_size)
        prefixes = np.stack([tokens[start : start + how.prefix_length].astype(np.int64) for start in starts])
        input_ids = torch.from_numpy(prefixes).to(target.device)
        sampling = (
            {"do_sample": True, "temperature": how.temperature, "top_k": 0} if index % 2 else {"do_sample": False}
        )
        written = target.generate(  # type: ignore[operator]  # nn.Module hides what mixins add
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=how.num_new_tokens,
            **sampling,
        )
        yield written.cpu().numpy().astype(np.uint16)


class Rows:
    """Whole rows in a seeded order, another in each pass, as a `BatchSource`; rows keep their own length."""

    def __init__(self, rows: NDArray[np.uint16], seed: int) -> None:
        self._rows, self._seed = rows, seed

    def batch(self, tokens_seen: int, batch_tokens: int, length: int) -> NDArray[np.int64]:
        """Return as many rows as `batch_tokens` hold; `length` is that of the other source of a mixture."""
        num_rows, row_length = self._rows.shape
        count = batch_tokens // (row_length - 1)
        first = tokens_seen // (row_length - 1)
        picked = []
        for index in range(first, first + count):
            lap, place = divmod(index, num_rows)
            picked.append(np.random.default_rng([self._seed, lap]).permutation(num_rows)[place])
        return self._rows[picked].astype(np.int64)


class Alternating:
    """Batches from two sources in turn."""

    def __init__(self, first: BatchSource, second: BatchSource) -> None:
        self._sources = (first, second)

    def batch(self, tokens_seen: int, batch_tokens: int, length: int) -> NDArray[np.int64]:
        """Return the next batch of the source whose turn it is."""
        turn, which = divmod(tokens_seen // batch_tokens, 2)
        return self._sources[which].batch(turn * batch_tokens, batch_tokens, length)


class DistillationLoss:
    """Forward divergence of the draft from the target, plus cross-entropy to the target's most probable token.

    The divergence makes sampling agree; the cross-entropy buys greedy agreement, which only asks for the first place.
    """

    def __init__(self, target: PreTrainedModel, greedy_weight: float) -> None:
        self._target = target.eval().requires_grad_(False)
        self._greedy_weight = greedy_weight

    def __call__(self, draft: PreTrainedModel, windows: Tensor) -> Tensor:  # windows [B, L + 1]
        """Return the mean over all positions, in nats."""
        inputs = windows[:, :-1]
        with torch.autocast(windows.device.type, torch.bfloat16):
            with torch.no_grad():
                target_logits = self._target(input_ids=inputs, use_cache=False).logits
            draft_logits = draft(input_ids=inputs, use_cache=False).logits
        target_logprobs = target_logits.float().log_softmax(-1).flatten(0, 1)  # [B * L, vocab]
        draft_logprobs = draft_logits.float().log_softmax(-1).flatten(0, 1)
        divergence = (target_logprobs.exp() * (target_logprobs - draft_logprobs)).sum(-1).mean()
        greedy = torch.nn.functional.nll_loss(draft_logprobs, target_logprobs.argmax(-1))
        loss: Tensor = divergence + self._greedy_weight * greedy
        return loss
