"""Token trees: depths, masks, and a target that sees each path as if it stood alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from autospec.engine.cache import KVCache
from autospec.engine.model import CausalLM
from autospec.engine.tree import TokenTree, Trie, chain, empty_tree

#        root - 10 - 12 - 14
#           \      \ 13
#            11 - 15
BRANCHING = TokenTree(torch.tensor([10, 11, 12, 13, 15, 14]), parents=(-1, -1, 0, 0, 1, 2))
PATHS = {0: [10], 1: [11], 2: [10, 12], 3: [10, 13], 4: [11, 15], 5: [10, 12, 14]}


def test_a_chain_is_a_tree_of_width_one() -> None:
    tree = chain(torch.tensor([5, 6, 7]))
    assert tree.parents == (-1, 0, 1)
    assert tree.depths == (1, 2, 3)
    assert tree.is_chain
    assert tree.num_nodes == 3
    assert tree.ancestor_mask() is None


def test_an_empty_tree_is_a_chain_of_nothing() -> None:
    tree = empty_tree()
    assert (tree.num_nodes, tree.depths, tree.is_chain, tree.ancestor_mask()) == (0, (), True, None)
    assert tree.token_ids.dtype == torch.int64


def test_depths_and_ancestors_of_a_branching_tree() -> None:
    assert not BRANCHING.is_chain
    assert BRANCHING.depths == (1, 1, 2, 2, 2, 3)
    mask = BRANCHING.ancestor_mask()
    assert mask is not None
    # Rows and columns: the root, then the nodes in order.
    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0, 0],
        [1, 1, 0, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [1, 0, 1, 0, 0, 1, 0],
        [1, 1, 0, 1, 0, 0, 1],
    ]


def test_two_children_of_the_root_are_no_chain() -> None:
    tree = TokenTree(torch.tensor([1, 2]), (-1, -1))
    assert not tree.is_chain
    assert tree.depths == (1, 1)


def test_malformed_trees_are_our_own_mistakes() -> None:
    with pytest.raises(AssertionError):
        TokenTree(torch.tensor([1, 2]), (-1, 1))  # a node cannot be its own parent
    with pytest.raises(AssertionError):
        TokenTree(torch.tensor([1, 2]), (-1,))
    with pytest.raises(AssertionError):
        TokenTree(torch.tensor([1, 2]), (-1, 0), torch.rand(1, 5))


ARCHITECTURES = (
    *("llama", "qwen3", "gpt2", "gpt_neox", "opt", "falcon", "qwen3_moe"),
    *("mistral", "phi3", "gemma2", "gemma3_text", "gpt_oss", "qwen2"),  # with windows shorter than the text
)
TEXT, ROOT = [3, 1, 4, 1, 5, 9, 2, 6], 7


@pytest.fixture(params=ARCHITECTURES)
def model(request: pytest.FixtureRequest, tiny_model: Any) -> CausalLM:
    return CausalLM(tiny_model(request.param), request.param)


def verify(model: CausalLM) -> tuple[KVCache, torch.Tensor]:
    cache = KVCache(capacity=20)
    model.forward(torch.tensor([TEXT]), cache)
    input_ids = torch.cat([torch.tensor([ROOT]), BRANCHING.token_ids])[None]
    logits = model.forward(input_ids, cache, tree_mask=BRANCHING.ancestor_mask(), depths=(0, *BRANCHING.depths))
    return cache, logits[0]


def test_every_node_sees_its_own_path_alone(model: CausalLM) -> None:
    _, logits = verify(model)
    alone = {-1: model.forward(torch.tensor([[*TEXT, ROOT]]), KVCache(20), num_logits=1)[0, 0]}
    for node, path in PATHS.items():
        alone[node] = model.forward(torch.tensor([[*TEXT, ROOT, *path]]), KVCache(20), num_logits=1)[0, 0]
    for node, expected in alone.items():
        torch.testing.assert_close(logits[node + 1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("path", [(), (0,), (1,), (0, 2), (1, 4), (0, 3), (0, 2, 5)])
def test_keeping_a_path_equals_a_fresh_prefill(model: CausalLM, path: tuple[int, ...]) -> None:
    cache, _ = verify(model)
    cache.keep(0, len(TEXT), [0, *(node + 1 for node in path)])
    text = [*TEXT, ROOT, *(int(BRANCHING.token_ids[node]) for node in path)]
    fresh = KVCache(20)
    model.forward(torch.tensor([text]), fresh)
    assert cache.lengths == [len(text)]
    assert sorted(cache.keys) == [0, 1]
    for layer in cache.keys:
        for kept, wanted in ((cache.keys, fresh.keys), (cache.values, fresh.values)):
            torch.testing.assert_close(
                kept[layer][:, :, : len(text)], wanted[layer][:, :, : len(text)], rtol=1e-4, atol=1e-4
            )
    # And the next token comes from it as from the plain text.
    behind = model.forward(torch.tensor([[8]]), cache)[0, -1]
    torch.testing.assert_close(behind, model.forward(torch.tensor([[8]]), fresh)[0, -1], rtol=1e-4, atol=1e-4)


def test_children_are_found_by_their_token() -> None:
    assert BRANCHING.children == ((0, 1), (2, 3), (4,), (5,), (), (), ())
    assert BRANCHING.depth == 3
    assert BRANCHING.child(-1, 11) == 1
    assert BRANCHING.child(0, 13) == 3
    assert BRANCHING.child(0, 15) is None
    assert BRANCHING.child(5, 10) is None


def test_of_a_token_drawn_twice_the_first_draw_is_the_child() -> None:
    tree = TokenTree(torch.tensor([7, 7]), (-1, -1))
    assert tree.child(-1, 7) == 0


def test_continuations_share_their_beginnings_and_add_their_weights() -> None:
    trie = Trie()
    trie.insert([1, 2, 3], [1.0, 1.0, 1.0])
    trie.insert([1, 4], [0.5, 0.5])
    trie.insert([5, 6], [1.2, 0.2])
    assert (trie.token_ids, trie.parents) == ([1, 2, 3, 4, 5, 6], [-1, 0, 1, 0, -1, 4])
    assert trie.weights == [1.5, 1.0, 1.0, 0.5, 1.2, 0.2]
    tree = trie.best(num_nodes=4, max_depth=3)
    assert (tree.token_ids.tolist(), tree.parents) == ([1, 5, 2, 3], (-1, -1, 0, 2))
    shallow = trie.best(num_nodes=9, max_depth=1)
    assert (shallow.token_ids.tolist(), shallow.parents) == ([1, 5], (-1, -1))
    assert Trie().best(4, 4).num_nodes == 0


def test_a_whole_draft_can_be_merged_into_a_trie() -> None:
    trie = Trie()
    trie.insert([11, 15, 9], [1.0, 1.0, 1.0])
    trie.insert_tree(BRANCHING, [0.6, 0.4, 0.3, 0.2, 0.4, 0.1])
    assert trie.best(2, 5).token_ids.tolist() == [11, 15]
    everything = trie.best(99, 5)
    assert sorted(everything.token_ids.tolist()) == [9, 10, 11, 12, 13, 14, 15]
