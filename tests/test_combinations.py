from __future__ import annotations

from typing import Any

import pytest

from autospec.combinations import combination_faults, name_faults
from autospec.config import MAX_TREE_NODES, SpecConfig
from autospec.errors import ConfigError


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"drafter": "d", "draft_length": 4, "accept_rule": "lenient", "accept_threshold": 0}, "'lenient' needs"),
        ({"drafter": "d", "draft_length": 4, "tree_shape": "trie", "accept_rule": "contrastive"}, "tree_shape='trie'"),
        ({"drafter": "d", "draft_length": 4, "tree_shape": "static"}, "tree_paths"),
        ({"drafter": "d", "draft_length": 4, "tree_shape": "static", "tree_paths": ((0, 0),)}, "beginning"),
        ({"drafter": "d", "draft_length": 4, "tree_shape": "static", "tree_paths": ((0,), (0,))}, "different"),
        ({"drafter": "d", "draft_length": 4, "tree_shape": "beam", "accept_rule": "block"}, "'block' serves chains"),
        ({"drafter": "d", "draft_length": 4, "tree_shape": "beam", "stop_rule": "entropy"}, "'entropy'"),
        ({"drafter": "a+", "draft_length": 4}, "'a+'"),
        ({"drafter": "a+b+a", "draft_length": 4}, "all different"),
        ({"drafter": "a+b", "draft_length": 4, "combine": "merge"}, "'merge' makes a trie"),
    ],
)
def test_what_does_not_go_together_is_refused_with_one_sentence(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SpecConfig(**values)
    assert len(caught.value.faults) == 1
    assert named in caught.value.faults[0]


def test_paths_are_bounded_where_they_have_an_effect() -> None:
    paths = tuple((rank,) for rank in range(MAX_TREE_NODES))
    config = SpecConfig("d", 4, tree_shape="static", tree_paths=paths)
    assert combination_faults(config, MAX_TREE_NODES) == []
    most = MAX_TREE_NODES - 1
    expected = [f"`tree_paths` must hold at most {most} paths, but got {MAX_TREE_NODES}"]
    assert combination_faults(config, most) == expected
    with pytest.raises(ConfigError, match="must hold at most 512 paths, but got 513"):
        SpecConfig("d", 4, tree_shape="static", tree_paths=(*paths, (MAX_TREE_NODES,)))
    assert SpecConfig("d", 4, tree_paths=(*paths, (MAX_TREE_NODES,))).tree_paths == ()


def test_names_that_are_known_are_no_fault_and_others_end_the_question() -> None:
    assert name_faults(SpecConfig("a+b", 4)) == []
    with pytest.raises(ConfigError) as caught:
        SpecConfig("a+b+a", 4, combine="vote")  # the drafters' names are not looked at
    assert caught.value.faults == ["`combine` must be one of ['fallback', 'merge'], but got 'vote'"]
