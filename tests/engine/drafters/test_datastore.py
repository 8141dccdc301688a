"""The datastore drafter by hand, and its tries against counting whole beginnings."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.cache import KVCache
from autospec.engine.datastore import Datastore
from autospec.engine.drafters import DatastoreDrafter, Drafter, DraftPlan
from autospec.engine.drafters.datastore import most_frequent
from autospec.engine.termination import Stopping
from autospec.engine.tree import TokenTree

A, B, C, D, E = 10, 11, 12, 13, 14
TEXTS = [[A, B, C, D], [A, B, C, E], [B, D], [E, B, D, D], [B, D]]


def draft(text: list[int], length: int, **knobs: Any) -> TokenTree:
    config = SpecConfig("datastore", **{"draft_length": 8, **knobs})
    drafter = DatastoreDrafter(Datastore.of(TEXTS))
    drafter.start(text, DraftPlan(config, SamplingParams(), 0, 1000, Stopping(config), KVCache(1)))
    return drafter.propose(length)


def paths(tree: TokenTree) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for token, parent in zip(tree.token_ids.tolist(), tree.parents, strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    assert len(set(found)) == len(found)
    return found


def test_a_chain_takes_the_most_frequent_continuation_of_the_longest_suffix() -> None:
    assert draft([D, A, B], 4).token_ids.tolist() == [C, D]  # "a b" twice; behind it c, then d as the lower of d and e
    assert draft([C, B], 4).token_ids.tolist() == [D, D]  # "b": three times d and twice c; d ended two of them
    assert draft([C, B], 1).token_ids.tolist() == [D]
    assert draft([C, B], 0).num_nodes == 0
    assert draft([9], 4).num_nodes == 0


def test_a_trie_takes_the_beginnings_that_most_hits_share() -> None:
    knobs: dict[str, Any] = {"tree_shape": "trie", "tree_width": 2}
    # Behind "b": d 3, c 2, and behind those d 1; c d 1, c e 1.
    assert paths(draft([C, B], 4, tree_nodes=9, **knobs)) == [(D,), (C,), (D, D), (C, D), (C, E)]
    assert paths(draft([C, B], 4, tree_nodes=2, **knobs)) == [(D,), (C,)]
    assert paths(draft([C, B], 1, tree_nodes=9, **knobs)) == [(D,), (C,)]
    assert paths(draft([C, B], 4, tree_nodes=9, tree_shape="trie", tree_width=1)) == [(D,), (D, D)]


def test_only_the_committed_text_counts() -> None:
    config = SpecConfig("datastore", 4)
    drafter = DatastoreDrafter(Datastore.of(TEXTS), "datastore:mine")
    assert isinstance(drafter, Drafter)
    assert drafter.source == "datastore:mine"
    plan = DraftPlan(config, SamplingParams(), 0, 1000, Stopping(config), KVCache(1))
    drafter.start([A], plan)
    drafter.commit([B])
    assert drafter.propose(4).token_ids.tolist() == [C, D]
    drafter.start([9], plan)
    assert drafter.propose(4).num_nodes == 0


def test_tries_hold_the_most_frequent_beginnings() -> None:
    generator = random.Random(2)
    for _ in range(20):
        rows = [[generator.randrange(4) for _ in range(generator.randrange(1, 5))] for _ in range(40)]
        counts = Counter(tuple(row[:size]) for row in rows for size in range(1, len(row) + 1))
        filled = np.array([row + [-1] * (4 - len(row)) for row in rows], dtype=np.int32)
        found = paths(most_frequent(filled, 12, width=4))
        assert [counts[path] for path in found] == sorted(counts.values(), reverse=True)[:12]
        best = max(counts, key=lambda path: (len(path) == 1, counts[path], -path[0]))
        assert found[0] == best
