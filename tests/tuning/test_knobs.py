from __future__ import annotations

import numpy as np
import pytest

from autospec.tuning.knobs import Choices, Constraint, Range

RNG = np.random.default_rng(0)


def test_a_log_range_draws_small_values_as_often_as_large_ones():
    domain = Range(1, 64, 1, True, True)
    drawn = [domain.draw(np.random.default_rng(seed)) for seed in range(400)]
    assert 0.4 < sum(value <= 8 for value in drawn) / 400 < 0.65  # uniform drawing would give 0.125
    assert min(drawn) == 1


def test_contains_knows_the_grid():
    domain = Range(0.1, 0.9, 0.2, False, False)
    assert domain.contains(0.1 + 0.2 + 0.2)
    assert not domain.contains(0.2)
    assert not domain.contains(1.1)
    assert not domain.contains("0.3")


def test_true_is_not_one():
    assert not Choices((1, 2)).contains(True)


def test_a_constraint_holds_where_a_knob_does_not_apply():
    constraint = Constraint("ngram_min <= ngram_max")
    assert constraint.holds({"ngram_min": 4})
    assert not constraint.holds({"ngram_min": 4, "ngram_max": 2})


@pytest.mark.parametrize("expression", ["a.b < 1", "f(a)", "[x for x in a]", "a ** 9", "lambda: a", "a if a else a"])
def test_a_constraint_computes_nothing_but_comparisons(expression: str):
    with pytest.raises(ValueError, match="a constraint must"):
        Constraint(expression)


def test_membership_and_arithmetic():
    constraint = Constraint("drafter in ['a', 'b'] or 2 * draft_length - 1 > 6")
    assert constraint.holds({"drafter": "a", "draft_length": 1})
    assert constraint.holds({"drafter": "c", "draft_length": 4})
    assert not constraint.holds({"drafter": "c", "draft_length": 3})
