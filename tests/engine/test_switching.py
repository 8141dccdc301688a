"""Speculation switched on and off in the middle of a text: the text is the one of a run without, for every drafter."""

from __future__ import annotations

from typing import Any

import pytest

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.decoder import SpeculativeDecoder
from autospec.engine.model import CausalLM
from autospec.engine.session import Job, Session

PROMPT = [10, 11, 12, 13, 10, 11, 12, 13, 14, 10, 11]
SAMPLINGS = [SamplingParams(), SamplingParams(temperature=0.5, top_p=0.95, seed=11)]
NUM_TOKENS = 24


@pytest.fixture(scope="module")
def target(tiny_model: Any) -> CausalLM:
    return CausalLM(tiny_model("llama"), "target")


@pytest.fixture(scope="module")
def small(target: CausalLM, noisy_copy: Any) -> CausalLM:
    return CausalLM(noisy_copy(target.model, 0.04), "small")


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled"])
@pytest.mark.parametrize("num_before", [1, 7, 16])
@pytest.mark.parametrize("begins_with", [True, False], ids=["on-off", "off-on"])
def test_a_text_may_be_continued_with_or_without(
    target: CausalLM, small: CausalLM, simplest: Any, begins_with: bool, num_before: int, sampling: SamplingParams
) -> None:
    decoder = SpeculativeDecoder(target, {simplest.drafter: simplest.make_drafter(small, target)})
    config, off = simplest.config(4), SpecConfig()
    # Random numbers belong to a seed and an absolute position, so a text continued is drawn like one in one go.
    options: dict[str, Any] = {"sampling": sampling, "ignore_eos": True}
    plain = decoder.generate([PROMPT], max_new_tokens=NUM_TOKENS, **options)[0].token_ids
    one, other = (config, off) if begins_with else (off, config)
    first = decoder.generate([PROMPT], config=one, max_new_tokens=num_before, **options)[0].token_ids
    rest = NUM_TOKENS - num_before
    second = decoder.generate([[*PROMPT, *first]], config=other, max_new_tokens=rest, **options)[0].token_ids
    assert first + second == plain


# Longest draft of each step, again and again; None is what the configuration says, 0 is off.
PATTERNS: list[list[int | None]] = [[None, 0], [0, 0, 0, None], [None, None, 0, 1, 0, 2]]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_steps_without_a_draft_between_others_change_nothing(
    target: CausalLM, small: CausalLM, simplest: Any, pattern: list[int | None], sampling: SamplingParams
) -> None:
    plain = SpeculativeDecoder(target).generate(
        [PROMPT], sampling=sampling, max_new_tokens=NUM_TOKENS, ignore_eos=True
    )[0]
    job = Job(tuple(PROMPT), simplest.config(4), sampling, sampling.seed, NUM_TOKENS)
    session = Session(target, simplest.make_drafter(small, target), job)
    written, number = session.prefill(), 0
    session.start_drafter()
    while session.room > 0:
        limit = pattern[number % len(pattern)]
        tokens = session.step(limit)
        assert limit != 0 or len(tokens) == 1
        written += tokens
        number += 1
    assert tuple(written) == plain.token_ids


def test_it_does_speculate(target: CausalLM, small: CausalLM, simplest: Any) -> None:
    """Or the tests above would say little."""
    decoder = SpeculativeDecoder(target, {simplest.drafter: simplest.make_drafter(small, target)})
    stats = decoder.generate([PROMPT], config=simplest.config(4), max_new_tokens=NUM_TOKENS, ignore_eos=True)[0].stats
    assert 0 < stats.num_accepted < stats.num_drafted
