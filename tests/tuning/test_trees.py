from __future__ import annotations

import numpy as np
import optuna
import pytest

from autospec.config import SpecConfig
from autospec.engine.optimal_tree import tokens_per_step
from autospec.tuning.knobs import Choices, Condition, Knob
from autospec.tuning.space import SearchSpace
from autospec.tuning.trees import NOMINAL_ACCEPTANCE, TreeMaker


def space_of(*shapes: str, trees: TreeMaker | None = None) -> SearchSpace:
    knobs = [
        Knob("drafter", Choices(("draft",))),
        Knob("tree_shape", Choices(shapes)),
        Knob("draft_length", Choices((1, 2, 3))),
        Knob("tree_nodes", Choices((2, 3, 4)), (Condition("tree_shape", ("optimal", "beam")),)),
    ]
    return SearchSpace(knobs, trees=trees)


def test_a_sure_drafter_gets_a_chain_and_a_doubtful_one_a_bush() -> None:
    # With 0.9 and 0.05, two nodes below each other are worth 0.9 + 0.81, side by side 0.9 + 0.05.
    # With 0.3 and 0.25 they are worth 0.3 + 0.09, and 0.3 + 0.25.
    trees = TreeMaker({"sure": (0.9, 0.05), "doubtful": (0.3, 0.25)})
    assert trees.paths("sure", 2, 3) == ((0,), (0, 0))
    assert trees.paths("doubtful", 2, 3) == ((0,), (1,))
    assert trees.paths("sure", 2, 1) == ((0,), (1,))


def test_a_drafter_that_is_never_right_still_gets_a_tree() -> None:
    assert TreeMaker({"wrong": (0.0, 0.0)}).paths("wrong", 4, 4) == ((0,),)


def test_a_drafter_of_which_nothing_is_known_gets_nominal_trees() -> None:
    assert TreeMaker().paths("any", 3, 2) == TreeMaker({"any": NOMINAL_ACCEPTANCE}).paths("any", 3, 2)


def test_a_space_makes_optimal_trees_from_what_was_recorded() -> None:
    sure = space_of("chain", "optimal", trees=TreeMaker({"draft": (0.9, 0.05)}))
    params = {"drafter": "draft", "tree_shape": "optimal", "draft_length": 2, "tree_nodes": 2}
    assert sure.config(params).tree_paths == ((0,), (0, 0))
    assert space_of("chain", "optimal").with_trees(TreeMaker({"draft": (0.3, 0.25)})).config(params).tree_paths == (
        (0,),
        (1,),
    )
    assert sure.config({"drafter": "draft", "tree_shape": "chain", "draft_length": 2}).tree_paths == ()


def test_every_optimal_tree_is_found_again_from_its_configuration() -> None:
    space = space_of("optimal", "beam", trees=TreeMaker({"draft": (0.5, 0.2, 0.1)}))
    rng = np.random.default_rng(3)
    for _ in range(50):
        config = space.config(space.draw(rng) or {})
        found = space.to_params(config)
        assert found is not None
        assert space.config(found) == config
    other = SpecConfig("draft", 3, tree_shape="optimal", tree_paths=((0,), (1,), (2,)))
    assert space.to_params(other) is None


def test_a_trial_chooses_size_and_depth_only() -> None:
    space = space_of("optimal", trees=TreeMaker({"draft": (0.5, 0.2, 0.1)}))
    config = space.suggest(trial := optuna.create_study().ask())
    assert set(trial.params) == {"drafter", "tree_shape", "draft_length", "tree_nodes"}
    assert tokens_per_step(config.tree_paths, (0.5, 0.2, 0.1)) > 1.0


def test_the_hash_of_a_space_is_that_of_its_knobs() -> None:
    trees = TreeMaker({"draft": (0.9, 0.05)})
    assert space_of("optimal", trees=trees).content_hash == space_of("optimal").content_hash
    assert space_of("optimal").has_optimal_trees
    assert not space_of("chain", "beam").has_optimal_trees


@pytest.mark.parametrize("name", ["tree", "full"])
def test_the_spaces_that_ship_with_trees_have_optimal_ones(name: str) -> None:
    assert SearchSpace.load(name).has_optimal_trees


def test_without_a_size_of_its_own_an_optimal_tree_has_the_usual_one() -> None:
    knobs = [Knob("drafter", Choices(("draft",))), Knob("tree_shape", Choices(("optimal",)))]
    space = SearchSpace(
        [*knobs, Knob("draft_length", Choices((8,)))], trees=TreeMaker({"draft": (0.5, 0.2, 0.1, 0.05)})
    )
    config = space.config({"drafter": "draft", "tree_shape": "optimal", "draft_length": 8})
    assert len(config.tree_paths) == SpecConfig().tree_nodes == 16
