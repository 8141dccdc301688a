"""Filters against transformers' own, counter-based numbers, and draws by inverse cumulative sum."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from scipy.stats import chisquare, kstest

from autospec.config import SamplingParams
from autospec.engine.sampling import Use, _mix, gumbels, key_of, one_hot, pick, to_probs, uniform, uniforms


def test_pinned_numbers() -> None:
    # Literal, so that no later change of the generator goes unnoticed: recorded outputs would no longer replay.
    assert uniform(0, 0, Use.TARGET) == 0.8513026201288322
    assert uniform(7, 12, Use.DRAFT, 3) == 0.9779434201561571
    assert uniform(1234567890123, 99999, Use.ACCEPT, 63) == 0.13193636462665403
    assert uniform(1, 5, Use.CORRECTION) == 0.5102749513093533


def test_numbers_depend_on_every_key_and_on_nothing_else() -> None:
    keys = [
        (seed, position, use, draw) for seed in range(8) for position in range(8) for use in Use for draw in range(8)
    ]
    forward = [uniform(*key) for key in keys]
    backward = [uniform(*key) for key in reversed(keys)]
    assert forward == backward[::-1]
    assert len(set(forward)) == len(keys)


@pytest.mark.parametrize("axis", ["seed", "position", "draw"])
def test_numbers_are_uniform_and_independent_along_each_key(axis: str) -> None:
    fixed = {"seed": 3, "position": 17, "use": Use.ACCEPT, "draw": 2}
    drawn = [uniform(**{**fixed, axis: value}) for value in range(20_000)]
    assert kstest(drawn, "uniform").pvalue > 1e-3
    assert min(drawn) >= 0.0
    assert max(drawn) < 1.0
    grid = [[0] * 8 for _ in range(8)]  # neighbours along the key
    for one, next_one in pairwise(drawn):
        grid[int(one * 8)][int(next_one * 8)] += 1
    assert chisquare([count for row in grid for count in row]).pvalue > 1e-3


def test_uses_are_independent_of_each_other() -> None:
    drawn = torch.tensor([[uniform(seed, 40, use) for use in Use] for seed in range(10_000)], dtype=torch.float64)
    correlation = torch.corrcoef(drawn.T) - torch.eye(len(Use))
    assert correlation.abs().max() < 0.04  # four standard errors


def test_one_number_for_each_position() -> None:
    assert uniforms(5, range(3, 6), Use.TARGET).tolist() == [
        uniform(5, position, Use.TARGET) for position in (3, 4, 5)
    ]
    assert uniforms(5, range(3, 5), Use.DRAFT, range(2)).tolist() == [
        uniform(5, 3, Use.DRAFT, 0), uniform(5, 4, Use.DRAFT, 1),
    ]  # fmt: skip
    assert uniforms(5, range(3, 3), Use.ACCEPT).shape == (0,)


def test_hand_worked_picks() -> None:
    probs = torch.tensor([0.25, 0.5, 0.25])
    for number, token in ((0.0, 0), (0.2499, 0), (0.25, 1), (0.7499, 1), (0.75, 2), (0.999999, 2)):
        assert pick(probs, torch.tensor(number, dtype=torch.float64)) == token
    batch = pick(probs.expand(2, 2, 3), torch.tensor([[0.1, 0.3], [0.8, 0.5]], dtype=torch.float64))
    assert batch.tolist() == [[0, 1], [2, 1]]


@pytest.mark.parametrize("number", [0.0, 1e-17, 0.5, 1.0 - 2.0**-53])
def test_a_token_of_probability_zero_is_never_drawn(number: float) -> None:
    drawn = torch.tensor(number, dtype=torch.float64)
    assert pick(torch.tensor([0.0, 0.0, 1.0, 0.0]), drawn) == 2
    assert pick(torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0]), drawn) in (1, 3)
    # A sum a little under or over 1 changes nothing.
    assert pick(torch.tensor([0.0, 0.3333, 0.3333, 0.3333, 0.0]), drawn) in (1, 2, 3)
    assert pick(torch.tensor([0.0, 0.4, 0.4, 0.4, 0.0]), drawn) in (1, 2, 3)
    # Steps too small to be seen in the cumulative sum do not push a draw past the last of them.
    assert pick(torch.tensor([1.0, 1e-30, 0.0], dtype=torch.float64), drawn) in (0, 1)


def test_the_largest_number_stays_inside_whatever_the_sum() -> None:
    probs = torch.rand(20_000, 5, generator=torch.Generator().manual_seed(0))
    probs[:, 4] = 0.0
    drawn = pick(probs, torch.full((20_000,), 1.0 - 2.0**-53, dtype=torch.float64))
    assert drawn.unique().tolist() == [3]


def test_picks_are_exact_in_a_large_vocabulary() -> None:
    probs = torch.full((100_000,), 1e-5)  # in float32 the cumulative sum would drift by many tokens
    tokens = torch.tensor([0, 777, 50_000, 99_998])
    assert pick(probs.expand(4, -1), (tokens + 0.5).double() / 100_000).tolist() == tokens.tolist()


def test_picks_follow_the_probabilities() -> None:
    probs = torch.tensor([0.1, 0.0, 0.6, 0.3])
    drawn = pick(probs.expand(20_000, 4), uniforms(0, range(20_000), Use.TARGET))
    counts = torch.bincount(drawn, minlength=4)
    assert counts[1] == 0
    assert chisquare(counts[[0, 2, 3]], [2000, 12000, 6000]).pvalue > 1e-3


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, 0, 1.0),
        (0.7, 0, 1.0),
        (1.3, 5, 1.0),
        (1.0, 0, 0.8),
        (0.8, 10, 0.95),
        (2.0, 1, 1.0),
        (1.0, 0, 1e-6),
        (1.0, 500, 0.5),
    ],
)
def test_filters_equal_those_of_transformers(temperature: float, top_k: int, top_p: float) -> None:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(50, 40, generator=torch.Generator().manual_seed(0)) * 3
    scores = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        scores = TopKLogitsWarper(min(top_k, 40))(None, scores)
    if top_p < 1.0:
        scores = TopPLogitsWarper(top_p)(None, scores)
    probs = to_probs(logits, SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p))
    torch.testing.assert_close(probs, scores.softmax(dim=-1), rtol=1e-5, atol=1e-7)
    assert torch.equal(probs > 0.0, scores > -torch.inf)


def test_hand_worked_filters() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    # Temperature 1/2 squares: 25 : 9 : 4.
    torch.testing.assert_close(to_probs(logits, SamplingParams(temperature=0.5)), torch.tensor([25.0, 9.0, 4.0]) / 38)
    torch.testing.assert_close(
        to_probs(logits, SamplingParams(temperature=1.0, top_k=2)), torch.tensor([0.625, 0.375, 0.0])
    )
    # 0.5 does not reach 0.6, so the second token is kept too; it just reaches 0.45.
    torch.testing.assert_close(
        to_probs(logits, SamplingParams(temperature=1.0, top_p=0.6)), torch.tensor([0.625, 0.375, 0.0])
    )
    torch.testing.assert_close(
        to_probs(logits, SamplingParams(temperature=1.0, top_p=0.45)), torch.tensor([1.0, 0.0, 0.0])
    )


def test_top_p_keeps_no_more_than_it_needs() -> None:
    # Four tokens of exactly a quarter: two reach a half, so the third and the fourth go.
    probs = to_probs(torch.zeros(4), SamplingParams(temperature=1.0, top_p=0.5))
    assert probs.tolist() == [0.5, 0.5, 0.0, 0.0]


def test_filters_work_in_float32_over_leading_dimensions() -> None:
    logits = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    sampling = SamplingParams(temperature=0.9, top_k=4, top_p=0.9)
    probs = to_probs(logits, sampling)
    assert probs.dtype == torch.float32
    torch.testing.assert_close(probs[1, 2], to_probs(logits[1, 2], sampling))
    torch.testing.assert_close(probs.sum(dim=-1), torch.ones(2, 3))


def test_greedy_is_certain_of_the_most_probable_token() -> None:
    assert to_probs(torch.tensor([[1.0, 3.0, 2.0]]), SamplingParams()).tolist() == [[0.0, 1.0, 0.0]]
    assert one_hot(torch.tensor([[2], [0]]), 3).tolist() == [[[0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]]]


def test_a_padded_token_keeps_probability_zero() -> None:
    logits = torch.tensor([1.0, -torch.inf, 0.0])
    for sampling in (SamplingParams(temperature=5.0), SamplingParams(temperature=1.0, top_k=3, top_p=0.999)):
        assert to_probs(logits, sampling)[1] == 0.0


def test_noise_is_a_function_of_key_and_token_alone() -> None:
    keys = [key_of(5, 3, Use.NOISE), key_of(5, 3, Use.DRAFT, 64), (1 << 64) - 1, 0]
    whole = gumbels(keys, 1000)
    for row, key in enumerate(keys):
        for token in (0, 1, 17, 999):  # the scalar mixing, with 52 of its bits
            bits = _mix(key ^ token) >> 12
            expected = -math.log(-math.log((bits + 0.5) * 2.0**-52))
            assert float(whole[row, token]) == pytest.approx(expected, abs=1e-12)
    assert torch.equal(gumbels(keys[1:2], 10), whole[1:2, :10])


def test_pinned_noise() -> None:
    pinned = [1.0888130987240745, -1.3011969001771888, 5.874485955419647]
    assert gumbels([key_of(0, 0, Use.NOISE)], 3)[0].tolist() == pytest.approx(pinned, abs=1e-12)


def test_noise_follows_the_gumbel_distribution() -> None:
    drawn = gumbels([key_of(0, position, Use.NOISE) for position in range(20)], 1000)
    assert kstest(drawn.flatten().numpy(), "gumbel_r").pvalue > 1e-3
    assert torch.isfinite(drawn).all()
    assert (torch.corrcoef(drawn) - torch.eye(20)).abs().max() < 0.15


def test_the_largest_noisy_logprob_is_a_draw() -> None:
    probs = torch.tensor([0.1, 0.0, 0.6, 0.3], dtype=torch.float64)
    noise = gumbels([key_of(seed, 4, Use.NOISE) for seed in range(20_000)], 4)
    counts = torch.bincount((probs.log() + noise).argmax(dim=-1), minlength=4)
    assert counts[1] == 0
    assert chisquare(counts[[0, 2, 3]], [2000, 12000, 6000]).pvalue > 1e-3
