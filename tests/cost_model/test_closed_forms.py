"""The field's formulas against enumeration, and what a trace says of what they assume."""

from __future__ import annotations

import itertools
import math

import pytest

from autospec.cost_model import independence
from autospec.cost_model.closed_forms import (
    best_length,
    expected_speedup,
    expected_tokens,
    expected_tokens_by_position,
    expected_tokens_of_tree,
)
from autospec.errors import ConfigError
from autospec.replay import Simulator, Trace, rank_acceptance


def enumerated(chances: list[float]) -> float:
    """Expected tokens of a step: every pattern of hits, the first miss ending it."""
    total = 0.0
    for hits in itertools.product([True, False], repeat=len(chances)):
        chance = math.prod(one if hit else 1 - one for one, hit in zip(chances, hits, strict=True))
        accepted = next((place for place, hit in enumerate(hits) if not hit), len(hits))
        total += chance * (accepted + 1)
    return total


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("length", [0, 1, 5])
def test_chains_give_what_enumeration_gives(acceptance: float, length: int) -> None:
    assert expected_tokens(acceptance, length) == pytest.approx(enumerated([acceptance] * length))
    if acceptance < 1.0:
        assert expected_tokens(acceptance, length) == pytest.approx(
            (1 - acceptance ** (length + 1)) / (1 - acceptance)
        )


def test_chances_by_position_give_what_enumeration_gives() -> None:
    assert expected_tokens_by_position([0.9, 0.5, 0.25]) == pytest.approx(enumerated([0.9, 0.5, 0.25]))


def test_a_tree_gives_the_chances_of_its_nodes() -> None:
    # 1 + 0.5 + 0.2 + 0.5 * 0.5
    assert expected_tokens_of_tree([0.5, 0.2], [(0,), (1,), (0, 0)]) == pytest.approx(1.95)
    assert expected_tokens_of_tree([0.7], [(0,) * depth for depth in (1, 2, 3)]) == pytest.approx(
        expected_tokens(0.7, 3)
    )


def test_the_speedup_of_theorem_3_8() -> None:
    # acceptance 0.8, five tokens, each a tenth of a forward: 3.68928 / 1.5
    assert expected_speedup(0.8, 5, 0.1) == pytest.approx(2.459520)
    assert best_length(0.8, 0.1) == max(range(17), key=lambda n: (1 - 0.8 ** (n + 1)) / 0.2 / (1 + 0.1 * n))
    assert best_length(0.1, 0.5) == 0


def test_chances_must_be_chances() -> None:
    with pytest.raises(ConfigError, match="0 <= acceptance <= 1"):
        expected_tokens(1.1, 2)


@pytest.mark.parametrize("drafter", ["draft", "ngram"])
def test_the_formula_is_set_beside_what_steps_gave(drafter: str, trace: Trace) -> None:
    from autospec.config import SpecConfig

    simulator = Simulator(trace)
    found = independence(simulator, drafter, (1, 4))
    assert [one.draft_length for one in found.lengths] == [1, 4]
    for one in found.lengths:
        steps = simulator.replay(SpecConfig(drafter, one.draft_length)).per_prompt().sum()
        assert one.replayed == pytest.approx(sum(prompt.num_new - 1 for prompt in trace.prompts) / steps)
        assert one.formula == pytest.approx(sum(found.acceptance**power for power in range(one.draft_length + 1)))
        assert one.error == pytest.approx(one.formula / one.replayed - 1)
    if drafter == "draft":
        assert found.acceptance == pytest.approx(rank_acceptance(trace, "draft")[0], abs=0.05)
    assert found.to_json()["lengths"][0]["draft_length"] == 1
