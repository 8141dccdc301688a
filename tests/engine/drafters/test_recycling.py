"""The recycling drafter: what it learns from a trail, and what it makes of it."""

from __future__ import annotations

from typing import Any

import torch

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.cache import KVCache
from autospec.engine.decoder import SpeculativeDecoder
from autospec.engine.drafters import Drafter, DraftPlan, RecyclingDrafter, Trail
from autospec.engine.termination import Stopping
from autospec.engine.tree import TokenTree

VOCAB = 12


def plan(**knobs: Any) -> DraftPlan:
    config = SpecConfig("recycling", **{"draft_length": 4, **knobs})
    return DraftPlan(config, SamplingParams(), 0, 1000, Stopping(config), KVCache(1))


def trail(position: int, *rows: dict[int, float]) -> Trail:
    """Logits of a few tokens at each position; all others are improbable."""
    logits = torch.full((len(rows), VOCAB), -20.0)
    for row, probs in zip(logits, rows, strict=True):
        for token, prob in probs.items():
            row[token] = torch.tensor(prob).log()
    return Trail(position, logits, None)


def told(**knobs: Any) -> RecyclingDrafter:
    """The text 0 1 2 0, with what the target thought behind its first three tokens."""
    drafter = RecyclingDrafter()
    drafter.start([0, 1, 2], plan(**knobs))
    drafter.commit([0], trail(0, {1: 0.7, 3: 0.3}, {2: 0.6, 4: 0.4}, {0: 0.9, 5: 0.1}))
    return drafter


def paths(tree: TokenTree) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for token, parent in zip(tree.token_ids.tolist(), tree.parents, strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return found


def test_a_chain_follows_the_first_candidates() -> None:
    tree = told().propose(4)
    assert tree.is_chain
    assert tree.token_ids.tolist() == [1, 2, 0, 1]
    assert tree.draft_probs is None
    assert told().propose(0).num_nodes == 0


def test_rank_paths_are_followed_as_far_as_the_table_knows() -> None:
    tree = told(tree_shape="static", tree_paths=((1,), (0,), (1, 0), (0, 1), (0, 0), (0, 0, 0))).propose(4)
    # Nothing is known behind 3, the second candidate.
    assert sorted(paths(tree)) == [(1,), (1, 2), (1, 2, 0), (1, 4), (3,)]
    shallow = told(tree_shape="optimal", tree_paths=((0,), (0, 0), (1,))).propose(1)
    assert sorted(paths(shallow)) == [(1,), (3,)]


def test_ranks_beyond_the_table_are_left_out() -> None:
    assert paths(told(tree_shape="static", tree_paths=((0,), (8,), (8, 0))).propose(4)) == [(1,)]


def test_a_best_first_tree_follows_the_probabilities() -> None:
    # 1: 0.7; 1 2: 0.42; 1 2 0: 0.378; 3: 0.3; 1 4: 0.28; 1 2 0 1: 0.26
    knobs: dict[str, Any] = {"tree_shape": "best_first", "tree_width": 2}
    assert paths(told(tree_nodes=5, **knobs).propose(4)) == [(1,), (1, 2), (1, 2, 0), (3,), (1, 4)]
    assert paths(told(tree_nodes=5, **knobs).propose(2)) == [(1,), (1, 2), (3,), (1, 4)]
    assert paths(told(tree_nodes=3, tree_shape="best_first", tree_width=1).propose(4)) == [(1,), (1, 2), (1, 2, 0)]


def test_later_positions_replace_earlier_ones() -> None:
    drafter = told()
    drafter.commit([5, 0], trail(3, {4: 0.8, 5: 0.2}, {0: 0.9}))
    assert drafter.propose(1).token_ids.tolist() == [4]


def test_eight_candidates_are_kept() -> None:
    drafter = RecyclingDrafter()
    drafter.start([0], plan(tree_shape="static", tree_paths=tuple((rank,) for rank in range(12))))
    drafter.commit([0], trail(0, {token: 2.0**-token for token in range(VOCAB)}))
    assert drafter.propose(4).token_ids.tolist() == list(range(8))


def test_every_prompt_begins_with_an_empty_table() -> None:
    drafter = told()
    drafter.start([0, 1, 2], plan())
    drafter.commit([0])
    assert drafter.propose(4).num_nodes == 0


def test_it_is_told_what_the_target_thought(table: Any, table_model: Any) -> None:
    target = table_model(table(3))
    drafter = RecyclingDrafter()
    assert isinstance(drafter, Drafter)
    prompt = [0, 1, 2]
    decoder = SpeculativeDecoder(target, {"recycling": drafter})
    config = SpecConfig("recycling", 3, tree_shape="static", tree_paths=((0,), (1,), (0, 0)))
    output = decoder.generate([prompt], config=config, max_new_tokens=9)[0]
    text = [*prompt, *output.token_ids]
    expected = {}
    for place in range(len(text) - 1):
        row = table(3)[text[place - 1] if place else 0, text[place]]
        expected[text[place]] = row.argsort(descending=True).tolist()
    assert {token: [one for one, _ in behind] for token, behind in drafter._table.items()} == expected
