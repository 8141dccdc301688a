from __future__ import annotations

from dataclasses import replace

import pytest

from autospec.config import SpecConfig
from autospec.records import Measurement, StepStats
from autospec.tuning.result import TokenIdentity

DRAFT = SpecConfig("draft", 4)
SAME = Measurement(DRAFT, "p", "code", "search", 1, 0, 1.0, 2.0, 50, 50, 0.1, 0.1, StepStats(), True)


def test_divergence_is_told_with_its_gaps() -> None:
    """Ten outputs: one excused at 4e-5, two different at 0.02 and 0.3, one that merely ended first."""
    different = replace(SAME, identical=False, difference_index=7)
    identity = TokenIdentity.of(
        [
            *[SAME] * 6,
            replace(SAME, num_excused=1, difference_index=2, difference_gap=4e-5),
            replace(different, difference_gap=0.02),
            replace(different, difference_gap=0.3),
            different,
            replace(different, config=SpecConfig(), difference_gap=9.0),  # the baseline against itself
            replace(SAME, identical=None, difference_gap=9.0),  # nothing was promised
        ]
    )
    assert identity.to_json() == {
        "num_compared": 10,
        "num_tokens": 500,
        "num_excused": 1,
        "num_different": 3,
        "median_gap": 0.02,
        "largest_gap": 0.3,
        "divergence_rate": pytest.approx(0.4),
    }


def test_every_output_of_a_batch_counts() -> None:
    group = replace(SAME, num_outputs=8, num_tokens=400)
    identity = TokenIdentity.of([group, replace(group, identical=False, num_different=3, num_excused=1), SAME])
    assert (identity.num_compared, identity.num_tokens) == (17, 850)
    assert (identity.num_different, identity.num_excused) == (3, 1)
    assert identity.divergence_rate == pytest.approx(4 / 17)


def test_without_differences_there_is_no_gap() -> None:
    identity = TokenIdentity.of([SAME])
    assert (identity.median_gap, identity.largest_gap, identity.divergence_rate) == (None, None, 0.0)
    assert TokenIdentity.of([]).divergence_rate == 0.0


@pytest.mark.parametrize(("num_tokens", "too_many"), [(9_999, True), (10_000, False), (20_000, False)])
def test_one_excuse_in_ten_thousand_tokens_is_the_limit(num_tokens: int, too_many: bool) -> None:
    assert TokenIdentity(200, num_tokens, 1, 0).has_too_many_excuses is too_many
    assert not TokenIdentity(200, num_tokens, 0, 5).has_too_many_excuses
