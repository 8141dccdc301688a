"""Suffix decoding (2411.04975): what most often followed this ending of the text, in it or in earlier texts.

As in the paper a longer match allows a longer draft and candidates are ranked by how many tokens they are expected to
bring; unlike there, shares are of the occurrences that were followed by something, so that the text's own end, which
is one without, does not halve the share of what has occurred once.
"""

from __future__ import annotations

import heapq
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from autospec.config import MAX_DRAFT_LENGTH, MAX_SUFFIX_DEPTH, SpecConfig
from autospec.engine.drafters.automaton import SuffixAutomaton
from autospec.engine.drafters.base import DraftPlan, ForkedByCopy, Needs, Trail
from autospec.engine.tree import TokenTree
from autospec.errors import ModelError

MAX_STORED_TOKENS = 100_000
_ROUNDING = 1e-9  # 0.1 * 30 is less than 3 in floating point


class SuffixStore:
    """Earlier texts, bounded in tokens; the oldest are dropped.

    Args:
        texts: Token ids of the texts in it from the start, the oldest first.
        max_tokens: Most tokens held; of a longer text, the last ones.
    """

    def __init__(self, texts: Iterable[Sequence[int]] = (), max_tokens: int = MAX_STORED_TOKENS) -> None:
        self._texts: deque[Sequence[int]] = deque()
        self._max_tokens, self.num_tokens = max_tokens, 0
        for text in texts:
            self._hold(text)
        self._drop(max_tokens)
        self._build()

    def add(self, text: Sequence[int]) -> None:
        """Append a text as the newest."""
        self._hold(text)
        if self.num_tokens <= self._max_tokens:
            self.automaton.begin()
            self.automaton.extend(self._texts[-1])
        else:
            # An automaton forgets only by being built again; doing so after every quarter keeps that linear.
            self._drop(max(len(self._texts[-1]), self._max_tokens * 3 // 4))
            self._build()

    def _hold(self, text: Sequence[int]) -> None:
        self._texts.append(tuple(text)[-self._max_tokens :])
        self.num_tokens += len(self._texts[-1])

    def _drop(self, num_tokens: int) -> None:
        while self.num_tokens > num_tokens:
            self.num_tokens -= len(self._texts.popleft())

    def _build(self) -> None:
        self.automaton = SuffixAutomaton(MAX_SUFFIX_DEPTH + MAX_DRAFT_LENGTH)
        for text in self._texts:
            self.automaton.begin()
            self.automaton.extend(text)


@dataclass(slots=True)
class _Candidate:
    """A draft and how many of its tokens are expected to be right."""

    token_ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    score: float = 0.0


class SuffixDrafter(ForkedByCopy):
    """Drafts from the continuations of the longest suffixes that occurred before.

    A suffix of m tokens allows `suffix_factor` times m tokens. From its continuations those of the largest share are
    taken, one after the other, as long as the share of the whole path is at least `suffix_min_prob`; a chain takes the
    most frequent one at every token, the most recent of equals. Of all suffixes, in the text and in the store, the one
    whose shares sum up highest is used.

    Args:
        texts: Token ids of earlier texts: the declared state with which every prompt begins.
        learns: Add every text to the store when the next one begins. A measurement then depends on those before it.
        max_tokens: Most tokens in the store.
        source: Where the texts came from, as `suffix:path`.
    """

    has_probs = False
    shapes: tuple[str, ...] = ("chain", "trie")
    needs = Needs()

    def __init__(
        self,
        texts: Iterable[Sequence[int]] = (),
        *,
        learns: bool = False,
        max_tokens: int = MAX_STORED_TOKENS,
        source: str = "suffix",
    ) -> None:
        self.source, self.learns = source, learns
        self.store = SuffixStore(texts, max_tokens)
        self._context: list[int] = []
        self._config = SpecConfig()

    def start(self, prompt_ids: Sequence[int], plan: DraftPlan) -> None:
        if self.learns and self._context:
            self.store.add(self._context)
        self._context, self._config = [], plan.config
        self._text = SuffixAutomaton(plan.config.suffix_depth + plan.config.draft_length)
        self._match = (0, 0)  # in the store
        self.commit(prompt_ids)

    def propose(self, max_length: int) -> TokenTree:
        best, depth, store = _Candidate(), self._config.suffix_depth, self.store.automaton
        for automaton, suffixes in (
            (self._text, self._text.suffixes(depth)),
            (store, store.suffixes_of(*self._match, depth)),
        ):
            for state, length in suffixes:
                budget = self._budget(length, max_length)
                if best.score >= budget:
                    break  # no token brings more than 1, and shorter suffixes allow fewer
                found = self._grown(automaton, state, budget, max_length)
                if found.score > best.score:
                    best = found
        return TokenTree(torch.tensor(best.token_ids, dtype=torch.int64), tuple(best.parents))

    def commit(self, token_ids: Sequence[int], trail: Trail | None = None) -> None:
        self._context.extend(token_ids)
        self._text.extend(token_ids)
        for token in token_ids:
            self._match = self.store.automaton.advance(*self._match, token, self._config.suffix_depth)

    def _budget(self, length: int, max_length: int) -> int:
        most = max_length if self._config.tree_shape == "chain" else self._config.tree_nodes
        return min(most, token_budget(self._config, length))

    def _grown(self, automaton: SuffixAutomaton, state: int, budget: int, max_length: int) -> _Candidate:
        """Take the paths of the largest share, at most `budget` tokens and `max_length` along a path."""
        width = 1 if self._config.tree_shape == "chain" else self._config.tree_width
        made = _Candidate()
        for node in islice(continuations(automaton, state, width, self._config.suffix_min_prob, max_length), budget):
            made.token_ids.append(node.token)
            made.parents.append(node.parent)
            made.score += node.share
        return made


def token_budget(config: SpecConfig, length: int) -> int:
    """Return how many tokens a suffix of so many allows."""
    return int(config.suffix_factor * length + _ROUNDING)


class Continuation(NamedTuple):
    """A token of what followed a substring.

    Args:
        share: Of the path to it, among all that followed.
        token: Its id.
        parent: Number of the one before it, as they are yielded; -1 where it follows the substring itself.
        depth: From 1.
        rank: Among what followed the one before it, from 0.
    """

    share: float
    token: int
    parent: int
    depth: int
    rank: int


def continuations(
    automaton: SuffixAutomaton, state: int, width: int, least: float, max_length: int
) -> Iterator[Continuation]:
    """Yield what followed a state, the paths of the largest share first, those seen first of equals.

    What a smaller width, a larger share or a shorter length leaves over comes in the same order: which paths come
    before a path does not depend on others.

    Args:
        automaton: Of the state.
        state: Where to begin.
        width: Most tokens behind one path, those that most often followed.
        least: Smallest share of a path.
        max_length: Longest path.
    """
    order, num = 0, 0
    frontier = [(-1.0, 0, state, -1, 0, -1, 0)]  # (-share of the path, order, state, parent, depth, token, rank)
    while frontier:
        minus_share, _, state, node, depth, token, rank = heapq.heappop(frontier)
        if depth:
            yield Continuation(-minus_share, token, node, depth, rank)
            node, num = num, num + 1
        if depth == max_length:
            continue
        total, following = _following(automaton, state, width)
        for place, (token, child) in enumerate(following):
            share = -minus_share * automaton.count[child] / total
            if share >= least:
                order += 1
                heapq.heappush(frontier, (-share, order, child, node, depth + 1, token, place))


def _following(automaton: SuffixAutomaton, state: int, width: int) -> tuple[int, list[tuple[int, int]]]:
    """Return how often a state was followed by anything, and the tokens and states that most often did."""
    count, recent, follow = automaton.count, automaton.recent, automaton.follow[state]
    if len(follow) == 1:
        return count[next(iter(follow.values()))], list(follow.items())
    total = sum(count[child] for child in follow.values())
    return total, heapq.nsmallest(width, follow.items(), key=lambda item: (-count[item[1]], -recent[item[1]]))


def read_texts(path: Path, encode: Callable[[str], list[int]] | None, vocab_size: int) -> Iterator[list[int]]:
    """Yield the token ids of a JSONL file's rows.

    Args:
        path: Each line is a text, a list of token ids, or an object with `text` or `token_ids`.
        encode: Text to token ids; None where there is no tokenizer.
        vocab_size: Number of tokens that the target knows.

    Raises:
        ModelError: The file cannot be read, or a line is none of these; it is named.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"the texts of a suffix drafter must be a readable JSONL file, but: {error}") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _token_ids(line, f"{path}:{number}", encode, vocab_size)


def _token_ids(line: str, where: str, encode: Callable[[str], list[int]] | None, vocab_size: int) -> list[int]:
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ModelError(f"{where} must be JSON, but: {error}") from error
    if isinstance(row, dict):
        row = row.get("text", row.get("token_ids"))
    if isinstance(row, str):
        if encode is None:
            raise ModelError(f"{where} is text, which needs a tokenizer, but there is none")
        return encode(row)
    if not isinstance(row, list) or not all(type(token) is int and 0 <= token < vocab_size for token in row):
        raise ModelError(
            f"{where} must be a text, a list of token ids from 0 to {vocab_size - 1}, or an object with `text` or "
            f"`token_ids`, but got {line[:60]}"
        )
    return row
