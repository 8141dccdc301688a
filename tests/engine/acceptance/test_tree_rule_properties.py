"""What holds for tree rules on any tree of certain children, whatever the target says: coins tossed in every way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from autospec.engine.acceptance.trees import accept_candidates, accept_traversal
from autospec.engine.acceptance.verdict import Verdict, accept_matching
from autospec.engine.tree import TokenTree

VOCAB = 3
Rule = Callable[..., Verdict]


@st.composite
def trees(draw: st.DrawFn) -> TokenTree:
    """Up to six nodes, siblings of different tokens."""
    parents, tokens = list[int](), list[int]()
    for node in range(draw(st.integers(0, 6))):
        parent = draw(st.integers(-1, node - 1))
        taken = {token for token, above in zip(tokens, parents, strict=True) if above == parent}
        if len(taken) < VOCAB:
            parents.append(parent)
            tokens.append(draw(st.sampled_from(sorted(set(range(VOCAB)) - taken))))
        else:
            break
    return TokenTree(torch.tensor(tokens, dtype=torch.int64), tuple(parents))


@st.composite
def drafted(draw: st.DrawFn) -> tuple[TokenTree, Tensor]:
    """A tree, and what the target says behind its root and nodes; some tokens may be impossible there."""
    tree = draw(trees())
    row = st.lists(st.integers(0, 5), min_size=VOCAB, max_size=VOCAB).filter(any)
    weights = torch.tensor([draw(row) for _ in range(tree.num_nodes + 1)], dtype=torch.float64)
    return tree, weights / weights.sum(dim=-1, keepdim=True)


@dataclass
class Forced:
    """Coins and draws as they were written down, and the first choice for what is asked beyond that."""

    choices: list[int]
    asked: list[list[float]] = field(default_factory=list)  # of every choice the probabilities

    def _choose(self, probs: list[float]) -> int:
        self.asked.append(probs)
        number = len(self.asked) - 1
        if number == len(self.choices):
            self.choices.append(0)
        return self.choices[number]

    def keeps(self, node: int, prob: float) -> bool:
        return self._choose([1.0 - prob, prob]) == 1

    def correction(self, probs: Tensor) -> int:
        return self._choose(probs.tolist())

    def bonus(self, probs: Tensor, depth: int) -> int:
        return self._choose(probs.tolist())


def outcomes(rule: Rule, tree: TokenTree, target: Tensor) -> Iterator[tuple[Verdict, float]]:
    """Every verdict that is possible, with its probability."""
    choices: list[int] = []
    while True:
        chance = Forced(list(choices))
        verdict = rule(tree, target, chance)
        weight = 1.0
        for probs, choice in zip(chance.asked, chance.choices, strict=True):
            weight *= probs[choice]
        if weight > 0.0:
            yield verdict, weight
        choices = chance.choices
        while choices and choices[-1] == len(chance.asked[len(choices) - 1]) - 1:
            choices.pop()
        if not choices:
            return
        choices[-1] += 1


@pytest.mark.parametrize("rule", [accept_candidates, accept_traversal])
@given(draft=drafted())
def test_the_next_two_tokens_are_the_target_s(rule: Rule, draft: tuple[TokenTree, Tensor]) -> None:
    tree, target = draft
    total, first, second = 0.0, Counter[int](), Counter[tuple[int, int]]()
    for verdict, weight in outcomes(rule, tree, target):
        assert all(tree.parents[node] == above for above, node in zip((-1, *verdict.path), verdict.path, strict=False))
        written = [*(tree.tokens[node] for node in verdict.path), verdict.next_id]
        total += weight
        first[written[0]] += weight
        below = tree.child(-1, written[0])
        if below is not None:
            for token in range(VOCAB):  # where the step ends behind the first token, the target goes on from there
                share = float(target[below + 1, token]) if len(written) == 1 else float(written[1] == token)
                second[written[0], token] += weight * share
    assert total == pytest.approx(1.0)
    for token in range(VOCAB):
        assert first[token] == pytest.approx(float(target[0, token]), abs=1e-9)
        below = tree.child(-1, token)
        if below is not None:
            for after in range(VOCAB):
                expected = float(target[0, token] * target[below + 1, after])
                assert second[token, after] == pytest.approx(expected, abs=1e-9)


@given(draft=drafted())
def test_matching_follows_the_target_as_far_as_the_tree_reaches(draft: tuple[TokenTree, Tensor]) -> None:
    tree, target = draft
    own: list[int] = target.argmax(dim=-1).tolist()
    verdict, node = accept_matching(tree, own), -1
    for accepted in verdict.path:
        assert (tree.parents[accepted], tree.tokens[accepted]) == (node, own[node + 1])
        node = accepted
    assert verdict.next_id == own[node + 1]
    assert tree.child(node, verdict.next_id) is None
