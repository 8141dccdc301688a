"""The truth table of acceptance: which rule serves which tree shape and which kind of draft."""

from __future__ import annotations

import pytest

from autospec.config import SpecConfig
from autospec.errors import ConfigError
from autospec.rules import ACCEPT_RULES, TREE_SHAPES, draws_children, idle_accept_knobs

PATHS = {"static": ((0,), (1,)), "optimal": ((0,), (1,))}
# Written out by hand. y: served; D: served, siblings are drawn under sampling; b: served, they are the most probable
# ones; -: refused. A chain has no siblings; what it holds is drawn under sampling, whatever the rule.
TRUTH = {
    #                   chain static optimal beam best_first trie
    "exact":           "y     b      b       b    b          b",
    "rejection":       "y     -      -       -    -          -",
    "block":           "y     -      -       -    -          -",
    "coupled":         "y     b      b       b    b          b",
    "multi_candidate": "y     D      D       b    b          b",
    "traversal":       "y     D      D       b    b          b",
    "typical":         "y     b      b       b    b          b",
    "lenient":         "y     D      D       b    b          b",
    "relaxed":         "y     b      b       b    b          b",
    "margin":          "y     b      b       b    b          b",
    "contrastive":     "y     D      D       b    b          -",
}  # fmt: skip
LOSSY = {"typical", "lenient", "relaxed", "margin", "contrastive"}


def test_the_table_holds_every_rule() -> None:
    assert list(TRUTH) == list(ACCEPT_RULES)
    assert {name for name, facts in ACCEPT_RULES.items() if not facts.is_lossless} == LOSSY
    assert all(facts.guarantee and facts.meaning for facts in ACCEPT_RULES.values())


@pytest.mark.parametrize("rule", TRUTH)
@pytest.mark.parametrize("shape", TREE_SHAPES)
def test_a_rule_serves_the_shapes_of_the_truth_table(rule: str, shape: str) -> None:
    kind = TRUTH[rule].split()[list(TREE_SHAPES).index(shape)]
    if kind == "-":
        with pytest.raises(ConfigError) as caught:
            SpecConfig("draft", 4, accept_rule=rule, tree_shape=shape, tree_paths=PATHS.get(shape, ()))
        assert repr(rule) in caught.value.faults[0]
        assert repr(shape) in caught.value.faults[0]
    else:
        config = SpecConfig("draft", 4, accept_rule=rule, tree_shape=shape, tree_paths=PATHS.get(shape, ()))
        assert (config.accept_rule, config.tree_shape) == (rule, shape)
        assert kind == "y" or draws_children(rule, shape) == (kind == "D")


def test_trees_selected_after_drawing_never_have_drawn_children() -> None:
    for shape in ("beam", "best_first", "trie"):
        assert not any(draws_children(rule, shape) for rule in ACCEPT_RULES)


def test_every_knob_of_acceptance_is_idle_somewhere_and_read_somewhere() -> None:
    knobs = {"accept_threshold", "accept_delta", "accept_top", "with_replacement"}
    assert idle_accept_knobs("exact", "static") == knobs
    assert idle_accept_knobs("lenient", "static") == {"accept_delta", "accept_top"}
    assert idle_accept_knobs("lenient", "beam") == {"accept_delta", "accept_top", "with_replacement"}
    assert set().union(*(facts.knobs for facts in ACCEPT_RULES.values())) == knobs
