from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

import pytest

from autospec.comparison import Estimate, bootstrap_interval
from autospec.config import SpecConfig
from autospec.records import Prompt
from autospec.tuning.confirm import Judged, confirm
from autospec.tuning.finalists import Chosen
from autospec.tuning.pool import OFF, Pool

DRAFT, NGRAM = SpecConfig("draft", 6), SpecConfig("ngram", 10)
Values = Mapping[SpecConfig, Mapping[str, float]]


@pytest.fixture
def prompts(fakes: SimpleNamespace) -> tuple[Prompt, ...]:
    return fakes.make_workload(per_category=8).held_out


def pool_of(prompts: tuple[Prompt, ...], values: Values, spread: float = 0.02) -> Pool:
    """Log speedups by configuration and category, half of the prompts above by `spread`, half below."""
    pool = Pool()
    for config, by_category in values.items():
        for prompt in prompts:
            sign = 1 if int(prompt.prompt_id[-1]) % 2 else -1
            value = by_category[prompt.category] + sign * spread
            pool._ratios[config][prompt.prompt_id].append(value)
    return pool


def test_all_claims_stand(prompts: tuple[Prompt, ...]):
    pool = pool_of(prompts, {DRAFT: {"code": 0.3, "prose": 0.5}, NGRAM: {"code": 0.8, "prose": -0.3}}, 0.05)
    result = confirm(Chosen(DRAFT, {"code": NGRAM}), pool, prompts)
    assert result.overall.config == DRAFT
    assert result.config_of("code") == NGRAM
    assert result.config_of("prose") == DRAFT
    assert result.config_of("unknown") == DRAFT
    # policy: 8 prompts at 0.8 and 8 at 0.5, so exp(0.65)
    assert result.ratio.value == pytest.approx(1.9155, abs=1e-4)
    assert result.overall.ratio.value == pytest.approx(1.4918, abs=1e-4)
    assert result.categories["code"].ratio.value == pytest.approx(2.2255, abs=1e-4)
    assert len(result.claims) == 6


def test_cross_checks_compare_each_on_the_prompts_of_the_other(prompts: tuple[Prompt, ...]):
    pool = pool_of(prompts, {DRAFT: {"code": 0.3, "prose": 0.5}, NGRAM: {"code": 0.8, "prose": -0.3}}, 0.05)
    checks = confirm(Chosen(DRAFT, {"code": NGRAM}), pool, prompts).cross_checks
    assert [(one.category, one.config, one.other_config) for one in checks] == [
        ("code", NGRAM, DRAFT),
        ("prose", DRAFT, NGRAM),
    ]
    assert checks[0].ratio.value == pytest.approx(1.6487, abs=1e-4)  # exp(0.8 - 0.3)
    assert checks[1].ratio.value == pytest.approx(2.2255, abs=1e-4)  # exp(0.5 + 0.3)


def test_an_own_configuration_that_does_not_beat_the_overall_one_falls_back_to_it(prompts: tuple[Prompt, ...]):
    pool = pool_of(prompts, {DRAFT: {"code": 0.5, "prose": 0.5}, NGRAM: {"code": 0.45, "prose": 0.0}})
    result = confirm(Chosen(DRAFT, {"code": NGRAM}), pool, prompts)
    assert result.config_of("code") == DRAFT
    assert result.ratio.value == pytest.approx(1.6487, abs=1e-4)  # of what is left, not of what was chosen


def test_a_category_that_gains_nothing_is_off(prompts: tuple[Prompt, ...]):
    pool = pool_of(prompts, {DRAFT: {"code": 0.9, "prose": 0.0}}, 0.05)
    result = confirm(Chosen(DRAFT), pool, prompts)
    assert result.overall.config == DRAFT
    assert result.config_of("prose") == OFF
    assert result.categories["prose"].ratio == Estimate(1.0, 1.0, 1.0, 8)
    assert result.ratio.value == pytest.approx(1.5683, abs=1e-4)  # half of the prompts at 0.9, half off


def test_nothing_stands_where_nothing_is_faster(prompts: tuple[Prompt, ...]):
    pool = pool_of(prompts, {DRAFT: {"code": 0.01, "prose": -0.01}}, 0.2)
    result = confirm(Chosen(DRAFT), pool, prompts)
    assert result.overall.config == OFF
    assert {row.config for row in result.categories.values()} == {OFF}
    assert result.ratio == Estimate(1.0, 1.0, 1.0, 16)


def test_a_configuration_that_is_good_for_one_category_only_stands_there(prompts: tuple[Prompt, ...]):
    pool = pool_of(prompts, {DRAFT: {"code": 0.5, "prose": -0.5}}, 0.02)
    result = confirm(Chosen(DRAFT), pool, prompts)
    assert result.overall.config == OFF
    assert result.config_of("code") == DRAFT
    assert result.config_of("prose") == OFF


def test_an_own_configuration_needs_no_overall_one(prompts: tuple[Prompt, ...]):
    pool = pool_of(prompts, {NGRAM: {"code": 0.5, "prose": -0.5}})
    result = confirm(Chosen(OFF, {"code": NGRAM}), pool, prompts)
    assert result.overall.config == OFF
    assert result.config_of("code") == NGRAM
    assert set(result.claims) == {"policy", "own configuration of code"}


def test_claims_are_judged_together(prompts: tuple[Prompt, ...]):
    """Alone the gain in code would stand (t = 2.6, 7 degrees of freedom, p = 0.036); of three claims it does not."""
    pool = pool_of(prompts, {DRAFT: {"code": 0.05, "prose": -0.05}}, 0.051)
    alone = tuple(prompt for prompt in prompts if prompt.category == "code")
    assert confirm(Chosen(DRAFT), pool, alone).config_of("code") == DRAFT
    assert confirm(Chosen(DRAFT), pool, prompts).config_of("code") == OFF


def test_one_category_makes_one_claim(fakes: SimpleNamespace):
    prompts = fakes.make_workload(("one",), 6).held_out
    result = confirm(Chosen(DRAFT), pool_of(prompts, {DRAFT: {"one": 0.3}}), prompts)
    assert set(result.claims) == {"overall configuration"}
    assert result.categories["one"] == result.overall
    assert result.ratio == result.overall.ratio


def test_without_anything_chosen_nothing_is_claimed(prompts: tuple[Prompt, ...]):
    result = confirm(Chosen(), Pool(), prompts)
    assert result.ratio == Estimate(1.0, 1.0, 1.0, 0)
    assert result.claims == {}
    assert result.cross_checks == ()


def test_the_bootstrap_stands_beside_every_interval_at_its_level(prompts: tuple[Prompt, ...]):
    pool = pool_of(prompts, {DRAFT: {"code": 0.3, "prose": 0.5}, NGRAM: {"code": 0.8, "prose": -0.3}}, 0.05)
    result = confirm(Chosen(DRAFT, {"code": NGRAM}), pool, prompts)
    code = [prompt for prompt in prompts if prompt.category == "code"]
    level = result.claims["own configuration of code"].claim.interval_confidence
    assert result.categories["code"].bootstrap == bootstrap_interval(pool.ratios(NGRAM, code), level)
    assert result.overall.bootstrap == result.claims["overall configuration"].bootstrap
    assert result.bootstrap == result.claims["policy"].bootstrap
    assert result.bootstrap.value == pytest.approx(result.ratio.value)
    assert result.bootstrap.low == pytest.approx(result.ratio.low, rel=0.05)
    assert result.disputes() == []


def test_where_something_fell_back_the_bootstrap_is_of_what_is_left(prompts: tuple[Prompt, ...]):
    pool = pool_of(prompts, {DRAFT: {"code": 0.9, "prose": 0.0}}, 0.05)
    result = confirm(Chosen(DRAFT), pool, prompts)
    assert result.categories["prose"].bootstrap is None
    assert result.bootstrap.value == pytest.approx(1.5683, abs=1e-4)


def test_off_needs_no_bootstrap(prompts: tuple[Prompt, ...]):
    result = confirm(Chosen(), Pool(), prompts)
    assert result.bootstrap is None
    assert result.overall.bootstrap is None


@pytest.mark.parametrize(
    ("values", "by_t", "by_bootstrap"),
    [
        # Two prompts far above six: the spread is all upwards, which t does not know.
        ((0.02, 0.2, 0.03, 0.4, 0.01, 0.05, 0.02, 0.6), "cannot be told apart", "faster"),
        # One prompt far below seven: there may be more of its kind, which t does not know either.
        ((0.3, 0.3, 0.28, 0.32, 0.3, 0.29, 0.31, -0.3), "faster", "cannot be told apart"),
    ],
)
def test_a_disagreement_about_one_is_said_and_t_decides(
    fakes: SimpleNamespace, values: tuple[float, ...], by_t: str, by_bootstrap: str
):
    prompts = fakes.make_workload(("one",), len(values)).held_out
    pool = Pool()
    for prompt, value in zip(prompts, values, strict=True):
        pool._ratios[DRAFT][prompt.prompt_id].append(value)
    result = confirm(Chosen(DRAFT), pool, prompts)
    assert result.overall.config == (DRAFT if by_t == "faster" else OFF)
    (sentence,) = result.disputes()
    assert sentence.startswith(f"overall configuration: {by_t} by Student's t (")
    assert f"but {by_bootstrap} by the bootstrap (" in sentence


def test_a_bootstrap_that_knows_nothing_disputes_nothing(fakes: SimpleNamespace):
    prompts = fakes.make_workload(("one",), 3).held_out
    result = confirm(Chosen(DRAFT), pool_of(prompts, {DRAFT: {"one": 0.5}}), prompts)
    judged = result.claims["overall configuration"]
    assert isinstance(judged, Judged)
    assert judged.stands
    assert (judged.bootstrap.low, judged.bootstrap.high) == (0.0, float("inf"))
    assert result.disputes() == []
    assert result.overall.config == DRAFT
