"""Batches by hand: 4 rows of n tokens take 10 + 4 n + c / 100, a row alone 10 + n + c / 100, the host 0.5."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from autospec.config import SpecConfig
from autospec.cost_model import Predictor, StepCosts
from autospec.cost_model.batches import BatchPrices
from autospec.cost_model.recorded import RecordedSteps
from autospec.errors import MeasurementError
from autospec.profiling import HardwareProfile
from autospec.replay import Expectation, Simulator, Trace


def planted(config: SpecConfig, nodes: Sequence[Sequence[int]], calls: int = 0) -> Expectation:
    """The steps of some prompts, each behind 101 tokens; all their drafts run so many forwards."""
    prompts = np.repeat(np.arange(len(nodes)), [len(own) for own in nodes])
    counts = np.array([one for own in nodes for one in own], dtype=np.int16)
    firsts = np.concatenate([[1.0] + [0.0] * (len(own) - 1) for own in nodes]) if calls else np.zeros(len(counts))
    return Expectation(
        config=config,
        prompts=prompts,
        contexts=np.full(len(counts), 101),
        nodes=counts,
        depth=counts,
        calls=np.full(len(counts), calls, dtype=np.int16),
        run=np.full(len(counts), max(calls - 1, 0), dtype=np.int16),
        chances=np.ones(len(counts)),
        firsts=firsts,
        kept=np.zeros(len(counts)),
        num_prompts=len(nodes),
        is_exact=True,
    )


def prices(by_hand: HardwareProfile, monkeypatch: pytest.MonkeyPatch, runs: dict[SpecConfig, Any]) -> BatchPrices:
    """Four prompts of 100 tokens, of which every group holds all."""
    monkeypatch.setattr("autospec.cost_model.recorded.expected", lambda simulator, config: runs[config])

    class Together:
        shared = begin = expand_all = end = None

    prompts = [SimpleNamespace(num_prompt=100)] * 4
    trace = SimpleNamespace(contexts=np.full(4, 101), prompts=prompts, prompt_of=np.arange(4))
    simulator: Any = SimpleNamespace(trace=trace, drafters={"draft": Together()})
    costs = StepCosts(by_hand, {"draft"}, np.array([100, 300]))
    return BatchPrices(RecordedSteps(simulator), costs, 4)


def test_a_group_takes_its_steps_together_until_the_last_is_done(
    by_hand: HardwareProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    off, lookup, draft = SpecConfig(), SpecConfig("ngram", 3), SpecConfig("draft", 2)
    runs = {
        off: planted(off, [[0] * 3] * 4),
        # All four rows verify 4 tokens in the first step; then the first row alone.
        lookup: planted(lookup, [[3, 3], [3], [3], [3]]),
        draft: planted(draft, [[2]] * 4, calls=2),
    }
    made = prices(by_hand, monkeypatch, runs)
    plain = 4 * 100.0 + 3 * (15.0 + 4 * 0.5)  # 10 + 4 + 1 in the target, and four hosts
    assert made._plain.tolist() == pytest.approx([plain] * 16)
    of_lookup = 400.0 + (27.0 + 4 * 0.75) + (15.0 + 0.75)  # target, host 0.5 and lookup 0.25 of each row
    # Two forwards of four rows: 2 + 3 * 0.25; around 0.5 + 0.125 of each row; the first draft takes 2 more of each.
    of_draft = 400.0 + 4 * 2.0 + 23.0 + 4 * 0.625 + 2.75
    found = made.log_speedups([lookup, draft])
    assert found == pytest.approx([np.log(plain / of_lookup), np.log(plain / of_draft)])


def test_what_was_not_measured_or_has_chances_is_not_told(
    by_hand: HardwareProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    off, wide, drawn = SpecConfig(), SpecConfig("ngram", 30), SpecConfig("ngram", 2)
    expected = planted(drawn, [[2]] * 4)
    runs = {
        off: planted(off, [[0]] * 4),
        wide: planted(wide, [[30]] * 4),
        drawn: Expectation(**{**{name: getattr(expected, name) for name in expected.__slots__}, "is_exact": False}),
    }
    assert prices(by_hand, monkeypatch, runs).log_speedups([wide, drawn]) == [None, None]


def test_longer_drafts_pay_less_beside_others(by_hand: HardwareProfile, trace: Trace) -> None:
    alone = Predictor(Simulator(trace), by_hand)
    short, long = SpecConfig("ngram", 1), SpecConfig("ngram", 7)
    of_one = [one.log_speedup for one in alone.predict([short, long]) if one is not None]
    of_four = alone.for_batches(4).log_speedups([short, long])
    assert None not in of_four
    assert of_four[1] - of_four[0] < of_one[1] - of_one[0]  # type: ignore[operator]


@pytest.mark.parametrize("size", [7, 16])
def test_batches_that_cannot_be_told_are_refused(by_hand: HardwareProfile, trace: Trace, size: int) -> None:
    with pytest.raises(MeasurementError):
        Predictor(Simulator(trace), by_hand).for_batches(size)
