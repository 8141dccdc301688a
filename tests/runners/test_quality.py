"""The meter on a target of three tokens whose next-token probabilities are written down."""

from __future__ import annotations

import math
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autospec.config import SamplingParams
from autospec.engine.cache import KVCache
from autospec.records import Generation, OutputQuality, Prompt, StepStats
from autospec.runners import quality
from autospec.runners.quality import QualityMeter

# What follows each token: 0 is likely followed by 1, 1 by 2, 2 by 0.
TABLE = torch.tensor([[0.2, 0.7, 0.1], [0.3, 0.1, 0.6], [0.5, 0.25, 0.25]])
PROMPT, GREEDY = Prompt("p", "code", reference="ok"), SamplingParams()


class TableTarget:
    """Answers from the table and keeps what it was asked; a cache must hold what came before."""

    def __init__(self, eos: frozenset[int] = frozenset()) -> None:
        self.eos_token_ids = eos
        self.seen: list[list[int]] = []

    def forward(self, input_ids: torch.Tensor, cache: KVCache, *, num_logits: int) -> torch.Tensor:
        self.seen.append(input_ids[0].tolist())
        cache.advance(input_ids.shape[1])
        assert cache.length <= cache.capacity
        return TABLE.log()[input_ids[:, -num_logits:]]


def judge(
    own: tuple[int, ...], baseline: tuple[int, ...], sampling: SamplingParams = GREEDY, **options: Any
) -> OutputQuality:
    target = options.pop("target", TableTarget())
    text = SimpleNamespace(decode=lambda ids: " ".join(map(str, ids)))
    meter = QualityMeter(SimpleNamespace(target=target, text=text), **options)  # type: ignore[arg-type]
    outputs = [Generation(ids, "", StepStats(), "length", (1, 0)) for ids in (own, baseline)]
    return meter.judge(PROMPT, outputs[0], outputs[1], sampling)


def test_log_probability_and_agreement_by_hand() -> None:
    # Plain decoding behind 0: 1 (0.7), 2 (0.6), 0 (0.5). This output: 0 (0.2), 1 (0.7), 1 (0.1).
    seen = judge((0, 1, 1), (1, 2, 0))
    assert seen.log_prob == pytest.approx(math.log(0.2 * 0.7 * 0.1) / 3)
    assert seen.baseline_log_prob == pytest.approx(math.log(0.7 * 0.6 * 0.5) / 3)
    assert seen.loss == pytest.approx(math.log(0.21 / 0.014) / 3)
    assert seen.agreement == pytest.approx(1 / 3)  # the 1 behind the 0 alone
    assert seen.baseline_agreement == 1.0
    assert (seen.score, seen.baseline_score) == (None, None)


def test_under_sampling_agreement_is_the_filtered_chance_and_log_probability_is_not_filtered() -> None:
    # top_k=2 leaves 0.2 and 0.7 behind 0: 2/9 and 7/9; behind 1: 0.3 and 0.6; the 1 behind 1 is filtered away.
    seen = judge((0, 1, 1), (1, 2, 0), SamplingParams(temperature=1.0, top_k=2))
    assert seen.agreement == pytest.approx((2 / 9 + 7 / 9 + 0.0) / 3)
    # Behind 2 the second and third choice are equal, so both stay.
    assert seen.baseline_agreement == pytest.approx((7 / 9 + 2 / 3 + 0.5) / 3)
    assert seen.log_prob == pytest.approx(math.log(0.2 * 0.7 * 0.1) / 3)


def test_log_probability_is_at_the_temperature_of_decoding() -> None:
    seen = judge((1,), (0,), SamplingParams(temperature=0.5))
    assert seen.log_prob == pytest.approx(math.log(0.49 / 0.54))
    assert seen.baseline_log_prob == pytest.approx(math.log(0.04 / 0.54))


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_chunks_change_nothing_and_read_every_token_once(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = judge((0, 1, 1, 2, 0), (1, 2, 0, 1, 2))
    monkeypatch.setattr(quality, "_CHUNK", chunk)
    target = TableTarget()
    assert judge((0, 1, 1, 2, 0), (1, 2, 0, 1, 2), target=target) == whole
    half = len(target.seen) // 2
    assert list(chain(*target.seen[:half])) == [1, 0, 1, 2, 0, 1]
    assert list(chain(*target.seen[half:])) == [1, 0, 0, 1, 1, 2]


def test_what_stands_behind_the_end_of_text_counts_for_nothing() -> None:
    target = TableTarget(eos=frozenset([2]))
    seen = judge((0, 1, 2, 0, 0), (1, 2, 1, 1, 1), target=target, scorer=lambda prompt, text: float(len(text)))
    assert seen.log_prob == pytest.approx(math.log(0.2 * 0.7 * 0.6) / 3)
    assert seen.baseline_log_prob == pytest.approx(math.log(0.7 * 0.6) / 2)
    assert (seen.score, seen.baseline_score) == (5.0, 3.0)  # of "0 1 2" and "1 2"


def test_the_same_output_loses_exactly_nothing_and_is_read_once() -> None:
    target = TableTarget()
    assert judge((1, 2), (1, 2), target=target).loss == 0.0
    assert len(target.seen) == 1
