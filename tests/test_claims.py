from __future__ import annotations

import statistics

import numpy as np
import pytest

from autospec.claims import claims, holm
from autospec.comparison import p_value, speedup, verdict


def _ratios(*means: float) -> dict[str, list[float]]:
    return {f"p{number}": [mean] for number, mean in enumerate(means)}


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_never_exceeds_one_and_takes_none() -> None:
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


# p values of a: about 0, of b: 0.02 or so, of c: large. Holm tests them at 0.05 / 3, 0.05 / 2 and 0.05.
def test_claims_take_the_level_of_their_step() -> None:
    families = {
        "c": _ratios(0.5, -0.5, 0.4, -0.3),
        "a": _ratios(0.50, 0.51, 0.49, 0.50),
        "b": _ratios(0.1, 0.2, 0.28, 0.3),
    }
    result = claims(families)
    assert list(result) == ["c", "a", "b"]
    assert result["a"].interval_confidence == pytest.approx(1 - 0.05 / 3)
    assert result["b"].interval_confidence == pytest.approx(1 - 0.05 / 2)
    assert result["c"].interval_confidence == pytest.approx(0.95)
    assert result["b"].estimate == speedup(families["b"], 1 - 0.05 / 2)
    assert result["b"].adjusted_p_value == pytest.approx(2 * p_value(families["b"]))


def test_after_the_first_claim_that_fails_all_take_its_level() -> None:
    result = claims({name: _ratios(0.5, -0.4, 0.3 + shift) for name, shift in (("a", 0.0), ("b", 0.1), ("c", 0.2))})
    assert [claim.interval_confidence for claim in result.values()] == pytest.approx([1 - 0.05 / 3] * 3)


def test_one_claim_is_a_plain_interval() -> None:
    ratios = _ratios(0.1, 0.2, 0.15)
    claim = claims({"all": ratios})["all"]
    assert claim.estimate == speedup(ratios)
    assert claim.adjusted_p_value == claim.p_value == p_value(ratios)


def test_no_claims_no_result() -> None:
    assert claims({}) == {}


def test_intervals_and_adjusted_decisions_always_agree() -> None:
    rng = np.random.default_rng(8)
    decisions = []
    for _ in range(300):
        shifts = rng.choice([0.0, 0.1, 0.25, -0.25], size=4)
        family = {str(i): _ratios(*rng.normal(shift, 0.2, rng.integers(1, 9))) for i, shift in enumerate(shifts)}
        for claim in claims(family).values():
            excluded = verdict(claim.estimate) != "cannot be told apart"
            assert excluded == (claim.adjusted_p_value < 0.05)
            decisions.append(excluded)
    assert 0.1 < statistics.fmean(decisions) < 0.9


# Four claims without any difference: at most 5 of 100 families may hold a false one; unadjusted it would be 18.
def test_false_claims_are_rare_in_a_whole_family() -> None:
    samples = np.random.default_rng(9).normal(0.0, 0.3, (600, 4, 6))
    wrong = 0
    for family in samples:
        result = claims({str(i): _ratios(*sample) for i, sample in enumerate(family)})
        wrong += any(verdict(claim.estimate) != "cannot be told apart" for claim in result.values())
    assert wrong / 600 == pytest.approx(0.05, abs=0.03)
