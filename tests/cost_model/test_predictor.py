"""Predictions on the embedded pair, beside the counts of live runs priced by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from autospec.config import SamplingParams, SpecConfig
from autospec.cost_model import Prediction, Predictor, cross_validate, independence
from autospec.cost_model.steps import p95_by_prompt
from autospec.engine.decoder import SpeculativeDecoder
from autospec.errors import MeasurementError, ReplayError
from autospec.profiling import HardwareProfile
from autospec.records import Measurement, StepStats, p95
from autospec.replay import RecordedPrompt, Recorder, RecordingBudget, Simulator, Trace
from autospec.yardsticks import LATENCY, SPEED

NUM_NEW = 24
TOLERANCE = 0.003  # contexts are counted at the middle of an output
CONFIGS = [
    *(SpecConfig("draft", length) for length in (1, 2, 4, 8)),
    SpecConfig("ngram", 4),
    SpecConfig("ngram", 8, ngram_min=2),
]


@pytest.fixture
def predictor(trace: Trace, by_hand: HardwareProfile) -> Predictor:
    return Predictor(Simulator(trace), by_hand)


def known(predictor: Predictor, config: SpecConfig) -> Prediction:
    (price,) = predictor.predict([config])
    assert price is not None
    return price


def live_seconds(pair: SpeculativeDecoder, prompt: RecordedPrompt, config: SpecConfig) -> float:
    """What the profile by hand makes of the counts of a live run."""
    stats = pair.generate([prompt.prompt_ids], config=config, max_new_tokens=NUM_NEW, ignore_eos=True)[0].stats
    context = seconds = float(len(prompt.prompt_ids))
    is_model = config.drafter == "draft"
    # A chain that is drafted whole has as many forwards as tokens, so counts are enough but for the contexts.
    seconds += stats.num_steps * 11.5 + stats.num_drafted * 1.0
    if not config.is_off:
        seconds += stats.num_steps * 0.125 + stats.num_drafted * 1.0 + 2.0 if is_model else stats.num_steps * 0.25
    return seconds + stats.num_steps * (context + (NUM_NEW - 1) / 2) / 100


def test_six_configurations_are_ranked_as_the_counts_of_live_runs_rank_them(
    predictor: Predictor, pair: SpeculativeDecoder, prompts: list[RecordedPrompt]
) -> None:
    plain = np.array([live_seconds(pair, prompt, SpecConfig()) for prompt in prompts])
    live = {}
    for config in CONFIGS:
        seconds = np.array([live_seconds(pair, prompt, config) for prompt in prompts])
        np.testing.assert_allclose(known(predictor, config).seconds, seconds, rtol=TOLERANCE)
        live[config] = float(np.log(plain / seconds).mean())
    told_apart = [
        pair for pair in itertools.combinations(CONFIGS, 2) if abs(live[pair[0]] - live[pair[1]]) > 2 * TOLERANCE
    ]
    assert len(told_apart) >= 12
    for first, second in told_apart:
        ahead = known(predictor, first).log_speedup > known(predictor, second).log_speedup
        assert ahead == (live[first] > live[second]), (first, second)


def test_a_latency_is_that_of_the_longest_steps(predictor: Predictor, pair: SpeculativeDecoder) -> None:
    """By hand, a step that drafts two tokens takes at most 10.5 + 3 for the target, 2 for drafts, 0.125 more.

    The first takes 2.0 more, but is one among a dozen and counts for little; the last ones may have no room to draft.
    """
    chain, one = known(predictor, SpecConfig("draft", 2)), known(predictor, SpecConfig("draft", 1))
    lengths = predictor._lengths
    plain = 11.5 + (lengths + 0.95 * (NUM_NEW - 2)) / 100
    for price, step in ((chain, 15.625), (one, 13.625)):
        gaps = step + (lengths + 0.95 * (NUM_NEW - 2)) / 100
        expected = np.log(plain / gaps)
        assert (np.abs(price.log_latency_ratios - expected) < 0.09).all()
        assert (price.log_latency_ratios <= expected + 0.01).all()
    assert price.log_ratios is price.log_speedups


def test_by_latency_longer_drafts_are_worse_however_fast_they_are(trace: Trace, by_hand: HardwareProfile) -> None:
    by_speed, by_latency = (Predictor(Simulator(trace), by_hand, one) for one in (SPEED, LATENCY))
    lengths = (1, 2, 4, 8)
    assert by_latency.yardstick is LATENCY
    ratios = [known(by_latency, SpecConfig("draft", one)).log_ratio for one in lengths]
    assert ratios == sorted(ratios, reverse=True)
    assert max(ratios) < 0.0
    speeds = [known(by_latency, SpecConfig("draft", one)).log_speedup for one in lengths]
    assert speeds == [known(by_speed, SpecConfig("draft", one)).log_ratio for one in lengths]
    assert known(by_latency, SpecConfig()).log_ratio == 0.0


def test_a_correction_by_latency_leaves_speeds_alone(
    trace: Trace, by_hand: HardwareProfile, measured: Callable[..., Measurement]
) -> None:
    predictor, config = Predictor(Simulator(trace), by_hand, LATENCY), CONFIGS[1]
    before = known(predictor, config)
    taught = [
        replace(
            measured(config, name, 3.0),
            baseline_gap_seconds=(1.0,),
            stats=StepStats(gap_seconds=[math.exp(0.2 - before.log_ratios[row])]),
        )
        for row, name in enumerate(predictor.prompt_ids)
    ]
    predictor.correct(taught)
    after = known(predictor, config)
    assert -0.2 < after.log_ratio - before.log_ratio < -0.15
    assert after.log_speedups.tolist() == before.log_speedups.tolist()


def test_the_95th_percentile_of_every_prompt() -> None:
    rng = np.random.default_rng(1)
    prompts, gaps = rng.integers(0, 5, size=60), rng.lognormal(size=60)
    prompts[prompts == 3] = 4  # the fourth has none
    found = p95_by_prompt(gaps, prompts, 6)
    for row in range(6):
        own = gaps[prompts == row].tolist()
        assert found[row] == pytest.approx(p95(own) if own else 0.0)


def test_speculation_off_is_plain_decoding_whatever_was_learnt(
    predictor: Predictor, measured: Callable[..., Measurement]
) -> None:
    off = known(predictor, SpecConfig())
    assert off.log_speedups.tolist() == [0.0] * len(predictor.prompt_ids)
    predictor.correct([measured(CONFIGS[0], one, 2.0) for one in predictor.prompt_ids])
    assert known(predictor, SpecConfig()).log_speedup == 0.0


def test_a_correction_moves_what_was_measured_and_what_is_like_it(
    predictor: Predictor, measured: Callable[..., Measurement]
) -> None:
    before = {config: known(predictor, config).log_speedup for config in CONFIGS}
    rows = {one: place for place, one in enumerate(predictor.prompt_ids)}
    uncorrected = known(predictor, CONFIGS[1]).log_speedups
    predictor.correct([measured(CONFIGS[1], one, uncorrected[rows[one]] - 0.2) for one in predictor.prompt_ids])
    moved = {config: known(predictor, config).log_speedup - before[config] for config in CONFIGS}
    assert -0.2 < moved[CONFIGS[1]] < -0.15
    assert moved[CONFIGS[1]] < moved[CONFIGS[2]] < moved[CONFIGS[4]] < 0.0
    assert known(predictor, CONFIGS[1]).spread < known(predictor, CONFIGS[4]).spread
    predictor.correct([])
    assert known(predictor, CONFIGS[1]).log_speedup == before[CONFIGS[1]]


def test_what_trace_or_profile_cannot_tell_of_is_none(predictor: Predictor) -> None:
    assert predictor.predict([SpecConfig("draft", 4, accept_rule="lenient"), SpecConfig("suffix", 4)]) == [None, None]


def planted(predictor: Predictor, measured: Callable[..., Measurement], shift: float) -> list[Measurement]:
    return [
        measured(config, name, float(known(predictor, config).log_speedups[row]) + shift)
        for config in CONFIGS
        for row, name in enumerate(predictor.prompt_ids)
    ]


def test_predictions_that_come_true_have_no_error(predictor: Predictor, measured: Callable[..., Measurement]) -> None:
    found = cross_validate(predictor, planted(predictor, measured, 0.0))
    for one in (found.uncorrected, found.by_config):
        assert one.tokens_per_second_mape == pytest.approx(0.0, abs=1e-9)
        assert one.rank_correlation == pytest.approx(1.0)
        assert one.regret == 0.0
        assert one.num_pairs == len(CONFIGS)


def test_an_error_that_all_share_is_learnt_from_the_other_configurations(
    predictor: Predictor, measured: Callable[..., Measurement]
) -> None:
    found = cross_validate(predictor, planted(predictor, measured, -0.1))
    assert found.uncorrected.tokens_per_second_mape == pytest.approx(math.expm1(0.1))
    assert found.by_config.tokens_per_second_mape < 0.01
    assert found.by_prompt is not None
    assert found.by_prompt.num_pairs == 5 * len(CONFIGS)
    assert found.to_json()["by_config"]["regret"] == 0.0


def test_the_prompts_that_are_left_out_are_predicted_by_the_others(
    predictor: Predictor, measured: Callable[..., Measurement]
) -> None:
    # one prompt is twice as fast as predicted and no other shows it
    one, *rest = planted(predictor, measured, 0.0)
    odd = [
        measured(config, one.prompt_id, float(known(predictor, config).log_speedups[0]) + 1.0) for config in CONFIGS
    ]
    others = [each for each in rest if each.prompt_id != one.prompt_id]
    usual = cross_validate(predictor, [one, *rest]).by_prompt
    found = cross_validate(predictor, [*odd, *others]).by_prompt
    assert usual is not None
    assert found is not None
    assert found.tokens_per_second_mape > usual.tokens_per_second_mape + 0.05


def test_steps_are_compared_as_multiples_of_plain_steps(
    predictor: Predictor, measured: Callable[..., Measurement]
) -> None:
    config, row = CONFIGS[0], 0
    # plain steps take 10; 5 steps of 12 behind 10 for the prompt
    one = measured(config, predictor.prompt_ids[row], math.log(100 / 70), 5)
    found = cross_validate(predictor, [one])
    assert found.uncorrected.step_seconds_mape == pytest.approx(
        abs(known(predictor, config).step_seconds[row] / 1.2 - 1)
    )
    assert found.by_prompt is None


def test_nothing_to_compare_is_refused(predictor: Predictor, measured: Callable[..., Measurement]) -> None:
    with pytest.raises(MeasurementError, match="predicted and measured"):
        cross_validate(predictor, [measured(SpecConfig(), predictor.prompt_ids[0], 0.0)])


SAMPLING = SamplingParams(temperature=1.0)
NUM_SEEDS, NUM_SAMPLED = 60, 10


@pytest.fixture(scope="module")
def sampler() -> SpeculativeDecoder:
    """Two untrained models that are sure of themselves and agree about as often as not."""
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, bos_token_id=1, eos_token_id=2, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(1)
    target, drafter = LlamaForCausalLM(config).eval(), LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for own, other in zip(drafter.parameters(), target.parameters(), strict=True):
            own.copy_(0.8 * other + 0.2 * own)
    return SpeculativeDecoder.from_pretrained(target, {"draft": drafter, "ngram": "ngram"}, device="cpu")


@pytest.fixture(scope="module")
def sampled(sampler: SpeculativeDecoder, by_hand: HardwareProfile) -> Predictor:
    """One prompt, sampled with many seeds."""
    prompts = [RecordedPrompt(f"p{seed}", "any", (5, 6, 7, 5), seed) for seed in range(NUM_SEEDS)]
    trace = Recorder(sampler, RecordingBudget(4, 2, 0)).record(prompts, NUM_SAMPLED, SAMPLING)
    return Predictor(Simulator(trace), by_hand)


def standard_errors_off(
    sampler: SpeculativeDecoder, predictor: Predictor, asked: SpecConfig, run: SpecConfig
) -> np.ndarray:
    """How many standard errors predicted steps and seconds are off those of live runs of other seeds: [2]."""
    price = known(predictor, asked)
    live = []
    for seed in range(1000, 1000 + 2 * NUM_SEEDS):
        sampling = replace(SAMPLING, seed=seed)
        options: dict[str, Any] = {"sampling": sampling, "max_new_tokens": NUM_SAMPLED, "ignore_eos": True}
        stats = sampler.generate([(5, 6, 7, 5)], config=run, **options)[0].stats
        # A prompt of 4 tokens and the first draft's 2 more; the mean context is within 5 of 9, 0.05 of a step's 12.
        seconds = 4.0 + 2.0 + stats.num_steps * (11.5 + 0.125 + 0.09) + stats.num_drafted * 2.0
        live.append((stats.num_steps, seconds))
    own, found = np.stack([price.num_steps, price.seconds], axis=1), np.array(live)
    spread = own.var(axis=0, ddof=1) / len(own) + found.var(axis=0, ddof=1) / len(found)
    return np.asarray(np.abs(own.mean(axis=0) - found.mean(axis=0)) / np.sqrt(spread))


@pytest.mark.parametrize(
    "config",
    [
        SpecConfig("draft", 3, accept_rule="rejection"),
        SpecConfig("draft", 4, accept_rule="block", stop_rule="heuristic", draft_length_start=1),
    ],
    ids=["rejection", "block-heuristic"],
)
def test_under_sampling_steps_and_seconds_are_those_of_live_runs_on_average(
    sampler: SpeculativeDecoder, sampled: Predictor, config: SpecConfig
) -> None:
    # Means of 60 texts and of 120 runs: by chance one of the two is 4 standard errors off once in 8,000 times.
    assert np.all(standard_errors_off(sampler, sampled, config, config) < 4.0)
    assert not known(sampled, config).is_exact


def test_live_runs_of_another_rule_are_not_what_is_predicted(sampler: SpeculativeDecoder, sampled: Predictor) -> None:
    asked, other = (SpecConfig("draft", 3, accept_rule=rule) for rule in ("rejection", "exact"))
    assert np.all(standard_errors_off(sampler, sampled, asked, other) > 4.0)


def test_what_is_exact_is_told_from_what_is_expected(sampled: Predictor) -> None:
    exact, drawn = known(sampled, SpecConfig("draft", 3)), known(sampled, SpecConfig("draft", 3, accept_rule="block"))
    assert (exact.is_exact, drawn.is_exact) == (True, False)
    assert exact.num_steps.tolist() == np.round(exact.num_steps).tolist()
    # Another rule takes its own time, so that it may err otherwise.
    assert exact.features[4] != drawn.features[4]
    assert known(sampled, SpecConfig()).log_speedups.tolist() == [0.0] * NUM_SEEDS
    with pytest.raises(ReplayError, match="under sampling 'draft' draws its chains"):
        independence(sampled._simulator, "draft")
