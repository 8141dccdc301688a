"""Token trees: depths, masks, and a target that sees each path as if it stood alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from autospec.engine.cache import KVCache
from autospec.engine.model import CausalLM
from autospec.engine.tree import TokenTree, chain, empty_tree

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
