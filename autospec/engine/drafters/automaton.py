"""A suffix automaton: all substrings of texts that grow token by token, how often each occurred and when last.

Built online in linear time (Blumer et al., 1985; several texts in one automaton as in Mohri et al., 2009). Knows
tokens only; what is drafted from it stands in `suffix`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import copy
from typing import Self


class SuffixAutomaton:
    """States are sets of substrings that end at the same places; state 0 is the empty string.

    A substring is found by following `follow` from state 0. Counts are kept for substrings of up to `max_counted`
    tokens: a token costs at most that many updates, and far fewer in text that does not repeat itself throughout.

    Args:
        max_counted: Longest substring whose `count` and `recent` are right.
    """

    def __init__(self, max_counted: int) -> None:
        self.max_counted = max_counted
        self.follow: list[dict[int, int]] = [{}]  # state -> token -> state
        self.link: list[int] = [-1]  # state of the longest suffix that also ends elsewhere
        self.length: list[int] = [0]  # of the longest substring of a state; its shortest is one longer than its link's
        self.count: list[int] = [0]  # occurrences
        self.recent: list[int] = [-1]  # number of the token, over all texts, at which it last ended
        self._num_tokens = 0
        self.begin()

    def copy(self) -> Self:
        """Return another that knows the same and grows on its own."""
        made = copy(self)
        made.follow = [tokens.copy() for tokens in self.follow]
        for name in ("link", "length", "count", "recent"):
            setattr(made, name, getattr(self, name).copy())
        return made

    def begin(self) -> None:
        """Start another text: no substring reaches from the last one into it."""
        self._last = 0
        self._window = (0, 0)  # state and length of the longest counted suffix

    def extend(self, token_ids: Iterable[int]) -> None:
        """Append tokens to the present text."""
        for token in token_ids:
            self._last = self._grown(token)
            self._count(token)

    def suffixes(self, at_most: int) -> Iterator[tuple[int, int]]:
        """Yield state and length of the present text's suffixes that have been followed by something.

        The longest first, and one of each state, as the suffixes of a state are followed by the same.

        Args:
            at_most: Longest suffix, in tokens.
        """
        return self.suffixes_of(*self._window, at_most)

    def suffixes_of(self, state: int, length: int, at_most: int) -> Iterator[tuple[int, int]]:
        """Yield the same for the suffixes of a substring of `length` tokens in a state."""
        while state > 0:
            above = self.link[state]
            if self.length[above] < at_most and self.follow[state]:
                yield state, min(length, self.length[state], at_most)
            state, length = above, self.length[above]

    def advance(self, state: int, length: int, token: int, at_most: int) -> tuple[int, int]:
        """Return state and length of the longest known suffix of at most `at_most` tokens of a substring and a token.

        Args:
            state: Of the longest known suffix of a text so far.
            length: Of that suffix.
            token: The text's next token.
            at_most: Longest suffix, in tokens.
        """
        while state > 0 and token not in self.follow[state]:
            state = self.link[state]
            length = self.length[state]
        if token not in self.follow[state]:
            return 0, 0
        state, length = self.follow[state][token], min(length + 1, at_most)
        while self.length[self.link[state]] >= length:
            state = self.link[state]
        return state, length

    def _grown(self, token: int) -> int:
        """Make the present text one token longer and return the state of all of it."""
        state = self._last
        known = self.follow[state].get(token)
        if known is not None:  # an earlier text began like this one
            return self._fitting(state, token, known)
        grown = self._add(self.length[state] + 1, {}, 0)
        while state >= 0 and token not in self.follow[state]:
            self.follow[state][token] = grown
            state = self.link[state]
        if state >= 0:
            self.link[grown] = self._fitting(state, token, self.follow[state][token])
        return grown

    def _fitting(self, state: int, token: int, behind: int) -> int:
        """Return a state whose longest substring is that of `state` and a token; split what holds longer ones."""
        if self.length[behind] == self.length[state] + 1:
            return behind
        part = self._add(self.length[state] + 1, dict(self.follow[behind]), self.link[behind])
        self.count[part], self.recent[part] = self.count[behind], self.recent[behind]
        self.link[behind] = part
        while state >= 0 and self.follow[state].get(token) == behind:
            self.follow[state][token] = part
            state = self.link[state]
        return part

    def _add(self, length: int, follow: dict[int, int], link: int) -> int:
        self.follow.append(follow)
        self.link.append(link)
        self.length.append(length)
        self.count.append(0)
        self.recent.append(-1)
        return len(self.link) - 1

    def _count(self, token: int) -> None:
        state, length = self._window
        while length and self.length[self.link[state]] >= length:  # growing may have split the state
            state = self.link[state]
        self._window = self.advance(state, length, token, self.max_counted)
        state = self._window[0]
        while state > 0:
            self.count[state] += 1
            self.recent[state] = self._num_tokens
            state = self.link[state]
        self._num_tokens += 1
