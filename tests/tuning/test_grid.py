from __future__ import annotations

from autospec.tuning.grid import combinations, values_of
from autospec.tuning.knobs import Choices, Condition, Constraint, Knob, Range

DRAFTER = Knob("drafter", Choices(("draft", "ngram")))
LENGTH = Knob("draft_length", Range(1, 3, 1, False, True))
NGRAM = Knob("ngram_max", Choices((2, 3)), (Condition("drafter", ("ngram",)),))


def test_combinations_come_in_order_and_a_knob_that_does_not_apply_has_no_value() -> None:
    found = list(combinations((DRAFTER, NGRAM), ()))
    assert found == [
        {"drafter": "draft"},
        {"drafter": "ngram", "ngram_max": 2},
        {"drafter": "ngram", "ngram_max": 3},
    ]
    assert list(combinations((), ())) == [{}]


def test_what_breaks_a_constraint_is_left_out_where_all_its_knobs_are_known() -> None:
    found = list(combinations((DRAFTER, LENGTH, NGRAM), (Constraint("ngram_max <= draft_length"),)))
    drafts = [{"drafter": "draft", "draft_length": length} for length in (1, 2, 3)]
    grams = [
        {"drafter": "ngram", "draft_length": length, "ngram_max": most} for length, most in ((2, 2), (3, 2), (3, 3))
    ]
    assert found == drafts + grams


def test_a_continuum_stands_at_its_lower_end() -> None:
    assert values_of(Knob("stop_threshold", Range(0.1, 0.9, None, False, False))) == (0.1,)
    assert values_of(LENGTH) == (1, 2, 3)
