from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.drafters import Drafter, NgramDrafter, RecyclingDrafter, SmallModelDrafter
from autospec.engine.model import CausalLM
from autospec.engine.session import Job, Session

PROMPT = (5, 9, 5, 9, 5)


@pytest.fixture
def target(tiny_model: Any) -> CausalLM:
    return CausalLM(tiny_model("llama"), "target")


def job(config: SpecConfig) -> Job:
    return Job(PROMPT, config, SamplingParams(), 0, 20)


def drafters(target: CausalLM, tiny_model: Any) -> Iterator[tuple[str, Drafter]]:
    yield "ngram", NgramDrafter()
    yield "recycling", RecyclingDrafter()
    yield "draft", SmallModelDrafter(CausalLM(tiny_model("llama", seed=3), "draft"), target.vocab_size)


def test_a_rewound_session_writes_the_same_again(target: CausalLM, tiny_model: Any) -> None:
    for name, drafter in drafters(target, tiny_model):
        session = Session(target, drafter, job(SpecConfig(name, 3)))
        first = session.prefill()
        session.start_drafter()
        steps = [session.step() for _ in range(4)]
        session.rewind()
        assert session.num_tokens == len(PROMPT) + len(first)
        assert session.room == 20 - len(first)
        assert [session.step() for _ in range(4)] == steps, name
        assert session.stats.num_steps == 4


def test_twins_share_a_prefill_and_take_turns(target: CausalLM, tiny_model: Any) -> None:
    plain = Session(target, None, job(SpecConfig()))
    plain.prefill()
    expected = [plain.step()[0] for _ in range(6)]
    for name, drafter in drafters(target, tiny_model):
        if drafter.needs.anything:
            continue
        twin = plain.twin(drafter, job(SpecConfig(name, 2)))
        twin.rewind()
        written = [token for _ in range(6) for token in twin.step()]
        assert written[:6] == expected, name
    plain.rewind()
    assert [plain.step()[0] for _ in range(6)] == expected


def test_a_step_may_be_told_how_deep_to_draft(target: CausalLM, tiny_model: Any) -> None:
    (_, drafter) = list(drafters(target, tiny_model))[-1]
    session = Session(target, drafter, job(SpecConfig("draft", 4)))
    session.prefill()
    session.start_drafter()
    session.step(1)
    assert session.stats.num_drafted == 1
    session.step(3)
    assert session.stats.num_drafted == 4


def test_phases_are_told_apart_by_the_clock_that_was_given(target: CausalLM) -> None:
    ticks = count()
    session = Session(target, NgramDrafter(), job(SpecConfig("ngram", 2)), now=lambda: float(next(ticks)))
    session.prefill()
    session.start_drafter()
    session.step()
    stats = session.stats
    # every phase begins at one reading and ends at the next; drafting began once more, with the drafter
    assert (stats.prefill_seconds, stats.draft_seconds, stats.verify_seconds, stats.accept_seconds) == (1, 2, 1, 1)
