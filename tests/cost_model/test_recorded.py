"""Recorded prompts that are taken for longer or shorter ones, on the profile by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from autospec.config import SpecConfig
from autospec.cost_model import Predictor
from autospec.cost_model.recorded import RecordedSteps
from autospec.errors import MeasurementError
from autospec.profiling import HardwareProfile
from autospec.replay import Simulator, Trace

CHAIN, LOOKUP = SpecConfig("draft", 4), SpecConfig("ngram", 4)


@pytest.mark.parametrize("length", [5, 250])
def test_only_contexts_change(trace: Trace, length: int) -> None:
    own, other = RecordedSteps(Simulator(trace)), RecordedSteps(Simulator(trace), length)
    assert own.lengths.tolist() == [prompt.num_prompt for prompt in trace.prompts]
    assert other.lengths.tolist() == [length] * len(trace.prompts)
    assert other.contexts.min() == own.contexts.min() - 60 + length  # every prompt has 60 tokens
    before, after = own.of(CHAIN), other.of(CHAIN)
    np.testing.assert_array_equal(after.contexts, before.contexts - 60 + length)
    unmoved = replace(after, contexts=before.contexts)
    for name in before.__slots__:
        np.testing.assert_array_equal(getattr(unmoved, name), getattr(before, name))


def test_prompts_of_their_own_length_are_priced_as_they_are(trace: Trace, by_hand: HardwareProfile) -> None:
    own, same = Predictor(Simulator(trace), by_hand), Predictor(Simulator(trace), by_hand, prompt_length=60)
    for one, other in zip(own.predict([CHAIN, LOOKUP]), same.predict([CHAIN, LOOKUP]), strict=True):
        assert one is not None
        assert other is not None
        np.testing.assert_array_equal(one.log_speedups, other.log_speedups)


def test_longer_prompts_are_priced_by_hand(trace: Trace, by_hand: HardwareProfile) -> None:
    """A step and a token of the prompt cost what the profile says: 240 tokens more are 2.4 s a step, 240 s in all."""
    own = Predictor(Simulator(trace), by_hand)
    long = own.for_length(300)
    for config in (SpecConfig(), CHAIN, LOOKUP):
        (before,), (after,) = own.predict([config]), long.predict([config])
        assert before is not None
        assert after is not None
        np.testing.assert_allclose(after.seconds - before.seconds, 240.0 + 2.4 * before.num_steps)


def test_batches_of_longer_prompts_take_longer(trace: Trace, by_hand: HardwareProfile) -> None:
    own = Predictor(Simulator(trace), by_hand)
    (short,), (long,) = (
        own.for_batches(4).log_speedups([LOOKUP]),
        own.for_length(300).for_batches(4).log_speedups([LOOKUP]),
    )
    assert short is not None
    assert long is not None
    assert abs(long) < abs(short)  # the prompts, alike under any configuration, are more of the whole


@pytest.mark.parametrize("length", [0, 500, 10**20])
def test_a_length_that_nothing_is_known_of_is_refused(trace: Trace, by_hand: HardwareProfile, length: int) -> None:
    with pytest.raises(MeasurementError):
        Predictor(Simulator(trace), by_hand, prompt_length=length)
