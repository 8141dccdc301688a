"""Masks by kind of layer, by hand and against their definition; which kinds a configuration names."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autospec.engine.masks import NewTokens, attention_mask, layer_windows, sights, visible
from autospec.engine.tree import TokenTree
from autospec.errors import ModelError

LOW = torch.finfo(torch.float32).min
HYBRID = {"full_attention": None, "sliding_attention": 3}

#        root - 1 - 3 - 4      in slots: 0 root, 1 and 2 its children, 3 below 1, 4 below 3
#            \ 2
TREE = TokenTree(torch.tensor([10, 11, 12, 13]), parents=(-1, -1, 0, 2))


def test_each_row_sees_its_own_past() -> None:
    seen = visible(NewTokens([3, 1], 2)).int().tolist()
    assert seen == [[[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]]


def test_a_window_of_three_shows_a_token_itself_and_two_before() -> None:
    seen = visible(NewTokens([4, 1], 2), window=3).int().tolist()
    assert seen == [[[0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1]], [[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]]]


def test_in_a_tree_the_window_runs_along_the_path() -> None:
    """The last node stands at position 3 + 3 = 6 and sees 6, 5 and 4: itself and its path, which skips a slot."""
    new = NewTokens([3], 5, TREE.ancestor_mask(), (0, *TREE.depths))
    assert visible(new, window=3)[0].int().tolist() == [
        [0, 1, 1, 1, 0, 0, 0, 0],
        [0, 0, 1, 1, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0, 1, 0],
        [0, 0, 0, 0, 1, 0, 1, 1],
    ]
    assert new.positions.tolist() == [[3, 4, 4, 5, 6]]


def test_nodes_of_a_tree_may_be_cached_before_their_children() -> None:
    """The last two nodes of the tree above alone, with the root and its children in the cache."""
    mask = TREE.ancestor_mask()
    assert mask is not None
    new = NewTokens([6], 2, mask[3:], depths=(-1, 0))  # positions 5 and 6 behind six slots
    whole = NewTokens([3], 5, mask, (0, *TREE.depths))
    for window in (1, 2, 3, 4, 5, None):
        assert visible(new, window)[0].tolist() == visible(whole, window)[0, 3:].tolist()


def test_no_mask_is_built_where_the_model_s_own_says_the_same() -> None:
    for windows in ({"full_attention": None}, HYBRID):
        assert attention_mask(NewTokens([5], 1), windows, torch.float32) is None
        assert attention_mask(NewTokens([0, 0], 4), windows, torch.float32) is None
        assert attention_mask(NewTokens([5, 4], 1), windows, torch.float32) is not None
        tree = NewTokens([0], 2, torch.eye(2, dtype=torch.bool), (0, 0))
        assert attention_mask(tree, windows, torch.float32) is not None


def test_kinds_of_layers_get_masks_of_their_own_where_these_differ() -> None:
    masks = attention_mask(NewTokens([2], 2), HYBRID, torch.float32)
    assert isinstance(masks, dict)
    assert masks["full_attention"].tolist() == [[[[0.0, 0.0, 0.0, LOW], [0.0, 0.0, 0.0, 0.0]]]]
    assert masks["sliding_attention"].tolist() == [[[[0.0, 0.0, 0.0, LOW], [LOW, 0.0, 0.0, 0.0]]]]


def test_one_mask_serves_all_layers_where_it_can() -> None:
    """Within the window, and where all layers slide: models with layers of one kind take no other."""
    within = attention_mask(NewTokens([1], 2), HYBRID, torch.float32)
    assert isinstance(within, torch.Tensor)
    assert within.tolist() == [[[[0.0, 0.0, LOW], [0.0, 0.0, 0.0]]]]
    sliding = attention_mask(NewTokens([3], 2), {"sliding_attention": 2}, torch.float16)
    assert isinstance(sliding, torch.Tensor)
    assert sliding.dtype == torch.float16
    assert (sliding == 0).int().tolist() == [[[[0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]]]


@st.composite
def trees(draw: Any, max_nodes: int = 10) -> TokenTree:
    size = draw(st.integers(1, max_nodes))
    parents = tuple(draw(st.integers(-1, node - 1)) for node in range(size))
    return TokenTree(torch.tensor(draw(st.lists(st.integers(0, 5), min_size=size, max_size=size))), parents)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    tree=trees(),
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=3),
    window=st.none() | st.integers(1, 8),
    num_cached=st.integers(0, 4),
)
def test_masks_equal_their_definition(
    tree: TokenTree, lengths: list[int], window: int | None, num_cached: int
) -> None:
    """Slot by slot: what stands on the path of a token, or before the tree, and not too many positions before it."""
    size = tree.num_nodes + 1
    num_cached = min(num_cached, tree.num_nodes)  # the root and the first nodes were run before
    paths = [[-1]]
    for node, parent in enumerate(tree.parents):
        paths.append([*paths[parent + 1], node])
    seen = torch.zeros(size, size, dtype=torch.bool)
    for place, path in enumerate(paths):
        seen[place, [node + 1 for node in path]] = True
    depths = [len(path) - 1 - num_cached for path in paths][num_cached:]
    new = NewTokens([length + num_cached for length in lengths], size - num_cached, seen[num_cached:], depths)
    mask = visible(new, window)
    assert mask.shape == (len(lengths), size - num_cached, max(lengths) + size)
    for row, length in enumerate(lengths):
        for place, path in enumerate(paths[num_cached:]):
            position = length + len(path) - 1
            for slot in range(max(lengths) + size):
                if slot < length:
                    expected, other = True, slot
                else:
                    expected = slot - length - 1 in path
                    other = length + len(paths[slot - length]) - 1 if slot < length + size else 0
                if window is not None:
                    expected = expected and position - window < other <= position
                assert bool(mask[row, place, slot]) == expected


def config(**values: Any) -> SimpleNamespace:
    return SimpleNamespace(**values)


def test_a_configuration_names_the_kinds_of_its_layers() -> None:
    both = ["full_attention", "sliding_attention"]
    assert layer_windows(config(), "x") == {"full_attention": None}
    assert layer_windows(config(sliding_window=None), "x") == {"full_attention": None}
    assert layer_windows(config(sliding_window=7), "x") == {"sliding_attention": 7}
    assert layer_windows(config(sliding_window=7, layer_types=both), "x") == HYBRID | {"sliding_attention": 7}
    assert layer_windows(config(sliding_window=7, layer_types=both[:1] * 2), "x") == {"full_attention": None}


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
        ({"attention_chunk_size": 8}, "chunked_attention"),
        ({"attention_layers": ["global", "local"]}, "local"),
    ],
)
def test_layers_of_other_kinds_are_refused(values: dict[str, Any], kind: str) -> None:
    with pytest.raises(ModelError, match=rf"full or sliding attention, but those of `x` have \['{kind}'\]"):
        layer_windows(config(**values), "x")


@pytest.mark.parametrize("length", [0, 1, 5, 255, 256, 257, 300])
@pytest.mark.parametrize("num_new", [1, 2, 5, 65])
def test_sights_say_what_masks_say(length: int, num_new: int) -> None:
    new = NewTokens([length], num_new)
    for kind, sight in sights(new, HYBRID, torch.float32, torch.device("cpu")).items():
        seen = visible(new, HYBRID[kind])
        if sight.mask is None:
            causal = torch.ones(num_new, num_new).tril(0).bool() if sight.is_causal else torch.tensor(True)
            assert torch.equal(seen[0], causal.expand_as(seen[0]))
        else:
            assert torch.equal(sight.mask[0, 0] == 0, seen[0])
            assert sight.mask.max() <= 0
            assert torch.isfinite(sight.mask).all()
