from __future__ import annotations

import pytest

from autospec.config import SpecConfig
from autospec.replay import RecordingBudget
from autospec.replay.budget import NODE_COST, num_nodes, plain_generations


def tree(width: int, nodes: int, shape: str = "best_first") -> SpecConfig:
    return SpecConfig("x", 4, tree_shape=shape, tree_width=width, tree_nodes=nodes)


def test_shapes_are_chains_and_one_tree_for_each_width() -> None:
    budget = RecordingBudget(max_depth=7, width=4, max_nodes=9, tree_widths=(2, 3), beam_widths=(4,))
    found = [(one.tree_shape, one.tree_width, one.tree_nodes) for one in budget.shapes()]
    assert found == [("best_first", 1, 7), ("best_first", 2, 9), ("best_first", 3, 9), ("beam", 4, 9)]
    assert len(RecordingBudget(max_nodes=0, beam_widths=(4,)).shapes()) == 1
    assert [one.tree_width for one in RecordingBudget(width=5).shapes()] == [1, 5]


def test_configurations_of_one_shape_and_width_share_their_nodes() -> None:
    assert num_nodes([tree(2, 8), tree(2, 16), tree(3, 4), tree(3, 4, "beam")], 5) == 16 + 4 + 4 + 3 * 5
    assert plain_generations(0.5, [tree(2, 8), tree(2, 16)]) == pytest.approx(NODE_COST * 0.5 * (0.3 + 0.2) * 16)
    assert plain_generations(0.5, []) == 0.0


def test_the_dearest_models_budgets_are_halved_until_all_fit() -> None:
    budget = RecordingBudget(max_nodes=32, max_plain=0.5)
    # 0.19 x 0.5 x 32 = 3.04 plain generations for a model as large as the target.
    assert {key: one.max_nodes for key, one in budget.shared({"small": 0.1}).items()} == {"small": 32}
    found = {key: one.max_nodes for key, one in budget.shared({"small": 0.05, "large": 0.8}).items()}
    assert found == {"small": 32, "large": 4}  # 0.152 + 0.304
    assert budget.shared({"huge": 4.0})["huge"].max_nodes == 0
