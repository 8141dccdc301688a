"""Lookahead decoding (2402.02057): the target guesses at what comes later in the text, and n-grams of it are kept.

The original runs its window of guesses inside every verification pass, so what it knows depends on where steps began.
Here the windows are a function of the text (law 5). One window begins at every `lookahead_window`-th token of the
text, W, the prompt included. Its first row is that token and, as guesses at what follows, the W - 1 tokens before it.
A Jacobi iteration runs a row behind the text through the target and takes its first choice behind every token as the
next row. N - 1 of them, N being `lookahead_ngram`, give N rows, and, as in the original, an n-gram is a diagonal:
a token of the first row, the next token of the second row, and so on. The pool holds what followed each first token.

The cost is N - 1 forwards of the target, of at least W tokens each, for every W tokens of the text: with the paper's
15 and 5 about 0.27 forwards for each token, besides those that verify. Where several windows are due, as behind the
prompt, they share forwards.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from autospec.config import SpecConfig
from autospec.engine.cache import KVCache
from autospec.engine.drafters.base import DraftPlan, ForkedByCopy, Needs, Trail
from autospec.engine.model import CausalLM
from autospec.engine.tree import TokenTree, Trie, chain, empty_tree

WINDOWS_AT_ONCE = 8


def num_window_nodes(config: SpecConfig) -> int:
    """Return how many nodes windows may occupy at once."""
    return WINDOWS_AT_ONCE * _longest_row(config)


def _longest_row(config: SpecConfig) -> int:
    """Return how many tokens of a window are run in its last iteration: every row is one longer than the last."""
    return config.lookahead_window + config.lookahead_ngram - 2


class LookaheadDrafter(ForkedByCopy):
    """Drafts what followed the last token of the text in the pool, the most recent n-gram first.

    A chain is one n-gram; a trie holds `tree_width` of them.

    Args:
        target: The target itself.
    """

    source = "lookahead"
    has_probs = False
    shapes: tuple[str, ...] = ("chain", "trie")
    needs = Needs(target_slots=num_window_nodes)

    def __init__(self, target: CausalLM) -> None:
        self.target = target

    def start(self, prompt_ids: Sequence[int], plan: DraftPlan) -> None:
        self._plan = plan
        self._text = list(prompt_ids)
        self._num_windows = 0  # those that are in the pool
        self._pool: dict[int, dict[tuple[int, ...], None]] = {}  # first token -> what followed, the oldest first

    def propose(self, max_length: int) -> TokenTree:
        config = self._plan.config
        if max_length < 1:
            return empty_tree()
        found = [tail[:max_length] for tail in self._found()]
        if config.tree_shape == "trie":
            trie = Trie()
            for rank, tail in enumerate(found[: config.tree_width]):
                # However many older n-grams agree, the newest stays the heaviest; near tokens come before far ones.
                trie.insert(tail, [2.0**-rank / depth for depth in range(1, len(tail) + 1)])
            return trie.best(config.tree_nodes, max_length)
        return chain(torch.tensor(found[0] if found else (), dtype=torch.int64))

    def commit(self, token_ids: Sequence[int], trail: Trail | None = None) -> None:
        self._text.extend(token_ids)

    def _found(self) -> list[tuple[int, ...]]:
        """Return what followed the last token in the pool, the newest first."""
        self._look_ahead(self._plan.config)
        return list(reversed(self._pool.get(self._text[-1], ())))

    def _look_ahead(self, config: SpecConfig) -> None:
        """Take in the windows that are due: they begin at tokens of the text and end within the target's length."""
        size = config.lookahead_window
        due = range((self._num_windows + 1) * size - 1, min(len(self._text), self._end(config)), size)
        for first in range(0, len(due), WINDOWS_AT_ONCE):
            starts = due[first : first + WINDOWS_AT_ONCE]
            for start, tails in zip(starts, self._guess(self._text, starts, config), strict=True):
                self._harvest([self._text[start], *self._text[start - size + 1 : start]], tails)
        self._num_windows += len(due)

    def _end(self, config: SpecConfig) -> int:
        """Return behind which token of a text no window may begin."""
        return self.target.usable_length - _longest_row(config) + 1

    def _guess(self, text: Sequence[int], starts: Sequence[int], config: SpecConfig) -> list[list[tuple[int, ...]]]:
        """Return what the diagonals of windows hold behind their first tokens: [windows][lookahead_window]."""
        size, cache = config.lookahead_window, self._plan.target_cache
        rows = [[[text[at], *text[at - size + 1 : at]] for at in starts]]
        while len(rows) < config.lookahead_ngram:
            rows.append(iterate(self.target, cache, rows[-1], starts))
        return [
            [tuple(row[place + step] for step, row in enumerate(window[1:], start=1)) for place in range(size)]
            for window in zip(*rows, strict=True)
        ]

    def _harvest(self, tokens: Sequence[int], tails: Sequence[tuple[int, ...]]) -> None:
        """Put the diagonals of a window into the pool; an n-gram seen again becomes the newest."""
        for token, tail in zip(tokens, tails, strict=True):
            known = self._pool.setdefault(token, {})
            known.pop(tail, None)
            known[tail] = None


def iterate(target: CausalLM, cache: KVCache, rows: Sequence[Sequence[int]], starts: Sequence[int]) -> list[list[int]]:
    """Return the next row of every window: its first token, and the target's choice behind every token.

    Args:
        target: What chooses.
        cache: Of the text before the last start or more of it; left as it was.
        rows: [windows][n] the last row of each.
        starts: Place in the text of each.
    """
    length, num_cached = len(rows[0]), cache.length
    num_new = length * len(rows)
    mask = torch.zeros(num_new, num_cached + num_new, dtype=torch.bool)
    for number, start in enumerate(starts):
        own = slice(number * length, (number + 1) * length)
        mask[own, :start] = True
        mask[own, num_cached + own.start : num_cached + own.stop] = torch.ones(length, length).tril() > 0
    depths = [start + place - num_cached for start in starts for place in range(length)]
    input_ids = torch.tensor([[token for row in rows for token in row]])
    logits = target.forward(input_ids, cache, tree_mask=mask, depths=depths)[0]
    cache.crop(0, num_cached)
    chosen: list[list[int]] = logits.argmax(dim=-1).view(len(rows), length).tolist()
    return [[row[0], *choices] for row, choices in zip(rows, chosen, strict=True)]
