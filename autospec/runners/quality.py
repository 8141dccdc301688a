"""What an output under a lossy rule is worth, beside the target's own output on the same prompt.

The target reads both outputs once more, outside every timed region. Text behind an end-of-text token counts for
nothing. Bounds over prompts are made elsewhere, in `autospec.policy`; knows no study.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from autospec.config import SamplingParams
from autospec.engine.cache import KVCache
from autospec.engine.sampling import to_probs
from autospec.records import Generation, OutputQuality, Prompt
from autospec.runners.scoring import Scorer, score

if TYPE_CHECKING:
    from autospec.engine.decoder import SpeculativeDecoder

_CHUNK = 256  # tokens whose logits are held at once


@dataclass(frozen=True, slots=True)
class _Reading:
    """What the target thinks of one text: means over its tokens."""

    log_prob: float
    agreement: float


class QualityMeter:
    """Judges outputs.

    - Log-probability: mean over the emitted tokens of log p(token | prompt and the tokens before it), in nats, under
      the target at the temperature of decoding (1 under greedy decoding) without top-k and top-p, which would make
      it infinite. The loss is that of plain decoding's output less that of this one.
    - Agreement: mean over the emitted tokens of the probability, under all filters of decoding, that the target would
      emit the same token at the same place. Under greedy decoding that is the share of tokens that are the target's
      own first choice; under sampling plain decoding's own output does not reach 1 either, so the two are compared.

    Args:
        decoder: Whose target judges.
        scorer: Judges by the task; None for none.
    """

    def __init__(self, decoder: SpeculativeDecoder, scorer: Scorer | None = None) -> None:
        self._decoder, self._scorer = decoder, scorer
        self._read_before: dict[str, tuple[tuple[int, ...], _Reading]] = {}

    def judge(self, prompt: Prompt, own: Generation, baseline: Generation, sampling: SamplingParams) -> OutputQuality:
        """Compare an output with plain decoding's.

        Args:
            prompt: What both answer.
            own: The output in question.
            baseline: Plain decoding's.
            sampling: How both were decoded.

        Raises:
            ScorerError: The scorer raised, or returned no finite number.
        """
        own_ids, baseline_ids = self._ended(own.token_ids), self._ended(baseline.token_ids)
        theirs = self._read_baseline(prompt, baseline.prompt_ids, baseline_ids, sampling)
        ours = theirs if own_ids == baseline_ids else self._read(own.prompt_ids, own_ids, sampling)
        scores = [self.score(prompt, ids) for ids in (own_ids, baseline_ids)]
        return OutputQuality(ours.log_prob, theirs.log_prob, ours.agreement, theirs.agreement, *scores)

    def _ended(self, token_ids: tuple[int, ...]) -> tuple[int, ...]:
        """Return an output up to the first end-of-text token, which is still the target's choice."""
        eos = self._decoder.target.eos_token_ids
        end = next((place for place, token in enumerate(token_ids, start=1) if token in eos), len(token_ids))
        return token_ids[:end]

    def score(self, prompt: Prompt, token_ids: tuple[int, ...]) -> float | None:
        """Return what the scorer says of an output; None without one.

        Raises:
            ScorerError: The scorer raised, or returned no finite number.
        """
        if self._scorer is None:
            return None
        assert self._decoder.text is not None, "prompts were rendered with it"
        return score(self._scorer, prompt, self._decoder.text.decode(token_ids))

    def _read_baseline(
        self, prompt: Prompt, prompt_ids: Sequence[int], token_ids: tuple[int, ...], sampling: SamplingParams
    ) -> _Reading:
        """Read plain decoding's output; it is the same for every configuration, so the last reading is kept."""
        known = self._read_before.get(prompt.prompt_id)
        if known is None or known[0] != token_ids:
            known = (token_ids, self._read(prompt_ids, token_ids, sampling))
            self._read_before[prompt.prompt_id] = known
        return known[1]

    def _read(self, prompt_ids: Sequence[int], token_ids: tuple[int, ...], sampling: SamplingParams) -> _Reading:
        """Run the target over a text, a chunk of its output at a time, so that not all logits are held at once."""
        context = torch.tensor([[*prompt_ids, *token_ids[:-1]]])
        cache, log_probs, agreements = KVCache(context.shape[1]), 0.0, 0.0
        first = len(prompt_ids)
        for start in range(0, len(token_ids), _CHUNK):
            targets = torch.tensor(token_ids[start : start + _CHUNK])
            begin = 0 if start == 0 else first + start - 1
            block = context[:, begin : first + start + len(targets) - 1]
            logits = self._decoder.target.forward(block, cache, num_logits=len(targets))[0]
            targets = targets.to(logits.device)
            log_probs += float(_of_tokens(_plain_log_probs(logits, sampling), targets).sum())
            agreements += float(_of_tokens(to_probs(logits, sampling), targets).sum())
        return _Reading(log_probs / len(token_ids), agreements / len(token_ids))


def _plain_log_probs(logits: Tensor, sampling: SamplingParams) -> Tensor:
    """Return log-probabilities [n, vocab] at the temperature of decoding, unfiltered."""
    scores = logits.float()
    return (scores if sampling.is_greedy else scores / sampling.temperature).log_softmax(dim=-1)


def _of_tokens(rows: Tensor, token_ids: Tensor) -> Tensor:
    """Return from each row [n, vocab] the entry of its token [n]."""
    return rows.gather(-1, token_ids[:, None])[:, 0].double()
