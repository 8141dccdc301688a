"""The datastore against a scan of all its texts, its files and its sampling."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from autospec.engine.datastore import HEADER, SUFFIXES, TOKENS, Datastore, read_header, suffix_array, write_datastore
from autospec.errors import ModelError


def random_texts(seed: int, num_tokens: int, num_texts: int = 6) -> list[list[int]]:
    generator = random.Random(seed)
    return [[generator.randrange(num_tokens) for _ in range(generator.randrange(1, 50))] for _ in range(num_texts)]


def scanned(texts: list[list[int]], pattern: list[int], length: int) -> list[list[int]]:
    """Sorted: what follows every occurrence that is followed by something, filled up with -1."""
    found = []
    for text in texts:
        for end in range(len(pattern), len(text)):
            if text[end - len(pattern) : end] == pattern:
                behind = text[end : end + length]
                found.append(behind + [-1] * (length - len(behind)))
    return sorted(found)


@pytest.mark.parametrize("num_tokens", [1, 2, 50])
def test_positions_come_in_order_of_what_stands_there(num_tokens: int) -> None:
    tokens = np.array(
        [token for text in random_texts(num_tokens, num_tokens) for token in [*text, -1]], dtype=np.int32
    )
    listed = tokens.tolist()
    assert suffix_array(tokens).tolist() == sorted(range(len(listed)), key=lambda start: listed[start : start + 32])


@pytest.mark.parametrize("num_tokens", [1, 2, 5])
def test_every_lookup_equals_a_scan(num_tokens: int) -> None:
    texts = random_texts(num_tokens + 10, num_tokens)
    store, generator = Datastore.of(texts), random.Random(0)
    sizes = []
    for _ in range(80):
        text = generator.choice(texts)
        end = generator.randrange(1, len(text) + 1)
        context = [*text[:end], *[generator.randrange(num_tokens)] * generator.randrange(2)]
        wanted = next((s for s in range(min(16, len(context)), 0, -1) if scanned(texts, context[-s:], 1)), 0)
        size, hits = store.longest(context)
        assert size == wanted
        if size:
            rows = store.continuations(hits, size, 4, max_hits=1000)
            assert sorted(rows.tolist()) == scanned(texts, context[-size:], 4)
        sizes.append(size)
    assert len(set(sizes)) > 4


def test_tokens_that_it_does_not_know_are_not_found() -> None:
    store = Datastore.of([[1, 2, 3]])
    assert store.longest([1, 9]) == (0, range(0))
    assert store.longest([3]) == (0, range(0))  # only at the end
    assert store.longest([]) == (0, range(0))


def test_hits_are_sampled_evenly() -> None:
    # "7" is followed by 0 .. 99: the hits are in that order.
    store = Datastore.of([[7, token] for token in range(100) if token != 7])
    size, hits = store.longest([7])
    assert (size, len(hits)) == (1, 99)
    rows = store.continuations(hits, 1, 1, max_hits=9)[:, 0].tolist()
    assert rows == [0, 12, 23, 34, 45, 56, 67, 78, 89]


def test_a_datastore_is_read_as_it_was_written(tmp_path: Path) -> None:
    texts = random_texts(4, 9)
    header = write_datastore(tmp_path / "store", texts, "abc", max_tokens=1000, vocab_size=9)
    store = Datastore.load(tmp_path / "store")
    assert store.header == header == read_header(tmp_path / "store")
    assert (header.tokenizer, header.num_texts, header.num_tokens) == ("abc", 6, sum(map(len, texts)))
    assert isinstance(store._tokens, np.memmap)
    fresh = Datastore.of(texts)
    for context in ([1, 2], [8], [3, 3, 3]):
        assert store.longest(context) == fresh.longest(context)


def test_what_is_too_much_is_left_out(tmp_path: Path) -> None:
    header = write_datastore(tmp_path, [[1, 2, 3], [], [4, 5, 6], [7]], "abc", max_tokens=5, vocab_size=9)
    assert (header.num_texts, header.num_tokens) == (2, 5)
    assert np.load(tmp_path / TOKENS).tolist() == [-1, 1, 2, 3, -1, 4, 5, -1]


def test_other_tokens_have_another_digest(tmp_path: Path) -> None:
    one = write_datastore(tmp_path / "one", [[1, 2]], "abc", 10, 9)
    assert one.digest == write_datastore(tmp_path / "same", [[1, 2]], "abc", 10, 9).digest
    assert one.digest != write_datastore(tmp_path / "other", [[1], [2]], "abc", 10, 9).digest


def test_nothing_to_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="at least one token"):
        write_datastore(tmp_path, [[], []], "abc", 10, 9)
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match=r"must be written to a folder, but .*file cannot be"):
        write_datastore(tmp_path / "file", [[1]], "abc", 10, 9)


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"must be a folder that `python -m autospec datastore` wrote"):
        Datastore.load(tmp_path)
    write_datastore(tmp_path, [[1, 2, 3]], "abc", 10, 9)
    np.save(tmp_path / SUFFIXES, np.zeros(2, dtype=np.int32))
    with pytest.raises(ModelError, match=r"must belong together, but .* 5 tokens .* \(5,\) and \(2,\)"):
        Datastore.load(tmp_path)
    (tmp_path / SUFFIXES).write_bytes(b"")
    with pytest.raises(ModelError, match="must be whole"):
        Datastore.load(tmp_path)
    header = json.loads((tmp_path / HEADER).read_text())
    (tmp_path / HEADER).write_text(json.dumps({**header, "version": 2}))
    with pytest.raises(ModelError, match=r"must be of version 1, but .* is of 2"):
        Datastore.load(tmp_path)
    (tmp_path / HEADER).write_text(json.dumps({**header, "size": 2}))
    with pytest.raises(ModelError, match="must be a folder that"):
        Datastore.load(tmp_path)
