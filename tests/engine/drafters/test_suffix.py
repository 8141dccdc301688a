"""The suffix drafter, by hand and against one that counts by scanning the texts."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.cache import KVCache
from autospec.engine.drafters import Drafter, DraftPlan, SuffixDrafter
from autospec.engine.drafters.suffix import SuffixStore, read_texts
from autospec.engine.termination import Stopping
from autospec.engine.tree import TokenTree
from autospec.errors import ModelError

A, B, C, D, E = 10, 11, 12, 13, 14


def plan(**knobs: Any) -> DraftPlan:
    config = SpecConfig("suffix", **{"draft_length": 8, **knobs})
    return DraftPlan(config, SamplingParams(), 0, 1000, Stopping(config), KVCache(1))


def started(text: Sequence[int], stored: Sequence[Sequence[int]] = (), **knobs: Any) -> SuffixDrafter:
    drafter = SuffixDrafter(stored)
    drafter.start(text, plan(**knobs))
    return drafter


def draft(text: Sequence[int], length: int, stored: Sequence[Sequence[int]] = (), **knobs: Any) -> list[int]:
    tree = started(text, stored, **knobs).propose(length)
    assert tree.is_chain
    return tree.token_ids.tolist()


def paths(tree: TokenTree) -> list[tuple[int, ...]]:
    """The path to every node, in the order of the nodes."""
    found: list[tuple[int, ...]] = []
    for token, parent in zip(tree.token_ids.tolist(), tree.parents, strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    assert len(set(found)) == len(found)
    return found


def test_a_match_of_m_tokens_allows_m_times_the_factor() -> None:
    text = [A, B, C, D, E, A, B]
    assert draft(text, 8) == [C, D]
    assert draft(text, 8, suffix_factor=1.5) == [C, D, E]
    assert draft(text, 3, suffix_factor=4) == [C, D, E]
    assert draft(text, 8, suffix_factor=0.4) == []
    assert draft(text, 8, suffix_factor=2, suffix_depth=1) == [C, D]


def test_the_most_frequent_continuation_is_taken_and_the_most_recent_of_equals() -> None:
    assert draft([A, B, A, B, A, C, A], 1) == [B]
    assert draft([A, B, A, C, A], 1) == [C]
    assert draft([A, C, A, B, A], 1) == [B]


def test_paths_below_the_least_share_are_not_drafted() -> None:
    # "a" was followed by b, b and c, "a b" by c once and by d once: shares 2/3, then 1/3.
    text = [A, B, C, A, B, D, A, C, A]
    assert draft(text, 4, suffix_factor=4, suffix_min_prob=0.6, suffix_depth=1) == [B]
    assert draft(text, 4, suffix_factor=4, suffix_min_prob=0.67, suffix_depth=1) == []
    assert draft(text, 2, suffix_factor=4, suffix_min_prob=0.3, suffix_depth=1) == [B, D]


def test_a_shorter_suffix_is_used_where_it_promises_more_tokens() -> None:
    # "x a" was followed by five different tokens, "a" nine times by b more: 1/5 + ... against 9/14.
    text = [token for other in (1, 2, 3, 4, 5) for token in (E, A, other)]
    text += [token for other in (1, 2, 3, 4, 5, 6, 7, 8, 9) for token in (other, A, B)]
    assert draft([*text, E, A], 1) == [B]
    assert draft([*text, E, A], 1, suffix_min_prob=0.65) == []


def test_a_trie_holds_the_largest_shares() -> None:
    text = [A, B, C, A, B, D, A, C, A]
    knobs: dict[str, Any] = {"tree_shape": "trie", "suffix_factor": 4, "suffix_depth": 1}
    tree = started(text, tree_width=2, tree_nodes=4, **knobs).propose(2)
    # b 2/3; then c, d behind it and c beside it, all 1/3, in the order in which they were seen to be possible.
    assert paths(tree) == [(B,), (C,), (B, D), (B, C)]
    tree = started(text, tree_width=1, tree_nodes=4, **knobs).propose(2)
    assert paths(tree) == [(B,), (B, D)]
    tree = started(text, tree_width=2, tree_nodes=2, **knobs).propose(2)
    assert paths(tree) == [(B,), (C,)]


def test_the_store_is_used_where_it_promises_more() -> None:
    stored = [[A, B, C, D], [B, C, E]]
    assert draft([A, B], 8, stored) == [C, D]  # "a b" in the store, nothing in the text
    assert draft([A, B, A, B], 8, stored) == [A, B]  # two sure tokens from either: the text comes first
    assert draft([A, B, E, A, B], 8, [[A, B, D], *stored]) == [E, A]  # sure here, there one of two
    assert draft([C, A, C, C], 8, stored) == [C]  # one of two here as there


def test_texts_of_the_store_do_not_run_into_each_other() -> None:
    assert draft([C], 8, [[A, B, C], [D, E]]) == []


def test_every_prompt_begins_with_the_declared_store() -> None:
    drafter = started([A, B, C, D, A], [[E, A, B]])
    assert drafter.propose(1).num_nodes == 1
    drafter.start([C], plan())
    assert drafter.propose(1).num_nodes == 0
    drafter.start([E], plan())
    assert drafter.propose(1).token_ids.tolist() == [A]


def test_learning_across_prompts_must_be_asked_for() -> None:
    drafter = SuffixDrafter(learns=True)
    drafter.start([A, B], plan())
    drafter.commit([C, D])
    drafter.start([E, C], plan())
    assert drafter.propose(1).token_ids.tolist() == [D]


def test_the_store_drops_the_oldest() -> None:
    store = SuffixStore([[A, B], [C, D]], max_tokens=8)
    store.add([E, E, A])
    assert store.num_tokens == 7
    store.add([B, B])  # nine are too many: down to three quarters of eight
    assert store.num_tokens == 5
    assert sorted(store.automaton.follow[0]) == [A, B, E]
    store.add(list(range(20)))
    assert store.num_tokens == 8
    assert sorted(store.automaton.follow[0]) == list(range(12, 20))


def test_a_store_filled_at_once_is_that_filled_text_by_text() -> None:
    generator = random.Random(1)
    texts = [[generator.randrange(3) for _ in range(9)] for _ in range(4)]
    growing = SuffixStore()
    for text in texts:
        growing.add(text)
    assert growing.automaton.follow == SuffixStore(texts).automaton.follow
    assert growing.automaton.count == SuffixStore(texts).automaton.count


def test_it_is_a_drafter_without_probabilities() -> None:
    drafter = SuffixDrafter(source="suffix:texts.jsonl")
    assert isinstance(drafter, Drafter)
    assert (drafter.source, drafter.has_probs) == ("suffix:texts.jsonl", False)


# ----- against scanning


def followed(texts: list[list[int]], context: list[int]) -> dict[int, tuple[int, int]]:
    """Token -> how often it followed a context, and when last."""
    found: dict[int, tuple[int, int]] = {}
    before, size = 0, len(context)
    for text in texts:
        for end in range(size, len(text)):
            if text[end - size : end] == context:
                count, _ = found.get(text[end], (0, 0))
                found[text[end]] = (count + 1, before + end)
        before += len(text)
    return found


def scanned(texts: list[list[int]], suffix: list[int], budget: int, length: int, least: float) -> tuple[float, list]:
    """The chain behind a suffix: its expected tokens and the chain."""
    score, share, tokens = 0.0, 1.0, list[int]()
    while len(tokens) < min(budget, length):
        after = followed(texts, [*suffix, *tokens])
        if not after:
            break
        best = max(after, key=lambda token: after[token])
        share = share * after[best][0] / sum(count for count, _ in after.values())
        if share < least:
            break
        score += share
        tokens.append(best)
    return score, tokens


@pytest.mark.parametrize("num_tokens", [2, 4])
def test_chains_equal_those_of_a_scan_of_all_texts(num_tokens: int) -> None:
    generator, num_found = random.Random(num_tokens), 0
    for factor, least, depth in ((1.0, 0.1, 24), (2.0, 0.3, 4), (0.5, 0.0, 2), (4.0, 0.5, 24)):
        stored = [[generator.randrange(num_tokens) for _ in range(15)] for _ in range(2)]
        text = [generator.randrange(num_tokens) for _ in range(3)]
        drafter = started(text, stored, suffix_factor=factor, suffix_min_prob=least, suffix_depth=depth)
        for _ in range(15):
            length = generator.randrange(1, 8)
            best: tuple[float, list[int]] = (0.0, [])
            for texts in ([text], stored):
                for size in range(min(depth, len(text)), 0, -1):
                    found = scanned(texts, text[-size:], int(factor * size), length, least)
                    best = found if found[0] > best[0] + 1e-12 else best
            assert drafter.propose(length).token_ids.tolist() == best[1]
            num_found += bool(best[1])
            fresh = [generator.randrange(num_tokens) for _ in range(generator.randrange(1, 4))]
            drafter.commit(fresh)
            text = text + fresh
    assert num_found > 30


def shares(texts: list[list[int]], suffix: list[int], length: int) -> dict[tuple[int, ...], float]:
    """Every path behind a suffix and its share."""
    found: dict[tuple[int, ...], float] = {(): 1.0}
    layer = [()]
    for _ in range(length):
        grown: list[Any] = []
        for path in layer:
            after = followed(texts, [*suffix, *path])
            total = sum(count for count, _ in after.values())
            for token, (count, _) in after.items():
                found[(*path, token)] = found[path] * count / total
                grown.append((*path, token))
        layer = grown
    del found[()]
    return found


def test_tries_hold_the_paths_of_the_largest_shares() -> None:
    generator = random.Random(9)
    for _ in range(20):
        text = [generator.randrange(3) for _ in range(25)]
        knobs = {"tree_shape": "trie", "tree_width": 3, "tree_nodes": 7}
        drafter = started(text, suffix_factor=64, suffix_min_prob=0.0, suffix_depth=1, **knobs)
        found = paths(drafter.propose(4))
        wanted = shares([text], text[-1:], 4)
        largest = sorted(wanted.values(), reverse=True)[:7]
        assert [wanted[path] for path in found] == pytest.approx(largest)


# ----- texts from a file


def test_rows_are_texts_or_token_ids(tmp_path: Path) -> None:
    rows: list[Any] = ["ab", {"text": "b"}, [1, 2], {"token_ids": [3]}]
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert list(read_texts(path, lambda text: [ord(letter) - 97 for letter in text], 4)) == [[0, 1], [1], [1, 2], [3]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1, 4]", r"texts.jsonl:2 must be .* ids from 0 to 3"),
        ('{"prompt": "a"}', "texts.jsonl:2 must be a text"),
        ("[1", "texts.jsonl:2 must be JSON"),
        ('"a"', "texts.jsonl:2 is text, which needs a tokenizer"),
    ],
)
def test_other_rows_are_refused_by_line(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text("[0]\n" + line)
    with pytest.raises(ModelError, match=message):
        list(read_texts(tmp_path / "texts.jsonl", None, 4))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"readable JSONL file, but: .*missing"):
        list(read_texts(tmp_path / "missing", None, 4))
