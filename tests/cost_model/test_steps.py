"""Steps worked out by hand: a forward of n tokens behind c takes 10 + n + c / 100, the host 0.5."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from autospec.config import SpecConfig
from autospec.cost_model import StepCosts
from autospec.errors import MeasurementError
from autospec.profiling import HardwareProfile
from autospec.profiling.curves import Timing
from autospec.replay import Replay


def steps(config: SpecConfig, **counts: list[int]) -> Replay:
    """One prompt's steps behind 101 tokens, 100 of them cached; counts that are not given are 0."""
    num = len(next(iter(counts.values())))
    names = ("nodes", "depth", "accepted", "tested", "calls", "run")
    arrays: dict[str, Any] = {name: np.array(counts.get(name, [0] * num), dtype=np.int16) for name in names}
    return Replay(
        config, np.zeros(num, dtype=np.int64), np.full(num, 101), dropped=np.zeros(1, dtype=np.int64), **arrays
    )


@pytest.fixture
def costs(by_hand: HardwareProfile) -> StepCosts:
    return StepCosts(by_hand, {"draft"}, np.array([100, 300]))


def test_plain_steps_are_those_of_the_plain_loop(costs: StepCosts) -> None:
    assert costs.steps(steps(SpecConfig(), nodes=[0, 0])).tolist() == pytest.approx([12.5, 12.5])


def test_a_chain_is_verified_with_its_root_and_drafted_forward_by_forward(costs: StepCosts) -> None:
    # 10 + 5 + 1 in the target, 0.5 in the host, 0.125 because the drafter is there, 4 forwards of 1
    chain = steps(SpecConfig("draft", 4), nodes=[4, 0], depth=[4, 0], calls=[4, 0], run=[3, 0])
    assert costs.steps(chain).tolist() == pytest.approx([16.0 + 0.5 + 0.125 + 4.0, 12.0 + 0.5 + 0.125])


def test_sizes_between_measured_ones_lie_on_lines(costs: StepCosts) -> None:
    chain = steps(SpecConfig("draft", 6), nodes=[5], depth=[5], calls=[5], run=[4])
    assert costs.steps(chain).tolist() == pytest.approx([17.0 + 0.5 + 0.125 + 5.0])


def test_a_tree_pays_for_the_rows_of_its_forwards(costs: StepCosts) -> None:
    # two forwards of two rows behind the first: 3 + 2 * 0.25, and 6 nodes with the root
    tree = SpecConfig("draft", 3, tree_shape="beam", tree_width=2, tree_nodes=6)
    grown = steps(tree, nodes=[6], depth=[3], calls=[3], run=[4])
    assert costs.steps(grown).tolist() == pytest.approx([18.0 + 0.5 + 0.125 + 3.5])
    # rows between two widths: one and a half on average
    grown = steps(tree, nodes=[6], depth=[3], calls=[3], run=[3])
    assert costs.steps(grown).tolist() == pytest.approx([18.0 + 0.5 + 0.125 + 3.25])


def test_a_lookup_costs_the_same_whether_it_finds_something_or_not(costs: StepCosts) -> None:
    found = steps(SpecConfig("ngram", 4), nodes=[3, 0], depth=[3, 0])
    assert costs.steps(found).tolist() == pytest.approx([15.0 + 0.5 + 0.25, 12.0 + 0.5 + 0.25])


def test_the_first_draft_of_a_prompt_runs_it_through_the_drafter(costs: StepCosts) -> None:
    chain = steps(SpecConfig("draft", 2), nodes=[2, 2], depth=[2, 2], calls=[2, 2], run=[1, 1])
    assert costs.first_drafts(chain).tolist() == pytest.approx([2.0])
    assert costs.first_drafts(steps(SpecConfig("ngram", 2), nodes=[2], depth=[2])).tolist() == [0.0]


def test_a_lookup_takes_the_prompt_in_before_its_first_step(by_hand: HardwareProfile) -> None:
    lookup = by_hand.drafters["ngram"]
    around = [replace(one, first_draft=Timing.of([0.25 + one.context_length / 50])) for one in lookup.contexts]
    drafters = {**by_hand.drafters, "ngram": replace(lookup, contexts=tuple(around))}
    costs = StepCosts(replace(by_hand, drafters=drafters), {"draft"}, np.array([100, 300]))
    both = steps(SpecConfig("ngram", 2), nodes=[2, 0], depth=[2, 0])
    assert costs.starts(both).tolist() == pytest.approx([2.0])  # behind 100 tokens; once
    assert costs.starts(steps(SpecConfig("draft", 2), nodes=[2], depth=[2], calls=[2])).tolist() == [0.0]
    assert costs.starts(steps(SpecConfig(), nodes=[0])).tolist() == [0.0]


def test_what_was_not_measured_is_refused(costs: StepCosts) -> None:
    with pytest.raises(MeasurementError, match="num_tokens 1 to 32"):
        costs.steps(steps(SpecConfig("ngram", 40), nodes=[40], depth=[40]))
    with pytest.raises(MeasurementError, match="depth 1 to 8"):
        costs.steps(steps(SpecConfig("draft", 9), nodes=[9], depth=[9], calls=[9], run=[8]))
