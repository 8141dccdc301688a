"""A datastore: the tokens of many texts and where each of their beginnings comes in order, memory-mapped from files.

A folder with `datastore.json` (what it is), `tokens.npy` (the texts, each behind a separator) and `suffixes.npy`
(their positions, sorted by the tokens that stand there). Knows token ids only; files of text and tokenizers come from
outside.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autospec.errors import ModelError

VERSION = 1
SORTED_TOKENS = 32  # positions are in order of this many tokens, which is enough to look up half as many
MAX_SUFFIX = 16
SEPARATOR = -1
HEADER, TOKENS, SUFFIXES = "datastore.json", "tokens.npy", "suffixes.npy"

Ids = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class DatastoreHeader:
    """What a datastore is.

    Args:
        tokenizer: `TextCodec.fingerprint` of the tokenizer that made its token ids.
        num_texts: Texts in it.
        num_tokens: Tokens in it, separators not counted.
        digest: Sixteen hexadecimal digits over the tokens.
        version: Of the layout.
    """

    tokenizer: str
    num_texts: int
    num_tokens: int
    digest: str
    version: int = VERSION


def suffix_array(tokens: Ids) -> Ids:
    """Return all positions in order of the `SORTED_TOKENS` tokens from there on, equal ones in order of position.

    Prefix doubling (Manber and Myers, 1993) that stops once enough tokens are compared: five rounds of sorting,
    whatever the length.

    Args:
        tokens: [n] int32.
    """
    _, ranks = np.unique(tokens, return_inverse=True)
    rank = ranks.astype(np.int64).reshape(-1) + 1  # 0 is the end of all texts
    order = np.argsort(rank, kind="stable")
    compared = 1
    while compared < SORTED_TOKENS:
        behind = np.zeros_like(rank)
        behind[:-compared] = rank[compared:]
        key = rank * (len(tokens) + 1) + behind
        order = np.argsort(key, kind="stable")
        ordered = key[order]
        rank = np.empty_like(rank)
        rank[order] = np.cumsum(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        compared *= 2
    return order.astype(np.int32)


def write_datastore(
    folder: Path, texts: Iterable[Sequence[int]], tokenizer: str, max_tokens: int, vocab_size: int
) -> DatastoreHeader:
    """Write the texts to a folder, and return what it is.

    Args:
        folder: Made where it is not there; what it holds of an older datastore is replaced.
        texts: Token ids. What exceeds `max_tokens` is left out.
        tokenizer: Fingerprint of the tokenizer they come from.
        max_tokens: Most tokens held: a datastore takes 8 bytes of disk a token, and building one about 60 of memory.
        vocab_size: Ids lie below it.

    Raises:
        ModelError: There are no tokens, or the folder cannot be written.
    """
    parts, num_texts, num_tokens = [np.array([SEPARATOR], dtype=np.int32)], 0, 0
    for text in texts:
        part = np.asarray(text[: max_tokens - num_tokens], dtype=np.int32)
        if len(part):
            assert 0 <= part.min() <= part.max() < vocab_size
            parts += [part, parts[0]]
            num_texts, num_tokens = num_texts + 1, num_tokens + len(part)
        if num_tokens == max_tokens:
            break
    if not num_tokens:
        raise ModelError("a datastore must hold at least one token, but the texts have none")
    tokens = np.concatenate(parts)
    header = DatastoreHeader(tokenizer, num_texts, num_tokens, hashlib.sha256(tokens.tobytes()).hexdigest()[:16])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / HEADER).unlink(missing_ok=True)  # written last: a folder with one is whole
        np.save(folder / TOKENS, tokens)
        np.save(folder / SUFFIXES, suffix_array(tokens))
        (folder / HEADER).write_text(json.dumps(asdict(header), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ModelError(f"a datastore must be written to a folder, but {folder} cannot be: {error}") from error
    return header


class Datastore:
    """Finds where a sequence of tokens occurs.

    Args:
        tokens: [n] the texts, with `SEPARATOR` before, between and behind them.
        suffixes: [n] as `suffix_array` makes them.
        header: What it is.
    """

    def __init__(self, tokens: Ids, suffixes: Ids, header: DatastoreHeader) -> None:
        self._tokens, self._suffixes, self.header = tokens, suffixes, header

    @classmethod
    def of(cls, texts: Iterable[Sequence[int]]) -> Datastore:
        """Make one in memory."""
        parts = [(SEPARATOR,), *((*text, SEPARATOR) for text in texts)]
        tokens = np.array([token for part in parts for token in part], dtype=np.int32)
        num_tokens = len(tokens) - len(parts)
        return cls(tokens, suffix_array(tokens), DatastoreHeader("", len(parts) - 1, num_tokens, ""))

    @classmethod
    def load(cls, folder: Path) -> Datastore:
        """Map the files of a folder into memory.

        Raises:
            ModelError: It is no whole datastore, or one of a newer layout.
        """
        header = read_header(folder)
        try:
            tokens, suffixes = (np.load(folder / name, mmap_mode="r") for name in (TOKENS, SUFFIXES))
        except (OSError, ValueError, EOFError) as error:
            raise ModelError(f"the files of a datastore must be whole, but in {folder}: {error}") from error
        wanted = (header.num_tokens + header.num_texts + 1,)
        if tokens.shape != wanted or suffixes.shape != wanted:
            raise ModelError(
                f"the files of a datastore must belong together, but in {folder} {HEADER} tells of {wanted[0]} tokens "
                f"and separators, and there are {tokens.shape} and {suffixes.shape}"
            )
        return cls(tokens, suffixes, header)

    def longest(self, context: Sequence[int], at_most: int = MAX_SUFFIX) -> tuple[int, range]:
        """Return the length of the longest suffix of a context that is followed by something, and its hits.

        Args:
            context: Token ids.
            at_most: Longest suffix looked up, at most `MAX_SUFFIX`.

        Returns:
            (0, an empty range) where there is none. Hits are places in the order of suffixes; see `continuations`.
        """
        assert at_most <= MAX_SUFFIX
        low, hits = 0, range(0)
        high = min(at_most, len(context))
        # What a suffix occurs with, every shorter one does too: the longest is found by halving.
        while low < high:
            middle = (low + high + 1) // 2
            found = self.find(context[len(context) - middle :])
            if found:
                low, hits = middle, found
            else:
                high = middle - 1
        return low, hits

    def find(self, pattern: Sequence[int]) -> range:
        """Return the hits of a pattern that are followed by something."""
        wanted = tuple(pattern)
        # Separators are below all tokens, so hits at the end of a text come first among the hits.
        start = self._first(lambda there: there[: len(wanted) + 1] >= (*wanted, SEPARATOR + 1))
        stop = self._first(lambda there: there[: len(wanted)] > wanted)
        return range(start, stop)

    def continuations(self, hits: range, skip: int, length: int, max_hits: int) -> Ids:
        """Return what follows hits, evenly sampled: [at most max_hits, length], `SEPARATOR` from a text's end on.

        Args:
            hits: Of a pattern.
            skip: Length of the pattern.
            length: Tokens wanted behind it.
            max_hits: Most hits looked at.
        """
        num_hits = min(len(hits), max_hits)
        places = hits.start + np.arange(num_hits, dtype=np.int64) * len(hits) // max(num_hits, 1)
        starts = self._suffixes[places].astype(np.int64) + skip
        wanted = np.minimum(starts[:, None] + np.arange(length), len(self._tokens) - 1)
        found: Ids = np.asarray(self._tokens[wanted])
        found[np.logical_or.accumulate(found == SEPARATOR, axis=1)] = SEPARATOR
        return found

    def _first(self, holds: Callable[[tuple[int, ...]], bool]) -> int:
        """Return the first place in the order from which on something holds of the tokens there."""
        low, high = 0, len(self._suffixes)
        while low < high:
            middle = (low + high) // 2
            position = int(self._suffixes[middle])
            if holds(tuple(self._tokens[position : position + MAX_SUFFIX + 1].tolist())):
                high = middle
            else:
                low = middle + 1
        return low


def read_header(folder: Path) -> DatastoreHeader:
    """Return what the datastore in a folder is.

    Raises:
        ModelError: There is none, or one of a layout that this autospec does not read.
    """
    path = folder / HEADER
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
        header = DatastoreHeader(**values)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, TypeError) as error:
        raise ModelError(
            f"a datastore must be a folder that `python -m autospec datastore` wrote, but {path}: {error}"
        ) from error
    if header.version != VERSION:
        raise ModelError(f"a datastore must be of version {VERSION}, but {path} is of {header.version!r}")
    return header
