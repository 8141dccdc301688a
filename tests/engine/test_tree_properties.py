"""Trees of every form against plain walks: ancestors, depths, compaction, cuts to a budget, growth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.cache import KVCache
from autospec.engine.drafters import DraftPlan
from autospec.engine.growth import Growing, grow
from autospec.engine.tree import TokenTree, Trie

PROPERTY = settings(
    derandomize=True, deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
VOCAB = 4


@st.composite
def trees(draw: Any) -> TokenTree:
    size = draw(st.integers(0, 12))
    parents = tuple(draw(st.integers(-1, node - 1)) for node in range(size))
    tokens = draw(st.lists(st.integers(0, VOCAB - 1), min_size=size, max_size=size))
    return TokenTree(torch.tensor(tokens, dtype=torch.int64), parents)


def walk(tree: TokenTree, node: int) -> list[int]:
    """From a node up to the root, -1."""
    return [node] if node < 0 else [node, *walk(tree, tree.parents[node])]


def texts(tree: TokenTree) -> list[tuple[int, ...]]:
    """Of every node the tokens from the root's child down to it."""
    tokens = tree.token_ids.tolist()
    return [tuple(tokens[above] for above in reversed(walk(tree, node)[:-1])) for node in range(tree.num_nodes)]


@PROPERTY
@given(tree=trees())
def test_masks_depths_and_children_equal_a_walk_to_the_root(tree: TokenTree) -> None:
    walks = [walk(tree, node) for node in range(-1, tree.num_nodes)]
    assert tree.depths == tuple(len(one) - 1 for one in walks[1:])
    assert tree.depth == max(len(one) - 1 for one in walks)
    for node, found in zip(range(-1, tree.num_nodes), tree.children, strict=True):
        assert found == tuple(child for child in range(tree.num_nodes) if tree.parents[child] == node)
    mask = tree.ancestor_mask()
    assert (mask is None) == tree.is_chain
    if mask is None:
        mask = torch.ones(tree.num_nodes + 1, tree.num_nodes + 1).tril().bool()
    for node, column in product(range(tree.num_nodes + 1), repeat=2):
        assert bool(mask[node, column]) == (column - 1 in walks[node])


@PROPERTY
@given(tree=trees())
def test_a_child_is_the_first_of_its_parent_s_with_that_token(tree: TokenTree) -> None:
    for parent, token in product(range(-1, tree.num_nodes), range(VOCAB)):
        first = next((c for c in tree.children[parent + 1] if tree.token_ids[c] == token), None)
        assert tree.child(parent, token) == first


@PROPERTY
@given(tree=trees(), starts=st.lists(st.integers(0, 5), min_size=1, max_size=3), data=st.data())
def test_compaction_equals_gathering_by_hand(tree: TokenTree, starts: list[int], data: Any) -> None:
    """Rows of their own length, of which one keeps a path; the others do not move."""
    size, rows = tree.num_nodes + 1, len(starts)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    cache = KVCache(max(starts) + size, rows)
    cache.lengths = list(starts)
    for layer in range(2):
        for store, width in ((cache.keys, 3), (cache.values, 2)):
            store[layer] = torch.rand(rows, 2, cache.capacity, width, generator=generator)
    cache.advance(size)
    row = data.draw(st.integers(0, rows - 1))
    node = data.draw(st.integers(-1, tree.num_nodes - 1))
    path = sorted(one + 1 for one in walk(tree, node))
    before = [{layer: tensor.clone() for layer, tensor in store.items()} for store in (cache.keys, cache.values)]
    cache.keep(row, starts[row], path)
    for old, store in zip(before, (cache.keys, cache.values), strict=True):
        for layer, tensor in store.items():
            slots = [*range(starts[row]), *(starts[row] + place for place in path)]
            assert torch.equal(tensor[row, :, : len(slots)], old[layer][row][:, slots])
            for other in range(rows):
                if other != row:
                    assert torch.equal(tensor[other], old[layer][other])
    expected = [start + size for start in starts]
    expected[row] = starts[row] + len(path)
    assert cache.lengths == expected


@st.composite
def spans(draw: Any) -> list[tuple[tuple[int, ...], list[float]]]:
    """Continuations with weights that fall along each, in quarters so that sums are exact."""
    found = []
    for _ in range(draw(st.integers(1, 6))):
        tokens = tuple(draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=5)))
        weights = draw(st.lists(st.integers(1, 12), min_size=len(tokens), max_size=len(tokens)))
        found.append((tokens, [weight / 4 for weight in sorted(weights, reverse=True)]))
    return found


def merge(paths: list[tuple[tuple[int, ...], list[float]]]) -> Counter[tuple[int, ...]]:
    weights: Counter[tuple[int, ...]] = Counter()
    for tokens, values in paths:
        for length, value in enumerate(values, start=1):
            weights[tokens[:length]] += value  # type: ignore[assignment]
    return weights


@PROPERTY
@given(paths=spans(), num_nodes=st.integers(1, 12), max_depth=st.integers(1, 5))
def test_the_best_of_a_trie_hangs_together_and_is_heaviest(
    paths: list[tuple[tuple[int, ...], list[float]]], num_nodes: int, max_depth: int
) -> None:
    trie = Trie()
    for tokens, weights in paths:
        trie.insert(tokens, weights)
    tree = trie.best(num_nodes, max_depth)  # a TokenTree: every node comes after its parent
    merged = merge(paths)
    kept = texts(tree)
    allowed = sorted((weight for text, weight in merged.items() if len(text) <= max_depth), reverse=True)
    assert len(set(kept)) == len(kept) == min(num_nodes, len(allowed))
    assert tree.depth <= max_depth
    assert sum(merged[text] for text in kept) == sum(allowed[:num_nodes])
    for siblings in tree.children:
        heaviest_first = [merged[kept[node]] for node in siblings]
        assert heaviest_first == sorted(heaviest_first, reverse=True)


@PROPERTY
@given(drafts=st.lists(trees(), min_size=1, max_size=3))
def test_merged_trees_hold_each_text_once_with_all_its_weight(drafts: list[TokenTree]) -> None:
    trie, weights = Trie(), Counter[tuple[int, ...]]()
    for draft in drafts:
        own = [1 / 4**depth for depth in draft.depths]
        trie.insert_tree(draft, own)
        for text, weight in zip(texts(draft), own, strict=True):
            weights[text] += weight  # type: ignore[assignment]
    merged = TokenTree(torch.tensor(trie.token_ids, dtype=torch.int64), tuple(trie.parents))
    assert dict(zip(texts(merged), trie.weights, strict=True)) == dict(weights)


class RandomExpander:
    """A drafter whose next-token row depends on the whole path, reproducibly."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def row(self, path: Sequence[int]) -> Tensor:
        number = self.seed
        for token in path:
            number = (number * 31 + token + 1) % 1_000_003
        return 2 * torch.randn(VOCAB, generator=torch.Generator().manual_seed(number))

    def expand(self, tree: Growing, nodes: Sequence[int]) -> Tensor:
        return torch.stack([self.row(list(self._path(tree, node))) for node in nodes])

    def _path(self, tree: Growing, node: int) -> Iterator[int]:
        if node >= 0:
            yield from self._path(tree, tree.parents[node])
            yield tree.token_ids[node]


def grown(expander: RandomExpander, config: SpecConfig, depth: int, make_plan: Callable[..., DraftPlan]) -> TokenTree:
    return grow(expander, make_plan(config, SamplingParams()).growth(0, depth))


def probable_texts(expander: RandomExpander, depth: int, width: int) -> dict[tuple[int, ...], float]:
    """Every text of the best `width` tokens behind each other, with its log-probability."""
    found: dict[tuple[int, ...], float] = {}
    layer: dict[tuple[int, ...], float] = {(): 0.0}
    for _ in range(depth):
        following = {}
        for text, weight in layer.items():
            values, tokens = expander.row(text).log_softmax(dim=-1).topk(width)
            following |= {(*text, int(t)): weight + float(v) for v, t in zip(values, tokens, strict=True)}
        found |= following
        layer = following
    return found


@PROPERTY
@given(
    seed=st.integers(0, 10_000),
    depth=st.integers(1, 4),
    width=st.integers(1, 3),
    budgets=st.tuples(st.integers(1, 20), st.integers(1, 20)).map(sorted),
)
def test_best_first_trees_of_one_depth_nest_by_budget_and_are_the_most_probable(
    seed: int, depth: int, width: int, budgets: list[int], make_plan: Callable[..., DraftPlan]
) -> None:
    expander = RandomExpander(seed)
    by_weight = probable_texts(expander, depth, width)
    ranked = sorted(by_weight, key=lambda text: -by_weight[text])
    smaller, larger = (
        set(texts(grown(expander, _best_first(depth, width, budget), depth, make_plan))) for budget in budgets
    )
    assert smaller <= larger
    assert smaller == set(ranked[: budgets[0]])
    assert larger == set(ranked[: budgets[1]])


def _best_first(depth: int, width: int, budget: int) -> SpecConfig:
    return SpecConfig("draft", depth, tree_shape="best_first", tree_width=width, tree_nodes=budget)


@pytest.mark.parametrize("width", [1, 2, 3])
@PROPERTY
@given(seed=st.integers(0, 10_000), depth=st.integers(1, 4), budget=st.integers(1, 12))
def test_beams_are_as_wide_as_allowed_and_hang_together(
    seed: int, depth: int, budget: int, width: int, make_plan: Callable[..., DraftPlan]
) -> None:
    config = SpecConfig("draft", depth, tree_shape="beam", tree_width=width, tree_nodes=budget)
    tree = grown(RandomExpander(seed), config, depth, make_plan)
    assert tree.num_nodes == min(budget, width + (depth - 1) * width * width)
    assert len(set(texts(tree))) == tree.num_nodes
    assert all(len(children) <= width for children in tree.children)
    parents_of_depth = Counter(0 if parent < 0 else tree.depths[parent] for parent in set(tree.parents))
    assert max(parents_of_depth.values()) <= width
