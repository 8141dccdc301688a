"""The suffix automaton, by hand and against a scan of every substring."""

from __future__ import annotations

import random

import pytest

from autospec.engine.drafters.automaton import SuffixAutomaton


def build(*texts: list[int], max_counted: int = 100) -> SuffixAutomaton:
    automaton = SuffixAutomaton(max_counted)
    for text in texts:
        automaton.begin()
        automaton.extend(text)
    return automaton


def state_of(automaton: SuffixAutomaton, tokens: list[int]) -> int | None:
    state: int | None = 0
    for token in tokens:
        state = automaton.follow[state].get(token) if state is not None else None
    return state


def ends(texts: list[list[int]], tokens: list[int]) -> list[int]:
    """Numbers of the tokens, over all texts, at which a substring ends."""
    found, before = [], 0
    for text in texts:
        found += [
            before + end - 1 for end in range(len(tokens), len(text) + 1) if text[end - len(tokens) : end] == tokens
        ]
        before += len(text)
    return found


def test_counts_by_hand() -> None:
    automaton = build([1, 2, 1, 2, 1])
    found = {tokens: state_of(automaton, list(tokens)) for tokens in [(1,), (2,), (1, 2), (2, 1), (1, 2, 1)]}
    counts = {tokens: automaton.count[state] for tokens, state in found.items() if state is not None}
    assert counts == {(1,): 3, (2,): 2, (1, 2): 2, (2, 1): 2, (1, 2, 1): 2}
    assert state_of(automaton, [2, 2]) is None
    # 2 is always preceded by 1: one state for both.
    assert found[2,] == found[1, 2]
    assert automaton.recent[found[1, 2, 1] or 0] == 4


@pytest.mark.parametrize("num_tokens", [1, 2, 4])
@pytest.mark.parametrize("max_counted", [3, 7, 100])
def test_every_substring_is_counted_while_texts_grow(num_tokens: int, max_counted: int) -> None:
    generator = random.Random(num_tokens * 1000 + max_counted)
    texts = [[generator.randrange(num_tokens) for _ in range(size)] for size in (14, 1, 0, 9, 11)]
    automaton, known = SuffixAutomaton(max_counted), list[list[int]]()
    for text in texts:
        automaton.begin()
        known.append([])
        for token in text:
            automaton.extend([token])
            known[-1].append(token)
            substrings = {
                tuple(one[start:end]) for one in known for end in range(len(one) + 1) for start in range(end)
            }
            for tokens in substrings:
                state, where = state_of(automaton, list(tokens)), ends(known, list(tokens))
                assert state is not None
                if len(tokens) <= max_counted:
                    assert automaton.count[state] == len(where), tokens
                    assert automaton.recent[state] == where[-1], tokens
            check_suffixes(automaton, known)
    assert len(automaton.link) <= 2 * sum(map(len, texts)) + 1


def check_suffixes(automaton: SuffixAutomaton, known: list[list[int]]) -> None:
    text = known[-1]
    for at_most in (1, 3, automaton.max_counted):
        last = min(at_most, len(text), automaton.max_counted)
        followed = {}  # state -> its longest suffix that was followed by something
        for size in range(1, last + 1):
            suffix = text[-size:]
            if any(ends(known, [*suffix, token]) for token in range(5)):
                followed[state_of(automaton, suffix)] = size
        found = list(automaton.suffixes(at_most))
        assert dict(found) == followed
        assert [size for _, size in found] == sorted(followed.values(), reverse=True)


def test_the_longest_known_suffix_of_another_text_is_followed() -> None:
    generator = random.Random(3)
    texts = [[generator.randrange(3) for _ in range(20)] for _ in range(2)]
    automaton = build(*texts)
    for at_most in (2, 4, 30):
        state, length, other = 0, 0, list[int]()
        for _ in range(60):
            other.append(generator.randrange(4))
            state, length = automaton.advance(state, length, other[-1], at_most)
            sizes = range(min(at_most, len(other)), 0, -1)
            longest = next((size for size in sizes if ends(texts, other[-size:])), 0)
            assert length == longest
            assert state == state_of(automaton, other[-longest:] if longest else [])


def test_a_text_that_repeats_itself_makes_few_states_and_bounded_work() -> None:
    automaton = build([7] * 3000, max_counted=10)
    assert len(automaton.link) == 3001
    assert [automaton.count[size] for size in (1, 2, 10)] == [3000, 2999, 2991]
    assert sum(automaton.count) <= 10 * 3000
