from __future__ import annotations

from types import SimpleNamespace

import pytest

from autospec.config import SpecConfig
from autospec.tuning.pool import OFF, Leaderboard, Pool

FIRST, SECOND = SpecConfig("draft", 4), SpecConfig("draft", 8)


def test_repeats_count_once_for_their_prompt(fakes: SimpleNamespace):
    runner, prompts = fakes.FakeRunner(noise=0.1), fakes.make_workload().tune
    pool, seen = Pool(), []
    for prompt, repeat in [(prompts[0], 0), (prompts[0], 1), (prompts[1], 0)]:
        seen.append(runner.measure(FIRST, prompt, stage="search", trial=1, repeat=repeat))
        pool.add(seen[-1])
    first, second, third = (one.log_speedup for one in seen)
    assert pool.value(FIRST, prompts) == pytest.approx(((first + second) / 2 + third) / 2)
    assert pool.value(FIRST, prompts[1:]) == pytest.approx(third)
    assert pool.value(SECOND, prompts) is None


def test_differences_are_of_prompts_that_both_have(fakes: SimpleNamespace):
    runner, prompts = fakes.FakeRunner(noise=0.0, prompt_spread=0.0), fakes.make_workload().tune
    pool = Pool(runner.measure(FIRST, one, stage="search", trial=1, repeat=0) for one in prompts[:3])
    for one in prompts[1:5]:
        pool.add(runner.measure(SECOND, one, stage="search", trial=2, repeat=0))
    # log speedups are log 2 - 0.02 (length - 6)^2, which is the same for 4 and 8
    assert pool.differences(FIRST, SECOND, prompts) == pytest.approx([0.0, 0.0])
    assert pool.differences(FIRST, OFF, prompts) == pytest.approx([pool.value(FIRST, prompts)] * 3)


def test_only_what_beats_off_is_ranked(fakes: SimpleNamespace):
    runner, prompts = fakes.FakeRunner(noise=0.0), fakes.make_workload(per_category=2).tune
    slow = SpecConfig("ngram", 3)
    pool = Pool(
        runner.measure(config, one, stage="search", trial=1, repeat=0)
        for config in (SECOND, SpecConfig("draft", 6), slow)
        for one in prompts
    )
    board = Leaderboard(pool, prompts)
    assert board.best(prompts).config == OFF
    for config in (SECOND, SpecConfig("draft", 6), slow, OFF):
        board.enter(config)
    assert [one.config for one in board.ranked(prompts)] == [SpecConfig("draft", 6), SECOND]
    assert board.categories == ["code", "prose"]
    assert {one.category for one in board.of_category("code")} == {"code"}
