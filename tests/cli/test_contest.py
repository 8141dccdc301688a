from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest

from autospec.cli import contest
from autospec.cli.bench_report import report_lines, result_document
from autospec.cli.contest import Contender
from autospec.config import SpecConfig
from autospec.errors import MeasurementError
from autospec.records import Measurement, Prompt

DRAFT4 = SpecConfig(drafter="draft", draft_length=4)
NGRAM8 = SpecConfig(drafter="ngram", draft_length=8)
SPEEDS = {DRAFT4: {"code": 2.0, "talk": 2.0}, NGRAM8: {"code": 1.0, "talk": 3.0}}


class FakeRunner:
    """Knows how fast each configuration is in each category, with a spread of 1 % over prompts."""

    def __init__(self, measurement: Callable[..., Measurement], failing: Sequence[SpecConfig] = ()) -> None:
        self.measurement, self.failing = measurement, failing
        self.order: list[tuple[str, str, int]] = []

    def measure(self, config: SpecConfig, prompt: Prompt, *, stage: str, trial: int, repeat: int) -> Measurement:
        self.order.append((config.drafter, prompt.prompt_id, repeat))
        if config in self.failing:
            raise MeasurementError("out of memory")
        spread = 1.0 + 0.01 * int(prompt.prompt_id[-1])
        return self.measurement(config, prompt, SPEEDS[config][prompt.category] * spread, stage, repeat)


@pytest.fixture
def contenders() -> list[Contender]:
    by_category = {"code": DRAFT4, "talk": NGRAM8}
    return [
        Contender("policy", lambda prompt: by_category[prompt.category]),
        Contender("draft", lambda prompt: DRAFT4),
        Contender("ngram", lambda prompt: NGRAM8),
    ]


def test_equal_picks_share_a_measurement_and_the_order_rotates(
    contenders: list[Contender], prompts: tuple[Prompt, ...], measurement: Callable[..., Measurement]
) -> None:
    runner, seen = FakeRunner(measurement), list[Measurement]()
    contest.measure(contenders, prompts[:2], runner, 2, seen.append)
    assert runner.order == [
        ("draft", "code-0", 0),
        ("ngram", "code-0", 0),
        ("draft", "talk-0", 0),
        ("ngram", "talk-0", 0),
        ("ngram", "code-0", 1),
        ("draft", "code-0", 1),
        ("ngram", "talk-0", 1),
        ("draft", "talk-0", 1),
    ]
    assert len(seen) == 8
    assert {one.stage for one in seen} == {"bench"}
    assert contenders[0].measurements["code-0"] == contenders[1].measurements["code-0"]


def test_verdicts_against_plain_decoding_over_all_and_by_category(
    contenders: list[Contender], prompts: tuple[Prompt, ...], measurement: Callable[..., Measurement]
) -> None:
    contest.measure(contenders, prompts, FakeRunner(measurement), 1, lambda one: None)
    found = {(one.first, one.category): one for one in contest.against_baseline(contenders, prompts)}
    assert set(found) == {
        (name, category) for name in ("policy", "draft", "ngram") for category in ("", "code", "talk")
    }
    mean_spread = (1.00 * 1.01 * 1.02) ** (1 / 3)
    assert found["policy", "talk"].claim.estimate.value == pytest.approx(3.0 * mean_spread)
    assert found["policy", "talk"].verdict == "faster"
    assert found["policy", ""].claim.estimate.value == pytest.approx(math.sqrt(6.0) * mean_spread)
    assert found["ngram", "code"].verdict == "cannot be told apart"
    assert found["policy", ""].claim.estimate.num_prompts == 6


def test_verdicts_against_each_other(
    contenders: list[Contender], prompts: tuple[Prompt, ...], measurement: Callable[..., Measurement]
) -> None:
    contest.measure(contenders, prompts, FakeRunner(measurement), 1, lambda one: None)
    found = {(one.first, one.second, one.category): one for one in contest.against_each_other(contenders, prompts)}
    assert found["policy", "draft", "talk"].claim.estimate.value == pytest.approx(1.5)
    assert found["policy", "draft", "talk"].verdict == "faster"
    assert found["policy", "draft", "code"].claim.estimate.value == pytest.approx(1.0)
    assert found["policy", "draft", "code"].verdict == "cannot be told apart"
    assert found["draft", "ngram", "talk"].verdict == "slower"
    assert len(found) == 9


def test_a_failing_configuration_takes_its_contenders_out_with_the_reason(
    contenders: list[Contender], prompts: tuple[Prompt, ...], measurement: Callable[..., Measurement]
) -> None:
    runner = FakeRunner(measurement, failing=[NGRAM8])
    contest.measure(contenders, prompts, runner, 1, lambda one: None)
    assert [contender.failure for contender in contenders] == ["out of memory", "", "out of memory"]
    assert sum(drafter == "ngram" for drafter, _, _ in runner.order) == 2  # one for each contender that picked it
    assert {one.first for one in contest.against_baseline(contenders, prompts)} == {"policy", "draft"}


def test_nothing_measured_claims_nothing(contenders: list[Contender], prompts: tuple[Prompt, ...]) -> None:
    assert contest.against_baseline(contenders, prompts) == []
    assert contest.against_each_other(contenders, prompts) == []


def test_one_category_has_one_row(
    contenders: list[Contender], prompts: tuple[Prompt, ...], measurement: Callable[..., Measurement]
) -> None:
    code = [prompt for prompt in prompts if prompt.category == "code"]
    contest.measure(contenders, code, FakeRunner(measurement), 1, lambda one: None)
    assert [one.category for one in contest.against_baseline(contenders[1:2], code)] == [""]


def test_the_report_and_the_document_say_the_same(
    contenders: list[Contender], prompts: tuple[Prompt, ...], measurement: Callable[..., Measurement]
) -> None:
    contest.measure(contenders, prompts, FakeRunner(measurement), 2, lambda one: None)
    contenders[2].failure = "out of memory"
    alone, pairs = contest.against_baseline(contenders, prompts), contest.against_each_other(contenders, prompts)
    lines = list(report_lines(contenders, alone, pairs))
    (row,) = [line for line in lines if line.startswith("draft ") and "tokens" not in line and "x [" in line][:1]
    assert row.split()[1:4] == ["6", "20.2", "10.0"]
    assert "ngram was taken out: out of memory" in lines
    assert sum("cannot be told apart" in line for line in lines) == sum(
        one.verdict == "cannot be told apart" for one in [*alone, *pairs]
    )
    document = result_document(contenders, alone, pairs)
    assert document["contenders"][0]["configs"] == sorted([DRAFT4.short(), NGRAM8.short()])
    assert document["contenders"][1]["num_measurements"] == 12
    assert document["against_baseline"][0]["second"] == "baseline"
    assert document["against_baseline"][0]["category"] == "all"
    assert document["against_each_other"][0]["verdict"] == pairs[0].verdict
