"""Rules for trees: exact enumeration of every draft, coin and draw; hand-worked numbers; wrong uses caught."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import permutations, product

import pytest
import torch
from torch import Tensor

from autospec.engine.acceptance import (
    CHAIN_RULES,
    Chance,
    Verdict,
    accept_candidates,
    accept_chain,
    accept_matching,
    accept_traversal,
)
from autospec.engine.tree import TokenTree, chain

VOCAB = 3

Context = tuple[int, ...]
Paths = tuple[Context, ...]
Rule = Callable[[TokenTree, Tensor, Chance], Verdict]
Drafts = list[tuple[float, TokenTree]]

LEANING = ((0,), (1,), (0, 0), (0, 1), (1, 0))  # the second child has one child less
NARROW = ((0,), (0, 0), (0, 0, 0))
SHAPES = {"leaning": LEANING, "narrow": NARROW, "wide": ((0,), (1,), (2,)), "fork": ((0,), (0, 0), (0, 1), (0, 0, 0))}
REPLACED = pytest.mark.parametrize("replaced", [False, True], ids=["without", "with"])


class Rows:
    """Random next-token rows, one for each context; with `holes` one token of every row cannot come."""

    def __init__(self, seed: int, holes: bool = False) -> None:
        self._generator, self._holes = torch.Generator().manual_seed(seed), holes
        self._rows: dict[Context, Tensor] = {}

    def __getitem__(self, context: Context) -> Tensor:
        if context not in self._rows:
            weights = torch.rand(VOCAB, generator=self._generator, dtype=torch.float64) ** 2 + 1e-3
            if self._holes:
                weights[torch.randint(VOCAB, (), generator=self._generator)] = 0.0
            self._rows[context] = weights / weights.sum()
        return self._rows[context]


@dataclass
class Script:
    """Chance that follows a list of outcomes, then always the first possible; keeps what else could have come."""

    script: Sequence[int]
    taken: list[int] = field(default_factory=list)
    weight: float = 1.0
    others: list[tuple[int, ...]] = field(default_factory=list)

    def _choose(self, weights: Sequence[float]) -> int:
        place = len(self.taken)
        if place < len(self.script):
            choice = self.script[place]
        else:
            choice, *rest = (index for index, weight in enumerate(weights) if weight > 0.0)
            self.others += [(*self.taken, other) for other in rest]
        self.taken.append(choice)
        self.weight *= weights[choice]
        return choice

    def keeps(self, node: int, prob: float) -> bool:
        assert -1e-12 < prob < 1.0 + 1e-12
        return self._choose([min(prob, 1.0), max(0.0, 1.0 - prob)]) == 0

    def correction(self, probs: Tensor) -> int:
        return self._choose(probs.tolist())

    def bonus(self, probs: Tensor, depth: int) -> int:
        return self._choose(probs.tolist())


def outcomes(rule: Rule, tree: TokenTree, target_probs: Tensor) -> Iterator[tuple[float, Verdict]]:
    """Every verdict a rule can give of one draft, with its probability."""
    pending: list[tuple[int, ...]] = [()]
    while pending:
        chance = Script(pending.pop())
        verdict = rule(tree, target_probs, chance)
        yield chance.weight, verdict
        pending += chance.others


def families(paths: Paths) -> dict[Context, int]:
    """How many children every inner path has; paths are in order of depth."""
    return Counter(path[:-1] for path in sorted(paths, key=lambda path: (len(path), path)))


def make_tree(paths: Paths, tokens: dict[Context, int], draft: Rows | None) -> TokenTree:
    """The tree in which every rank path of `tokens` is its token; with the rows where it was drawn."""
    order = [path for path in sorted(paths, key=lambda path: (len(path), path)) if path in tokens]
    texts = {path: tuple(tokens[path[:end]] for end in range(1, len(path) + 1)) for path in order}
    rows = None if draft is None else torch.stack([draft[texts[path][:-1]] for path in order])
    parents = tuple(order.index(path[:-1]) if len(path) > 1 else -1 for path in order)
    return TokenTree(torch.tensor([tokens[path] for path in order]), parents, rows)


def drawn(paths: Paths, draft: Rows, replaced: bool) -> Drafts:
    """Every tree that can be drawn in a form fixed beforehand, with its probability."""
    pending: list[tuple[float, dict[Context, int]]] = [(1.0, {})]
    for parent, count in families(paths).items():
        longer = []
        for weight, tokens in pending:
            if parent and parent not in tokens:  # there was nothing left to draw it from
                longer.append((weight, tokens))
                continue
            row = draft[tuple(tokens[parent[:end]] for end in range(1, len(parent) + 1))].tolist()
            size = count if replaced else min(count, sum(p > 0.0 for p in row))
            for family in product(range(VOCAB), repeat=size) if replaced else permutations(range(VOCAB), size):
                chance, left = weight, 1.0
                for token in family:
                    chance *= row[token] / left
                    left -= 0.0 if replaced else row[token]
                    left = max(left, 1e-300)
                if chance > 0.0:
                    longer.append((chance, tokens | {(*parent, place): token for place, token in enumerate(family)}))
        pending = longer
    return [(weight, make_tree(paths, tokens, draft)) for weight, tokens in pending]


def most_probable(paths: Paths, draft: Rows, rows: bool = False) -> Drafts:
    """The one tree of the most probable children; the classic bug is to give it the rows it was not drawn from."""
    tokens: dict[Context, int] = {}
    for parent, count in families(paths).items():
        text = tuple(tokens[parent[:end]] for end in range(1, len(parent) + 1))
        best = draft[text].argsort(descending=True)[:count].tolist()
        tokens |= {(*parent, place): token for place, token in enumerate(best)}
    return [(1.0, make_tree(paths, tokens, draft if rows else None))]


def text_of(tree: TokenTree, path: Sequence[int]) -> Context:
    return tuple(tree.token_ids[list(path)].tolist())


def above(tree: TokenTree, node: int) -> list[int]:
    path = []
    while node >= 0:
        path.insert(0, node)
        node = tree.parents[node]
    return path


def rows_of(tree: TokenTree, target: Rows) -> Tensor:
    return torch.stack([target[text_of(tree, above(tree, node))] for node in range(-1, tree.num_nodes)])


@dataclass
class Outcome:
    """The law of one step, and how many draft tokens it accepts on average."""

    law: Counter[Context]
    num_accepted: float


def enumerate_step(rule: Rule, drafts: Drafts, target: Rows) -> Outcome:
    outcome = Outcome(Counter(), 0.0)
    for weight, tree in drafts:
        for chance, verdict in outcomes(rule, tree, rows_of(tree, target)):
            outcome.law[(*text_of(tree, verdict.path), verdict.next_id)] += weight * chance
            outcome.num_accepted += weight * chance * verdict.num_accepted
    assert sum(outcome.law.values()) == pytest.approx(1.0, abs=1e-9)
    return outcome


def completed(law: Counter[Context], target: Rows, length: int) -> Counter[Context]:
    """Go on with the target until every text has `length` tokens."""
    full: Counter[Context] = Counter()
    for context, weight in law.items():
        if len(context) == length:
            full[context] += weight
        else:
            longer = Counter({(*context, x): weight * p for x, p in enumerate(target[context].tolist())})
            full.update(completed(longer, target, length))
    return full


def worst_error(outcome: Outcome, target: Rows, paths: Paths) -> float:
    length = max(map(len, paths)) + 1
    got = completed(outcome.law, target, length)
    wanted = completed(Counter({(): 1.0}), target, length)
    return max(abs(got[text] - wanted[text]) for text in wanted)


def rule_of(name: str, replaced: bool = False) -> Rule:
    accept = {"multi_candidate": accept_candidates, "traversal": accept_traversal}[name]
    return lambda tree, target_probs, chance: accept(tree, target_probs, chance, replaced)


RULES = pytest.mark.parametrize("name", ["multi_candidate", "traversal"])


@pytest.mark.parametrize("shape", sorted(SHAPES))
@REPLACED
@RULES
def test_sampled_trees_leave_the_target_distribution_unchanged(name: str, replaced: bool, shape: str) -> None:
    for seed, holes in ((0, False), (1, True)):
        target, draft, paths = Rows(seed, holes), Rows(seed + 100, holes), SHAPES[shape]
        drafts = drawn(paths, draft, replaced)
        assert sum(weight for weight, _ in drafts) == pytest.approx(1.0, abs=1e-9)
        assert worst_error(enumerate_step(rule_of(name, replaced), drafts, target), target, paths) < 1e-9


@pytest.mark.parametrize("shape", sorted(SHAPES))
@RULES
def test_trees_of_most_probable_children_leave_it_unchanged(name: str, shape: str) -> None:
    for seed in range(4):
        target, draft, paths = Rows(seed, seed > 1), Rows(seed + 100), SHAPES[shape]
        outcome = enumerate_step(rule_of(name), most_probable(paths, draft), target)
        assert worst_error(outcome, target, paths) < 1e-9


@RULES
def test_softmax_rows_for_most_probable_children_are_caught(name: str) -> None:
    errors = []
    for seed in range(4):
        target = Rows(seed)
        outcome = enumerate_step(rule_of(name), most_probable(LEANING, Rows(seed + 100), rows=True), target)
        errors.append(worst_error(outcome, target, LEANING))
    assert max(errors) > 0.05


@REPLACED
@RULES
def test_a_residual_of_the_wrong_kind_of_draw_is_caught(name: str, replaced: bool) -> None:
    errors = []
    for seed in range(3):
        target, drafts = Rows(seed), drawn(LEANING, Rows(seed + 100), replaced)
        errors.append(worst_error(enumerate_step(rule_of(name, not replaced), drafts, target), target, LEANING))
    assert max(errors) > 1e-3  # the right kind leaves less than 1e-9


@RULES
def test_children_put_in_another_order_than_drawn_are_caught(name: str) -> None:
    target, draft = Rows(0), Rows(100)
    wide = ((0,), (1,))
    swapped = [
        (weight, TokenTree(tree.token_ids.flip(0), tree.parents, tree.draft_probs))
        for weight, tree in drawn(wide, draft, replaced=False)
    ]
    assert worst_error(enumerate_step(rule_of(name), swapped, target), target, wide) > 0.01


def matching(tree: TokenTree, target_probs: Tensor, chance: Chance) -> Verdict:
    """Exact and coupled acceptance: the target's own choice at every position decides."""
    return accept_matching(tree, [chance.bonus(row, 0) for row in target_probs])


def test_matching_leaves_the_target_distribution_unchanged_in_any_tree() -> None:
    target, draft = Rows(0), Rows(100)
    for drafts in (most_probable(LEANING, draft), drawn(((0,), (1,), (0, 0)), draft, replaced=True)):
        outcome = enumerate_step(matching, drafts, target)
        assert worst_error(outcome, target, LEANING) < 1e-9
    # And children that are most probable are found as often as multi-candidate acceptance keeps them.
    found = enumerate_step(matching, most_probable(LEANING, draft), target).num_accepted
    kept = enumerate_step(rule_of("multi_candidate"), most_probable(LEANING, draft), target).num_accepted
    assert found == pytest.approx(kept)


def test_traversal_accepts_at_least_as_much() -> None:
    gains = []
    for seed in range(5):
        drafts = drawn(LEANING, Rows(seed + 100), replaced=False)
        lengths = {
            name: enumerate_step(rule_of(name), drafts, Rows(seed)).num_accepted
            for name in ("multi_candidate", "traversal")
        }
        gains.append(lengths["traversal"] - lengths["multi_candidate"])
    assert min(gains) > -1e-12
    assert max(gains) > 0.01


def test_drawing_without_replacement_accepts_more() -> None:
    for name in ("multi_candidate", "traversal"):
        lengths = [
            enumerate_step(rule_of(name, replaced), drawn(LEANING, Rows(100), replaced), Rows(0)).num_accepted
            for replaced in (False, True)
        ]
        assert lengths[0] > lengths[1] + 0.01


class Given:
    """Chance with given coins for the nodes and one number for the draw."""

    def __init__(self, coins: Sequence[float], number: float = 0.5) -> None:
        self.coins, self.number, self.asked = coins, number, list[tuple[str, list[float]]]()

    def keeps(self, node: int, prob: float) -> bool:
        self.asked.append((f"node {node}", [prob]))
        return self.coins[node] < prob

    def correction(self, probs: Tensor) -> int:
        self.asked.append(("correction", probs.tolist()))
        return int((probs.cumsum(0) <= self.number).sum())

    def bonus(self, probs: Tensor, depth: int) -> int:
        self.asked.append((f"bonus {depth}", probs.tolist()))
        return int((probs.cumsum(0) <= self.number).sum())


def asked(chance: Given) -> list[tuple[str, list[float]]]:
    return [(what, pytest.approx(values)) for what, values in chance.asked]


TARGET = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.4, 0.4, 0.2]], dtype=torch.float64)
TWO = TokenTree(torch.tensor([2, 1]), (-1, -1), torch.tensor([[0.1, 0.3, 0.6]] * 2, dtype=torch.float64))


def test_hand_worked_candidates() -> None:
    # Token 2 first: 0.2 / 0.6. Then (0.4, 0, 0) is left of the target, so token 1 cannot be kept, and 0 is drawn.
    chance = Given([0.34, 0.0])
    assert accept_candidates(TWO, TARGET, chance) == Verdict((), 0)
    assert asked(chance) == [("node 0", [1 / 3]), ("node 1", [0.0]), ("correction", [1.0, 0.0, 0.0])]
    # Kept: the bonus comes from the row behind that node.
    chance = Given([0.33, 0.0])
    assert accept_candidates(TWO, TARGET, chance) == Verdict((0,), 2)
    assert asked(chance) == [("node 0", [1 / 3]), ("bonus 1", [0.1, 0.1, 0.8])]


def test_hand_worked_candidates_without_and_with_replacement() -> None:
    # Token 1 first: 0.2 / 0.5. What is left, (0.1, 0, 0.2), is (1/3, 0, 2/3). Token 2 next: without token 1 its row
    # was (0.2, 0, 0.8), so it is kept 5/6 of the time; drawn with replacement from (0.1, 0.5, 0.4), always.
    target = torch.tensor([[0.2, 0.2, 0.6]] * 3, dtype=torch.float64)
    tree = TokenTree(torch.tensor([1, 2]), (-1, -1), torch.tensor([[0.1, 0.5, 0.4]] * 2, dtype=torch.float64))
    without, replaced = Given([0.9, 0.0]), Given([0.9, 0.0])
    accept_candidates(tree, target, without)
    accept_candidates(tree, target, replaced, with_replacement=True)
    assert asked(without)[:2] == [("node 0", [0.4]), ("node 1", [5 / 6])]
    assert asked(replaced)[:2] == [("node 0", [0.4]), ("node 1", [1.0])]


def test_hand_worked_certain_children() -> None:
    # Tokens 2 and 1, not drawn: 0.2; then 0.3 of the 0.8 that is left; then token 0 is all there is.
    chance = Given([0.9, 0.9])
    certain = TokenTree(TWO.token_ids, TWO.parents)
    assert accept_candidates(certain, TARGET, chance) == Verdict((), 0)
    assert asked(chance) == [("node 0", [0.2]), ("node 1", [0.375]), ("correction", [1.0, 0.0, 0.0])]


def test_hand_worked_traversal() -> None:
    #  root - 0 (draft 0.8, target 0.4: weight 1/2) - 1 (draft 0.2, target 0.9: 1/2 * 4.5, so 1)
    tree = chain(torch.tensor([0, 1]), torch.tensor([[0.8, 0.2], [0.8, 0.2]], dtype=torch.float64))
    target = torch.tensor([[0.4, 0.6], [0.1, 0.9], [0.3, 0.7]], dtype=torch.float64)
    chance = Given([0.0, 0.99])
    assert accept_traversal(tree, target, chance) == Verdict((0, 1), 1)
    assert asked(chance) == [("node 1", [1.0]), ("bonus 2", [0.3, 0.7])]
    # Token 0 below instead: 1/2 * 0.1 / 0.8 = 1/16. Rejected, (0, 0.25) of 1/2 * target is above the draft, so the
    # first node is kept a third of the time: 0.25 / (0.25 + 1 - 0.5).
    tree = chain(torch.tensor([0, 0]), tree.draft_probs)
    chance = Given([0.3, 0.07])
    assert accept_traversal(tree, target, chance) == Verdict((0,), 1)
    assert asked(chance) == [("node 1", [1 / 16]), ("node 0", [1 / 3]), ("correction", [0.0, 1.0])]
    # Rejected as well: the root's own residual, (0, 0.4).
    chance = Given([0.34, 0.07])
    assert accept_traversal(tree, target, chance) == Verdict((), 1)
    assert asked(chance)[2:] == [("correction", [0.0, 1.0])]


@pytest.mark.parametrize(("name", "twin"), [("traversal", "block"), ("multi_candidate", "rejection")])
@pytest.mark.parametrize("certain", [False, True])
def test_on_a_chain_each_is_the_rule_for_chains_coin_by_coin(name: str, twin: str, certain: bool) -> None:
    generator, lengths = torch.Generator().manual_seed(0), set()
    for _ in range(300):
        draft = torch.rand(3, VOCAB, generator=generator, dtype=torch.float64).mul(3).softmax(dim=-1)
        target = torch.rand(4, VOCAB, generator=generator, dtype=torch.float64).mul(3).softmax(dim=-1)
        tree = chain(torch.randint(VOCAB, (3,), generator=generator), None if certain else draft)
        numbers = torch.rand(5, generator=generator, dtype=torch.float64)
        numbers[-1] = numbers[-2]
        expected = accept_chain(CHAIN_RULES[twin], tree.token_ids, tree.draft_probs, target, numbers)
        got = rule_of(name)(tree, target, Given(numbers[:3].tolist(), float(numbers[-1])))
        assert got == expected
        lengths.add(got.num_accepted)
    assert lengths == {0, 1, 2, 3}


@REPLACED
@RULES
def test_a_drafter_like_the_target_is_always_accepted(name: str, replaced: bool) -> None:
    target = Rows(0)
    outcome = enumerate_step(rule_of(name, replaced), drawn(LEANING, target, replaced), target)
    assert outcome.num_accepted == pytest.approx(2.0)


@RULES
def test_an_empty_draft_yields_the_bonus(name: str) -> None:
    chance = Given([])
    assert rule_of(name)(chain(torch.empty(0, dtype=torch.int64)), TARGET[:1], chance) == Verdict((), 1)
    assert asked(chance) == [("bonus 0", [0.5, 0.3, 0.2])]


# Lenience: the one rule of this room that is not lossless.


def most_over(outcome: Outcome, target: Rows, paths: Paths, lenience: float) -> float:
    """How far any token of any context exceeds target / lenience."""
    length = max(map(len, paths)) + 1
    law, worst = completed(outcome.law, target, length), -1.0
    for depth in range(length):
        reached: Counter[Context] = Counter()
        for text, weight in law.items():
            reached[text[: depth + 1]] += weight
        for text, weight in reached.items():
            prob = weight / sum(reached[(*text[:-1], x)] for x in range(VOCAB))
            worst = max(worst, prob - float(target[text[:-1]][text[-1]]) / lenience)
    return worst


@pytest.mark.parametrize("shape", ["leaning", "narrow", "wide"])
@pytest.mark.parametrize("kind", ["without", "with", "certain"])
def test_under_lenience_no_token_exceeds_its_bound(kind: str, shape: str) -> None:
    paths, most_accepted = SHAPES[shape], []
    for seed, lenience in ((0, 0.5), (1, 0.8), (2, 0.3)):
        target, draft = Rows(seed), Rows(seed + 100)
        drafts = most_probable(paths, draft) if kind == "certain" else drawn(paths, draft, kind == "with")

        def lenient(tree: TokenTree, rows: Tensor, chance: Chance, lenience: float = lenience) -> Verdict:
            return accept_candidates(tree, rows, chance, kind == "with", lenience)

        outcome = enumerate_step(lenient, drafts, target)
        assert most_over(outcome, target, paths, lenience) < 1e-9
        assert worst_error(outcome, target, paths) > 1e-3  # lossy indeed
        strict = enumerate_step(rule_of("multi_candidate", kind == "with"), drafts, target)
        most_accepted.append(outcome.num_accepted - strict.num_accepted)
    assert min(most_accepted) > -1e-12
    assert shape == "wide" or max(most_accepted) > 0.05  # of all three tokens one is always kept


def test_more_lenience_than_was_said_is_caught() -> None:
    worst = []
    for seed in range(4):
        target, drafts = Rows(seed), drawn(NARROW, Rows(seed + 100), replaced=False)
        outcome = enumerate_step(lambda *step: accept_candidates(*step, lenience=0.2), drafts, target)
        worst.append(most_over(outcome, target, NARROW, 0.6))
    assert max(worst) > 0.05
