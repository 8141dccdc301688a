"""Lossy rules: hand-worked numbers, what they guarantee of any draft, and the contrastive target by enumeration."""

from __future__ import annotations

from dataclasses import replace
from math import exp, log

import pytest
import torch
from torch import Tensor

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.acceptance import Judge, Verdict, accept_candidates
from autospec.engine.acceptance.lossy import PASSING, accept_passing, contrastive_logits
from autospec.engine.sampling import to_probs
from autospec.engine.tree import TokenTree, chain
from autospec.errors import ConfigError

PROBS = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.25, 0.25, 0.25, 0.25], [0.97, 0.01, 0.01, 0.01]], dtype=torch.float64)
GREEDY, SAMPLED = SamplingParams(), SamplingParams(temperature=0.7, top_k=5, top_p=0.95)


def config(rule: str, **knobs: float) -> SpecConfig:
    return SpecConfig("draft", 4, accept_rule=rule, **knobs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rule", "knobs", "expected"),
    [
        # exp(-H) is 0.319, 0.25 and 0.846; times 0.3: 0.096, 0.075 and 0.254, cut at 0.09.
        ("typical", {"accept_threshold": 0.09, "accept_delta": 0.3}, ["1110", "1111", "1000"]),
        ("typical", {"accept_threshold": 1.0, "accept_delta": 1.0}, ["1000", "0000", "1000"]),  # not above 0.25
        ("typical", {"accept_threshold": 0.0}, ["1111", "1111", "1111"]),
        ("lenient", {"accept_threshold": 0.5}, ["1100", "1111", "1000"]),  # 0.3 of 0.5 is enough, 0.15 is not
        ("lenient", {"accept_threshold": 0.01}, ["1111", "1111", "1111"]),
        ("relaxed", {"accept_top": 3, "accept_delta": 0.25}, ["1100", "1111", "1000"]),
        ("relaxed", {"accept_top": 2, "accept_delta": 1.0}, ["1100", "1111", "1111"]),  # equals of the second pass
        ("relaxed", {"accept_top": 1, "accept_delta": 1.0}, ["1000", "1111", "1000"]),
        ("relaxed", {"accept_top": 9, "accept_delta": 0.0}, ["1000", "1111", "1000"]),
        ("margin", {"accept_threshold": 0.55}, ["1100", "1111", "1000"]),  # 0.3 / 0.5 is 0.6
        ("margin", {"accept_threshold": 0.65}, ["1000", "1111", "1000"]),
    ],
)
def test_hand_worked_passing(rule: str, knobs: dict[str, float], expected: list[str]) -> None:
    passing = PASSING[rule](PROBS, config(rule, **knobs))
    assert ["".join(map(str, row)) for row in passing.int().tolist()] == expected


#        root - 0 - 2 - 1        token ids; nodes 0, 2, 4
#           \     \ 3            node 3
#            1 - 0               nodes 1, 5
TREE = TokenTree(torch.tensor([0, 1, 2, 3, 1, 0]), (-1, -1, 0, 0, 2, 1))
TARGET_IDS = [10, 11, 12, 13, 14, 15, 16]


def kept(passing: str) -> Verdict:
    """The verdict where exactly the nodes marked pass."""
    allowed = torch.zeros(7, 4, dtype=torch.bool)
    for node, mark in enumerate(passing):
        allowed[TREE.parents[node] + 1, TREE.token_ids[node]] = mark == "1"
    return accept_passing(TREE, PROBS[:1].expand(7, 4), allowed, torch.tensor(TARGET_IDS))


def test_the_longest_passing_path_is_kept() -> None:
    assert kept("111111") == Verdict((0, 2, 4), 15)
    assert kept("111100") == Verdict((0, 2), 13)
    assert kept("011111") == Verdict((1, 5), 16)  # what stands behind a failure is lost
    assert kept("100000") == Verdict((0,), 11)
    assert kept("000000") == Verdict((), 10)


def test_of_equally_long_paths_the_most_probable_is_kept() -> None:
    # 0 then 2: 0.5 * 0.15; 0 then 3: 0.5 * 0.05; 1 then 0: 0.3 * 0.5.
    assert kept("111100") == Verdict((0, 2), 13)
    assert kept("111101") == Verdict((1, 5), 16)


def test_an_impossible_token_never_passes() -> None:
    probs = torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    verdict = accept_passing(chain(torch.tensor([0])), probs, torch.ones(2, 2, dtype=torch.bool), torch.tensor([1, 0]))
    assert verdict == Verdict((), 1)


def random_tree(seed: int) -> tuple[TokenTree, Tensor]:
    """A random tree over 8 tokens, siblings all different, and target logits."""
    generator = torch.Generator().manual_seed(seed)
    edges: list[tuple[int, int]] = []
    for _ in range(20):
        parent = int(torch.randint(-1, max(1, len(edges)), (), generator=generator))
        edge = (min(parent, len(edges) - 1), int(torch.randint(8, (), generator=generator)))
        if edge not in edges:
            edges.append(edge)
    parents, tokens = zip(*edges, strict=True)
    logits = torch.randn(len(edges) + 1, 8, generator=generator) * 2
    return TokenTree(torch.tensor(tokens), tuple(parents)), logits


def promised(rule: str, row: list[float], token: int, one: SpecConfig) -> bool:
    """The guarantee of each rule, in its own words."""
    best, entropy = max(row), -sum(p * log(p) for p in row if p > 0.0)
    match rule:
        case "typical":
            return row[token] > min(one.accept_threshold, one.accept_delta * exp(-entropy))
        case "lenient":
            return row[token] >= one.accept_threshold * best - 1e-6
        case "relaxed":
            better = sum(p > row[token] for p in row)
            return better < one.accept_top and row[token] >= best - one.accept_delta - 1e-6
    better = sum(p > row[token] for p in row)
    return better == 0 or (better == 1 and row[token] >= one.accept_threshold * best - 1e-6)


LOOSE = [
    config("typical", accept_threshold=0.1),
    config("lenient", accept_threshold=0.3),
    config("relaxed", accept_top=3, accept_delta=0.4),
    config("margin", accept_threshold=0.3),
]
# Greedily typical acceptance is exact matching; under sampling lenience bounds probabilities, see test_trees.
PROMISES = [(one, GREEDY) for one in LOOSE if one.accept_rule != "typical"]
PROMISES += [(one, SAMPLED) for one in LOOSE if one.accept_rule != "lenient"]


@pytest.mark.parametrize(
    ("one", "sampling"), [pytest.param(*pair, id=f"{pair[0].accept_rule}-{pair[1].temperature}") for pair in PROMISES]
)
def test_every_kept_token_is_as_promised_and_no_longer_path_is_missed(
    one: SpecConfig, sampling: SamplingParams
) -> None:
    rule, num_kept, num_own = one.accept_rule, 0, 0
    for seed in range(60):
        tree, logits = random_tree(seed)
        judge = Judge(one, sampling, seed)
        verdict = judge.accept(tree, logits, position=5)
        probs = logits.softmax(dim=-1) if sampling.is_greedy else to_probs(logits, sampling)
        passes = [
            promised(rule, probs[parent + 1].tolist(), token, one)
            for parent, token in zip(tree.parents, tree.token_ids.tolist(), strict=True)
        ]
        assert all(passes[node] for node in verdict.path)
        reached: list[int] = []
        for node, parent in enumerate(tree.parents):
            above = 0 if parent < 0 else reached[parent]
            reached.append(above + 1 if passes[node] and (parent < 0 or above > 0) else 0)
        assert verdict.num_accepted == max(reached)
        last = verdict.path[-1] + 1 if verdict.path else 0
        assert verdict.next_id == judge.own_tokens(logits, 5, tree)[last]
        num_kept += verdict.num_accepted
        num_own += Judge(replace(one, accept_rule="exact"), GREEDY, seed).accept(tree, logits, 5).num_accepted
    assert num_kept > num_own + 5  # it keeps what is not the target's first choice


def test_typical_acceptance_is_exact_matching_under_greedy_decoding() -> None:
    loose = config("typical", accept_threshold=0.0)
    for seed in range(40):
        tree, logits = random_tree(seed)
        exact = Judge(config("exact"), GREEDY, seed).accept(tree, logits, 5)
        assert Judge(loose, GREEDY, seed).accept(tree, logits, 5) == exact


def test_a_lenience_of_one_is_lossless() -> None:
    for seed in range(40):
        tree, logits = random_tree(seed)
        for sampling in (GREEDY, SAMPLED):
            lenient = Judge(config("lenient", accept_threshold=1.0), sampling, seed).accept(tree, logits, 5)
            assert lenient == Judge(config("multi_candidate"), sampling, seed).accept(tree, logits, 5)


# Contrastive: a target of 3 tokens and a drafter, a chain of 2.
CONTRAST = config("contrastive", accept_threshold=0.18, accept_delta=0.5)
Z_TARGET = torch.tensor([[0.5, 0.4, 0.1], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6]]).log()
Z_DRAFT = torch.tensor([[0.8, 0.1, 0.1], [0.5, 0.25, 0.25]]).log()


def test_hand_worked_contrast() -> None:
    tree = TokenTree(torch.tensor([0, 1]), (-1, 0), draft_logits=Z_DRAFT)
    rows = contrastive_logits(tree, Z_TARGET, CONTRAST).softmax(dim=-1)
    # target ** 1.5 / draft ** 0.5: 0.3536 / 0.8944 and 0.2530 / 0.3162; 0.1 is above 0.18 * 0.5.
    first = [0.5**1.5 / 0.8**0.5, 0.4**1.5 / 0.1**0.5, 0.1**1.5 / 0.1**0.5]
    # Behind the first token 0.1 is below 0.18 * 0.6, so the third token is out.
    second = [0.6**1.5 / 0.5**0.5, 0.3**1.5 / 0.25**0.5, 0.0]
    for row, weights in zip(rows, (first, second), strict=False):
        assert row.tolist() == pytest.approx([weight / sum(weights) for weight in weights], abs=1e-6)
    # Nothing was drafted behind the last: the target's own.
    torch.testing.assert_close(rows[2], Z_TARGET[2].exp())


def test_a_token_that_the_drafter_does_not_know_is_not_favoured_for_it() -> None:
    unknown = torch.tensor([[1.0, -1.0, -torch.inf]])
    known = torch.tensor([[1.0, -1.0, -1.0]])
    rows = [
        contrastive_logits(TokenTree(torch.tensor([0]), (-1,), draft_logits=draft), Z_TARGET[:2], CONTRAST)
        for draft in (unknown, known)
    ]
    assert torch.equal(*rows)


def test_contrast_needs_the_drafters_logits() -> None:
    with pytest.raises(ConfigError, match="'contrastive' needs the drafter's logits"):
        contrastive_logits(chain(torch.tensor([0, 1])), Z_TARGET, CONTRAST)
    assert torch.equal(
        contrastive_logits(chain(torch.empty(0, dtype=torch.int64)), Z_TARGET[:1], CONTRAST), Z_TARGET[:1]
    )


def test_greedy_contrast_follows_the_modified_target() -> None:
    # The target would choose 0; next to a drafter that is sure of 0 the contrast prefers 1.
    tree = TokenTree(torch.tensor([1, 1]), (-1, 0), draft_logits=Z_DRAFT)
    assert Judge(config("exact"), GREEDY, 0).accept(tree, Z_TARGET, 5) == Verdict((), 0)
    assert Judge(CONTRAST, GREEDY, 0).accept(tree, Z_TARGET, 5) == Verdict((0,), 0)


class Noted:
    """Chance that is told what happens to the one coin, and notes how probable that was."""

    def __init__(self, keep: bool) -> None:
        self.keep, self.prob, self.row = keep, 1.0, torch.zeros(3)

    def keeps(self, node: int, prob: float) -> bool:
        self.prob = prob
        return self.keep

    def correction(self, probs: Tensor) -> int:
        self.row = probs
        return 0

    def bonus(self, probs: Tensor, depth: int) -> int:
        self.row = probs
        return 0


def test_a_drafted_position_follows_the_contrast_and_the_bonus_the_target() -> None:
    draft, law = Z_DRAFT[:1].softmax(dim=-1), torch.zeros(3, dtype=torch.float64)
    for token in range(3):
        tree = TokenTree(torch.tensor([token]), (-1,), draft, Z_DRAFT[:1])
        rows = contrastive_logits(tree, Z_TARGET[:2], CONTRAST).softmax(dim=-1)
        kept, rejected = Noted(True), Noted(False)
        accept_candidates(tree, rows, kept)
        accept_candidates(tree, rows, rejected)
        law[token] += draft[0, token] * kept.prob
        law += draft[0, token] * (1.0 - kept.prob) * rejected.row
        torch.testing.assert_close(kept.row, Z_TARGET[1].exp())
    torch.testing.assert_close(law, rows[0].double(), atol=1e-6, rtol=0.0)
    assert (law - Z_TARGET[0].exp()).abs().max() > 0.05  # which is not the target's
