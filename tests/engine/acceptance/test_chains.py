"""Rules for chains: hand-worked numbers, and the laws by exact enumeration on table models of 3 tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import pytest
import torch
from torch import Tensor

from autospec.engine.acceptance import CHAIN_RULES, ChainRule, Verdict, accept_chain, accept_matching
from autospec.engine.sampling import one_hot, residual
from autospec.engine.tree import TokenTree, chain

VOCAB, LENGTH = 3, 3

Context = tuple[int, ...]
Drafts = Iterator[tuple[float, Context, Tensor]]  # probability, tokens, draft_probs [k, vocab]


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


def sampled(draft: Rows, stops: Callable[[float], bool]) -> Drafts:
    """Every chain that a sampling drafter can draw when it stops after a token whose probability says so."""
    pending: list[tuple[float, Context]] = [(1.0, ())]
    while pending:
        weight, tokens = pending.pop()
        if len(tokens) == LENGTH or (tokens and stops(float(draft[tokens[:-1]][tokens[-1]]))):
            yield weight, tokens, torch.stack([draft[tokens[:i]] for i in range(len(tokens))])
        else:
            pending += [(weight * float(p), (*tokens, x)) for x, p in enumerate(draft[tokens]) if p > 0.0]


def static(draft: Rows) -> Drafts:
    return sampled(draft, lambda _: False)


def confident(draft: Rows) -> Drafts:
    return sampled(draft, lambda p: p < 0.45)


def most_probable(draft: Rows) -> Drafts:
    """The one chain of a deterministic drafter, with the one-hot rows that say so."""
    tokens: Context = ()
    while len(tokens) < LENGTH:
        tokens = (*tokens, int(draft[tokens].argmax()))
    yield 1.0, tokens, one_hot(torch.tensor(tokens), VOCAB).double()


def wrong(draft: Rows) -> Drafts:
    """The negative control: the same chain with the softmax rows it was not drawn from."""
    for weight, tokens, _ in most_probable(draft):
        yield weight, tokens, torch.stack([draft[tokens[:i]] for i in range(LENGTH)])


DRAFTERS = {"static": static, "confidence": confident, "one_hot": most_probable}  # a later one joins here
RULES = sorted(CHAIN_RULES)


@dataclass
class Outcome:
    """The law of one step followed by the target alone, and how many draft tokens were accepted on average."""

    law: Counter[Context]
    num_accepted: float


def enumerate_step(rule: ChainRule, drafts: Drafts, target: Rows) -> Outcome:
    """Weigh every draft, every pattern of coins and every next token."""
    outcome = Outcome(Counter(), 0.0)
    for weight, tokens, draft_probs in drafts:
        target_probs = torch.stack([target[tokens[:i]] for i in range(len(tokens) + 1)])
        law = (torch.tensor(tokens), draft_probs, target_probs)
        accept, correction = rule.accept_probs(*law), rule.correction_probs(*law)
        for wins in product((True, False), repeat=len(tokens)):
            won = torch.tensor(wins)
            chance = weight * float(torch.where(won, accept, 1.0 - accept).prod())
            if chance == 0.0:
                continue
            count = int(rule.num_accepted(accept, torch.where(won, torch.zeros_like(accept), accept)))
            outcome.num_accepted += chance * count
            following = target_probs[-1] if count == len(tokens) else correction[count]
            for token, p in enumerate(following.tolist()):
                outcome.law[(*tokens[:count], token)] += chance * p
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


def worst_error(outcome: Outcome, target: Rows) -> float:
    got = completed(outcome.law, target, LENGTH + 1)
    wanted = completed(Counter({(): 1.0}), target, LENGTH + 1)
    return max(abs(got[text] - wanted[text]) for text in wanted)


@pytest.mark.parametrize("holes", [False, True], ids=["full", "filtered"])
@pytest.mark.parametrize("drafter", sorted(DRAFTERS))
@pytest.mark.parametrize("name", RULES)
def test_a_step_leaves_the_target_distribution_unchanged(name: str, drafter: str, holes: bool) -> None:
    for seed in range(4):
        target, draft = Rows(seed, holes), Rows(seed + 100, holes)
        outcome = enumerate_step(CHAIN_RULES[name], DRAFTERS[drafter](draft), target)
        assert sum(outcome.law.values()) == pytest.approx(1.0, abs=1e-12)
        assert worst_error(outcome, target) < 1e-9


@pytest.mark.parametrize("name", RULES)
def test_softmax_rows_for_a_deterministic_draft_are_caught(name: str) -> None:
    errors = []
    for seed in range(4):
        target = Rows(seed)
        errors.append(worst_error(enumerate_step(CHAIN_RULES[name], wrong(Rows(seed + 100)), target), target))
    assert max(errors) > 0.05


@pytest.mark.parametrize("drafter", [static, confident])
def test_block_accepts_at_least_as_much_as_rejection(drafter: Callable[[Rows], Drafts]) -> None:
    gains = []
    for seed in range(8):
        lengths = {
            name: enumerate_step(CHAIN_RULES[name], drafter(Rows(seed + 100)), Rows(seed)).num_accepted
            for name in ("rejection", "block")
        }
        gains.append(lengths["block"] - lengths["rejection"])
    assert min(gains) > -1e-12
    assert max(gains) > 0.01


# Two tokens A and B, the same rows everywhere: target (1/3, 2/3), draft (2/3, 1/3), two tokens drafted.
# The ratio target / draft is 1/2 for A and 2 for B.
TWO_TARGET = torch.tensor([[1 / 3, 2 / 3]] * 3, dtype=torch.float64)
TWO_DRAFT = torch.tensor([[2 / 3, 1 / 3]] * 2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("tokens", "rejection", "block"),
    [
        # P = 1/2, 1/4. After A nothing of (1/2 target - draft) is positive, so h_1 = 0.
        ((0, 0), (1 / 2, 1 / 2), (0.0, 1 / 4)),
        # P = 1/2, 1: the second token makes good for the first.
        ((0, 1), (1 / 2, 1.0), (0.0, 1.0)),
        # P = 1, 1/2. After B a third of the target is left, S = 1/3 and 1 - P = 0, so h_1 = 1.
        ((1, 0), (1.0, 1 / 2), (1.0, 1 / 2)),
        ((1, 1), (1.0, 1.0), (1.0, 1.0)),
    ],
)
def test_hand_worked_acceptance(tokens: Context, rejection: tuple[float, ...], block: tuple[float, ...]) -> None:
    law = (torch.tensor(tokens), TWO_DRAFT, TWO_TARGET)
    assert CHAIN_RULES["rejection"].accept_probs(*law).tolist() == pytest.approx(rejection)
    assert CHAIN_RULES["block"].accept_probs(*law).tolist() == pytest.approx(block)


def test_hand_worked_expected_lengths() -> None:
    # rejection: 2/3 + 2/3 * 2/3 = 10/9. block: 4/9 * 2/4 + 2/9 * 2 + 2/9 * 3/2 + 1/9 * 2 = 11/9.
    drafted = [(float(TWO_DRAFT[0, a] * TWO_DRAFT[1, b]), (a, b), TWO_DRAFT) for a in (0, 1) for b in (0, 1)]

    class Same(dict[Context, Tensor]):
        def __missing__(self, context: Context) -> Tensor:
            return TWO_TARGET[0]

    means = {
        name: enumerate_step(rule, iter(drafted), Same()).num_accepted  # type: ignore[arg-type]
        for name, rule in CHAIN_RULES.items()
    }
    assert means == pytest.approx({"rejection": 10 / 9, "block": 11 / 9})


def test_hand_worked_block_in_the_middle_of_a_draft() -> None:
    # First token: target 0.3 over draft 0.6, so P_1 = 0.5. Behind it 0.5 * target - draft is (0.2, 0, 0): S = 0.2,
    # h_1 = 0.2 / (0.2 + 0.5) = 2/7. Second token: P_2 = min(1, 0.5 * 0.6 / 0.1) = 1.
    target = torch.tensor([[0.3, 0.3, 0.4], [0.6, 0.2, 0.2], [1.0, 0.0, 0.0]], dtype=torch.float64)
    draft = torch.tensor([[0.6, 0.2, 0.2], [0.1, 0.3, 0.6]], dtype=torch.float64)
    law = (torch.tensor([0, 0]), draft, target)
    assert CHAIN_RULES["block"].accept_probs(*law).tolist() == pytest.approx([2 / 7, 1.0])
    # Nothing accepted: target - draft leaves (0, 0.1, 0.2). One accepted: (0.2, 0, 0).
    correction = CHAIN_RULES["block"].correction_probs(*law)
    torch.testing.assert_close(correction, torch.tensor([[0, 1 / 3, 2 / 3], [1, 0, 0]], dtype=torch.float64))


def test_hand_worked_residual() -> None:
    target = torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.3, 0.2]])
    draft = torch.tensor([[0.3, 0.2, 0.5], [0.5, 0.3, 0.2]])
    # 0.3 and 0.1 are left of the first; nothing of the second, which is then the target itself.
    torch.testing.assert_close(residual(target, draft), torch.tensor([[0.75, 0.25, 0.0], [0.5, 0.3, 0.2]]))


def test_hand_worked_matching() -> None:
    def accepted(draft_ids: list[int]) -> Verdict:
        return accept_matching(chain(torch.tensor(draft_ids, dtype=torch.int64)), [5, 6, 7, 8][: len(draft_ids) + 1])

    assert accepted([5, 6, 7]) == Verdict((0, 1, 2), 8)
    assert accepted([5, 9, 7]) == Verdict((0,), 6)
    assert accepted([9, 6, 7]) == Verdict((), 5)
    assert accepted([]) == Verdict((), 5)


def test_hand_worked_matching_in_a_tree() -> None:
    #        root: 5 or 6;  behind 5: 7 or 8;  behind 6: 7;  behind that 7: 9
    tree = TokenTree(torch.tensor([5, 6, 7, 8, 7, 9]), (-1, -1, 0, 0, 1, 4))
    assert accept_matching(tree, [6, 0, 7, 0, 0, 9, 4]) == Verdict((1, 4, 5), 4)
    assert accept_matching(tree, [6, 0, 7, 0, 0, 8, 4]) == Verdict((1, 4), 8)
    assert accept_matching(tree, [5, 8, 7, 0, 3, 9, 4]) == Verdict((0, 3), 3)
    assert accept_matching(tree, [7, 7, 7, 7, 7, 7, 7]) == Verdict((), 7)


def test_first_failure_ends_rejection_and_last_success_decides_block() -> None:
    accept, coins = torch.tensor([0.5, 0.5, 0.5]), torch.tensor([0.1, 0.9, 0.1])
    assert CHAIN_RULES["rejection"].num_accepted(accept, coins) == 1
    assert CHAIN_RULES["block"].num_accepted(accept, coins) == 3
    assert CHAIN_RULES["block"].num_accepted(accept, torch.tensor([0.9, 0.1, 0.9])) == 2
    assert CHAIN_RULES["block"].num_accepted(accept, torch.tensor([0.5, 0.5, 0.5])) == 0  # equal is not below


@pytest.mark.parametrize("name", RULES)
def test_rules_work_over_leading_dimensions(name: str) -> None:
    rule, generator = CHAIN_RULES[name], torch.Generator().manual_seed(0)
    draft_probs = torch.rand(2, 4, LENGTH, VOCAB, generator=generator).softmax(dim=-1)
    target_probs = torch.rand(2, 4, LENGTH + 1, VOCAB, generator=generator).mul(3).softmax(dim=-1)
    draft_ids = torch.randint(VOCAB, (2, 4, LENGTH), generator=generator)
    coins = torch.rand(2, 4, LENGTH, generator=generator)
    accept = rule.accept_probs(draft_ids, draft_probs, target_probs)
    correction = rule.correction_probs(draft_ids, draft_probs, target_probs)
    counts = rule.num_accepted(accept, coins)
    assert len(set(counts.flatten().tolist())) > 1
    for place in product(range(2), range(4)):
        law = (draft_ids[place], draft_probs[place], target_probs[place])
        torch.testing.assert_close(accept[place], rule.accept_probs(*law))
        torch.testing.assert_close(correction[place], rule.correction_probs(*law))
        assert counts[place] == rule.num_accepted(rule.accept_probs(*law), coins[place])


def numbers(*coins: float, correction: float, bonus: float) -> Tensor:
    return torch.tensor([*coins, correction, bonus], dtype=torch.float64)


def test_all_accepted_is_followed_by_the_bonus() -> None:
    draft_ids = torch.tensor([0, 1])
    target = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.0, 0.5, 0.5]])
    draft = torch.tensor([[0.9, 0.05, 0.05], [0.0, 1.0, 0.0]])
    # Ratios 8/9 and 0.8, both above the coins; a number of 0.7 falls on the third token of the bonus row.
    verdict = accept_chain(
        CHAIN_RULES["rejection"], draft_ids, draft, target, numbers(0.88, 0.79, correction=0.1, bonus=0.7)
    )
    assert (verdict.path, verdict.num_accepted, verdict.next_id) == ((0, 1), 2, 2)


def test_rejected_token_is_replaced_from_the_residual() -> None:
    draft_ids = torch.tensor([0, 1])
    target = torch.tensor([[0.8, 0.1, 0.1], [0.4, 0.5, 0.1], [1.0, 0.0, 0.0]])
    draft = torch.tensor([[0.9, 0.05, 0.05], [0.0, 1.0, 0.0]])
    # The second token's ratio is 0.5; target - draft leaves (0.4, 0, 0.1), so 0.79 is the first and 0.81 the third.
    for correction, expected in ((0.79, 0), (0.81, 2)):
        drawn = numbers(0.88, 0.51, correction=correction, bonus=0.0)
        verdict = accept_chain(CHAIN_RULES["rejection"], draft_ids, draft, target, drawn)
        assert (verdict.path, verdict.next_id) == ((0,), expected)


def test_a_draft_without_probabilities_is_one_hot() -> None:
    draft_ids = torch.tensor([1])
    target = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.0, 1.0]])
    accepted = accept_chain(
        CHAIN_RULES["rejection"], draft_ids, None, target, numbers(0.24, correction=0.0, bonus=0.5)
    )
    assert (accepted.path, accepted.next_id) == ((0,), 2)
    # Rejected: the drafted token can no longer come, the others keep their ratio of 2 : 1.
    for correction, expected in ((0.66, 0), (0.67, 2)):
        drawn = numbers(0.26, correction=correction, bonus=0.5)
        verdict = accept_chain(CHAIN_RULES["rejection"], draft_ids, None, target, drawn)
        assert (verdict.path, verdict.next_id) == ((), expected)


@pytest.mark.parametrize("name", RULES)
def test_an_empty_draft_yields_the_bonus(name: str) -> None:
    empty = torch.empty(0, dtype=torch.int64)
    target = torch.tensor([[0.2, 0.3, 0.5]])
    verdict = accept_chain(CHAIN_RULES[name], empty, None, target, numbers(correction=0.0, bonus=0.4))
    assert (verdict.path, verdict.next_id) == ((), 1)


@pytest.mark.parametrize("name", RULES)
def test_equal_distributions_accept_everything(name: str) -> None:
    probs = torch.tensor([[0.2, 0.3, 0.5]] * 4, dtype=torch.float64)
    law = (torch.tensor([0, 1, 2]), probs[:3], probs)
    torch.testing.assert_close(CHAIN_RULES[name].accept_probs(*law), torch.ones(3, dtype=torch.float64))
