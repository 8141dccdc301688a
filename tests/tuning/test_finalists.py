from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from autospec.config import SpecConfig
from autospec.errors import BaselineError, MeasurementError, ModelError, WorkloadError
from autospec.tuning.events import Event, Warned
from autospec.tuning.finalists import Chosen, Finalists, choose, measure_all, pick_finalists
from autospec.tuning.log import MeasurementLog
from autospec.tuning.measuring import Measurer
from autospec.tuning.pool import OFF, Leaderboard, Pool

DRAFT, NGRAM, SLOW = SpecConfig("draft", 6), SpecConfig("ngram", 10), SpecConfig("draft", 1)


def speed(config: SpecConfig, category: str) -> float:
    """`ngram` wins on code (2.2 against 1.5) and loses on prose (0.7 against 1.6)."""
    if config == SLOW:
        return 1.1
    if config.drafter == "ngram":
        return 2.2 if category == "code" else 0.7
    return 1.5 if category == "code" else 1.6


@pytest.fixture
def log(tmp_path: Path) -> Iterator[MeasurementLog]:
    log = MeasurementLog(tmp_path / "measurements.jsonl")
    yield log
    log.close()


@pytest.fixture
def measurer(fakes: SimpleNamespace, log: MeasurementLog) -> Measurer:
    runner = fakes.FakeRunner(speed=speed)
    return Measurer(runner, log, lambda event: None, runner.now)


def test_finalists_are_the_best_of_all_and_of_each_category(fakes: SimpleNamespace):
    prompts = fakes.make_workload(per_category=4).tune
    runner = fakes.FakeRunner(speed=speed, noise=0.0, prompt_spread=0.0)
    pool = Pool(
        runner.measure(config, one, stage="search", trial=1, repeat=0)
        for config in (DRAFT, NGRAM, SLOW)
        for one in prompts
    )
    board = Leaderboard(pool, prompts)
    for config in (DRAFT, NGRAM, SLOW):
        board.enter(config)
    finalists = pick_finalists(board, 1)
    assert finalists.overall == (DRAFT,)
    assert finalists.by_category == {"code": (NGRAM, DRAFT), "prose": (DRAFT, SLOW)}
    assert finalists.of_prompt(prompts[0]) == (DRAFT, NGRAM)
    assert Finalists.from_json(finalists.to_json()) == finalists


def test_finalists_over_all_are_those_that_are_believed_to_be_best(fakes: SimpleNamespace):
    prompts = fakes.make_workload(per_category=2).tune
    runner = fakes.FakeRunner(speed=speed, noise=0.0, prompt_spread=0.0)
    pool = Pool(runner.measure(one, p, stage="search", trial=1, repeat=0) for one in (DRAFT, SLOW) for p in prompts)
    board = Leaderboard(pool, prompts)
    board.enter(DRAFT)
    board.enter(SLOW)
    assert pick_finalists(board, 1).overall == (DRAFT,)
    believed = {DRAFT: 0.1}
    assert pick_finalists(board, 1, believed=lambda config, mean: believed.get(config, 2 * mean)).overall == (SLOW,)


def test_a_category_gets_its_own_only_where_it_beats_the_overall_one(fakes: SimpleNamespace, measurer: Measurer):
    prompts = fakes.make_workload(per_category=6).tune
    finalists = Finalists((DRAFT, SLOW), {"code": (NGRAM, DRAFT), "prose": (DRAFT, SLOW)})
    measured, failed = measure_all(measurer, prompts, finalists, "finalist", 1)
    chosen = choose(finalists, Pool(measured), prompts, failed)
    assert chosen == Chosen(DRAFT, {"code": NGRAM})
    assert Chosen.from_json(chosen.to_json()) == chosen
    assert chosen.of_category("prose") == DRAFT


def test_a_lead_within_noise_is_inherited(fakes: SimpleNamespace):
    prompts = fakes.make_workload(per_category=4).tune
    pool = Pool()
    for prompt in prompts:
        for config, value in ((DRAFT, 0.5), (NGRAM, 0.51 if prompt.category == "code" else 0.0)):
            spread = {0: 0.1, 1: -0.1, 2: 0.1, 3: -0.1}[int(prompt.prompt_id[-1])] if config == NGRAM else 0.0
            pool._ratios[config][prompt.prompt_id].append(value + spread)
    finalists = Finalists((DRAFT,), {"code": (NGRAM,), "prose": (DRAFT,)})
    assert choose(finalists, pool, prompts, ()) == Chosen(DRAFT, {})


def test_off_where_nothing_pays_on_fresh_prompts(fakes: SimpleNamespace, log: MeasurementLog):
    runner = fakes.FakeRunner(speed=lambda config, category: 0.9)
    measurer = Measurer(runner, log, lambda event: None, runner.now)
    prompts = fakes.make_workload(per_category=4).tune
    finalists = Finalists((DRAFT,), {"code": (NGRAM,), "prose": (DRAFT,)})
    measured, failed = measure_all(measurer, prompts, finalists, "finalist", 1)
    assert choose(finalists, Pool(measured), prompts, failed) == Chosen(OFF, {})


def test_what_fails_now_is_not_chosen(fakes: SimpleNamespace, log: MeasurementLog):
    runner = fakes.FakeRunner(speed=speed, failures={"ngram": MeasurementError("out of memory")})
    measurer = Measurer(runner, log, lambda event: None, runner.now)
    prompts = fakes.make_workload(per_category=4).tune
    finalists = Finalists((NGRAM, DRAFT), {"code": (NGRAM,), "prose": (DRAFT,)})
    measured, failed = measure_all(measurer, prompts, finalists, "finalist", 2)
    assert failed == {NGRAM}
    assert [failure.reason for failure in log.failures] == ["MeasurementError: out of memory"]
    assert choose(finalists, Pool(measured), prompts, failed).overall == DRAFT
    assert Chosen(NGRAM, {"code": DRAFT, "prose": NGRAM}).without(failed) == Chosen(OFF, {"code": DRAFT})


@pytest.mark.parametrize("repeats", [1, 2])
def test_a_failure_after_the_search_is_told_once(fakes: SimpleNamespace, log: MeasurementLog, repeats: int):
    runner = fakes.FakeRunner(speed=speed, failures={"ngram": ModelError("no kernel")})
    told: list[Event] = []
    measurer = Measurer(runner, log, told.append, runner.now)
    prompts = fakes.make_workload(("one",), 3).held_out
    _, failed = measure_all(measurer, prompts, Chosen(NGRAM, {"one": DRAFT}), "confirm", repeats)
    assert failed == {NGRAM}
    message = "ngram x10 n1-3 exact failed in the confirmation, on prompt 'held_out-one-0': ModelError: no kernel"
    assert [event for event in told if isinstance(event, Warned)] == [Warned(message)]


@pytest.mark.parametrize("error", [BaselineError("out of memory"), WorkloadError("the template refuses")])
def test_what_is_no_fault_of_the_configuration_is_not_booked_as_one(
    fakes: SimpleNamespace, log: MeasurementLog, error: Exception
):
    runner = fakes.FakeRunner(speed=speed, failures={"ngram": error})
    measurer = Measurer(runner, log, lambda event: None, runner.now)
    with pytest.raises(type(error), match=str(error)):
        measure_all(measurer, fakes.make_workload(("one",), 3).held_out, Chosen(NGRAM), "confirm", 1)
    assert log.failures == []


def test_the_order_of_configurations_rotates(fakes: SimpleNamespace, measurer: Measurer):
    prompts = fakes.make_workload(("one",), 3).tune
    measure_all(measurer, prompts, Chosen(DRAFT, {"one": NGRAM, "two": SLOW}), "confirm", 1)
    order = [one.config for one in measurer.log.measurements]
    assert order == [DRAFT, NGRAM, SLOW, NGRAM, SLOW, DRAFT, SLOW, DRAFT, NGRAM]


def test_choice_is_on_the_log_scale(fakes: SimpleNamespace):
    """3.0 and 0.5 are worse than 1.3 and 1.3, though their arithmetic mean is higher."""
    prompts = fakes.make_workload(("one",), 2).tune
    pool = Pool()

    def fill(config: SpecConfig, values: list[float]) -> None:
        for prompt, value in zip(prompts, values, strict=True):
            pool._ratios[config][prompt.prompt_id].append(math.log(value))

    fill(NGRAM, [3.0, 0.5])
    fill(DRAFT, [1.3, 1.3])
    assert choose(Finalists((NGRAM, DRAFT), {}), pool, prompts, ()).overall == DRAFT
