"""The n-gram drafter, by hand and against a search that tries every place."""

from __future__ import annotations

import random

import pytest

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.cache import KVCache
from autospec.engine.drafters import Drafter, DraftPlan, NgramDrafter
from autospec.engine.termination import Stopping
from autospec.engine.tree import TokenTree


def plan(ngram_min: int = 1, ngram_max: int = 3) -> DraftPlan:
    config = SpecConfig("ngram", 8, ngram_min=ngram_min, ngram_max=ngram_max)
    return DraftPlan(config, SamplingParams(), 0, 1000, Stopping(config), KVCache(1))


def draft(text: list[int], length: int, ngram_min: int = 1, ngram_max: int = 3) -> list[int]:
    drafter = NgramDrafter()
    drafter.start(text, plan(ngram_min, ngram_max))
    return drafter.propose(length).token_ids.tolist()


A, B, C, D, E = 10, 11, 12, 13, 14


def test_what_followed_the_last_time_is_copied() -> None:
    assert draft([A, B, C, D, A, B], 4) == [C, D, A, B]
    assert draft([A, B, C, D, A, B], 2) == [C, D]


def test_the_longest_suffix_is_tried_first() -> None:
    # "b" was last followed by e, but "a b" by c.
    text = [A, B, C, D, B, E, A, B]
    assert draft(text, 1) == [C]
    assert draft(text, 1, ngram_max=1) == [E]


def test_the_most_recent_match_wins() -> None:
    assert draft([A, B, A, C, A, D, A], 1) == [D]


def test_a_shorter_span_than_asked_for_is_proposed() -> None:
    # The match ends at the token before the last: only one token can follow it.
    assert draft([A, B, B], 5) == [B]
    assert draft([A, A], 5) == [A]


def test_suffixes_below_the_minimum_are_not_looked_up() -> None:
    text = [A, B, C, D, B]
    assert draft(text, 2, ngram_min=1) == [C, D]
    assert draft(text, 2, ngram_min=2) == []


def test_a_text_without_a_match_yields_nothing() -> None:
    assert draft([A, B, C, D], 4) == []
    assert draft([A], 4) == []
    assert draft([A, B], 4, ngram_min=3, ngram_max=5) == []


def test_nothing_is_drafted_where_nothing_is_asked_for() -> None:
    assert draft([A, B, A], 0) == []


def test_output_is_searched_like_the_prompt() -> None:
    drafter = NgramDrafter()
    drafter.start([A, B], plan())
    drafter.commit([C, D])
    drafter.commit([E, B])
    assert drafter.propose(3).token_ids.tolist() == [C, D, E]
    drafter.commit([C])
    assert drafter.propose(3).token_ids.tolist() == [D, E, B]


def test_a_new_prompt_begins_with_nothing_known() -> None:
    drafter = NgramDrafter()
    drafter.start([A, B, C, A], plan())
    assert drafter.propose(1).num_nodes == 1
    drafter.start([B, C, A], plan())
    assert drafter.propose(1).num_nodes == 0


def test_drafts_are_chains_without_probabilities() -> None:
    drafter = NgramDrafter()
    assert isinstance(drafter, Drafter)
    assert (drafter.source, drafter.has_probs) == ("ngram", False)
    drafter.start([A, B, A, B], plan())
    tree = drafter.propose(2)
    assert tree.is_chain
    assert tree.draft_probs is None


def searched(text: list[int], length: int, ngram_min: int, ngram_max: int) -> list[int]:
    """Try every size from the longest, and every place from the most recent."""
    for size in range(ngram_max, ngram_min - 1, -1):
        for end in range(len(text) - 1, size - 1, -1):
            if size <= len(text) and text[end - size : end] == text[-size:]:
                return text[end : end + length]
    return []


@pytest.mark.parametrize("sizes", [(1, 3), (2, 2), (1, 1), (2, 5)])
@pytest.mark.parametrize("num_tokens", [2, 4, 8])
def test_equals_a_search_of_every_place(num_tokens: int, sizes: tuple[int, int]) -> None:
    generator = random.Random(num_tokens)
    num_found = 0
    for _ in range(20):
        text = [generator.randrange(num_tokens) for _ in range(3)]
        drafter = NgramDrafter()
        drafter.start(text, plan(*sizes))
        for _ in range(12):
            length = generator.randrange(1, 7)
            expected = searched(text, length, *sizes)
            assert drafter.propose(length).token_ids.tolist() == expected
            num_found += bool(expected)
            fresh = [generator.randrange(num_tokens) for _ in range(generator.randrange(1, 4))]
            drafter.commit(fresh)
            text += fresh
    assert num_found > 10


# ----- several matches at once


def trie(text: list[int], length: int, width: int, nodes: int = 100, **sizes: int) -> TokenTree:
    config = SpecConfig("ngram", 8, tree_shape="trie", tree_width=width, tree_nodes=nodes, **sizes)
    drafter = NgramDrafter()
    drafter.start(text, DraftPlan(config, SamplingParams(), 0, 1000, Stopping(config), KVCache(1)))
    return drafter.propose(length)


def paths(tree: TokenTree) -> set[tuple[int, ...]]:
    """Every path from the root, as the tokens along it."""
    found: list[tuple[int, ...]] = []
    for token, parent in zip(tree.token_ids.tolist(), tree.parents, strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    assert len(set(found)) == len(found)
    return set(found)


def test_matches_share_their_beginnings_in_one_trie() -> None:
    # "a" was followed by b c, then by b d, and last by c.
    text = [A, B, C, A, B, D, A, C, E, A]
    assert paths(trie(text, 2, width=3)) == {(C,), (C, E), (B,), (B, D), (B, C)}
    assert paths(trie(text, 2, width=2)) == {(C,), (C, E), (B,), (B, D)}
    assert paths(trie(text, 2, width=1)) == {(C,), (C, E)}


def test_longer_suffixes_come_before_more_recent_ones() -> None:
    # "b a" was followed by c, "a" alone by d and later by e.
    text = [B, A, C, E, A, D, C, A, E, B, A]
    assert paths(trie(text, 1, width=1)) == {(C,)}
    assert paths(trie(text, 1, width=2)) == {(C,), (E,)}
    assert trie(text, 1, width=3).token_ids.tolist() == [C, E, D]
    assert paths(trie(text, 1, width=3, ngram_max=1)) == {(E,), (D,), (C,)}


def test_the_first_match_comes_first_however_many_others_agree() -> None:
    text = [A, D, A, D, A, D, A, C, A]
    assert trie(text, 1, width=8).token_ids.tolist() == [C, D]


def test_a_small_budget_keeps_the_heaviest_nodes() -> None:
    # Weights: c 1, e 1/2 below it; b 1/2 + 1/4 from both other matches, d below it 1/4, c 1/8.
    text = [A, B, C, A, B, D, A, C, E, A]
    assert [paths(trie(text, 2, 3, nodes)) for nodes in (1, 2, 3, 4)] == [
        {(C,)},
        {(C,), (B,)},
        {(C,), (B,), (C, E)},
        {(C,), (B,), (C, E), (B, D)},
    ]


def test_a_trie_of_one_match_is_the_chain() -> None:
    generator = random.Random(5)
    for _ in range(30):
        text = [generator.randrange(3) for _ in range(12)]
        tree = trie(text, 4, width=1)
        assert tree.is_chain
        assert tree.token_ids.tolist() == draft(text, 4)
