"""Sampling: what is replayed exactly, and what is expected, against live runs of other seeds."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.decoder import SpeculativeDecoder
from autospec.errors import ConfigError, ReplayError
from autospec.replay import RecordedPrompt, Recorder, RecordingBudget, Simulator, Trace, expected

pytestmark = pytest.mark.slow  # hundreds of live runs

SAMPLING = SamplingParams(temperature=0.9, top_p=0.95)
NUM_NEW, NUM_SEEDS = 16, 20
BUDGET = RecordingBudget(max_depth=6, width=4, max_nodes=6, draft_temperatures=(-1.0, 0.0, 0.5))
RULES = ("static", "heuristic", "confidence", "entropy", "cumulative", "adaptive", "cost_aware")


@pytest.fixture(scope="module")
def sampler(pair: SpeculativeDecoder) -> SpeculativeDecoder:
    """The pair without the drafter that takes longest to record."""
    drafters = {name: drafter for name, drafter in pair.drafters.items() if name != "early_exit"}
    return SpeculativeDecoder(pair.target, drafters)


@pytest.fixture(scope="module")
def texts(sampler: SpeculativeDecoder, prompts: list[RecordedPrompt]) -> Trace:
    """Three prompts, each sampled with several seeds."""
    short = [
        RecordedPrompt(f"{prompt.prompt_id}-{seed}", prompt.category, prompt.prompt_ids[-40:], seed)
        for prompt in prompts[:3]
        for seed in range(NUM_SEEDS)
    ]
    return Recorder(sampler, BUDGET).record(short, NUM_NEW, SAMPLING)


def live(pair: SpeculativeDecoder, trace: Trace, row: int, config: SpecConfig, seed: int) -> Any:
    sampling = SamplingParams(SAMPLING.temperature, SAMPLING.top_p, SAMPLING.top_k, seed)
    prompt = trace.prompt_ids(row)
    return pair.generate([prompt], config=config, sampling=sampling, max_new_tokens=NUM_NEW, ignore_eos=True)[0]


def random_config(numbers: random.Random) -> SpecConfig:
    while True:
        drafter = numbers.choice(("draft", "draft", "ngram", "suffix", "recycling", "ngram+draft", "suffix+draft"))
        is_model = drafter == "draft"
        shapes = ("chain", "static", "beam", "best_first") if is_model else ("chain", "trie")
        try:
            return SpecConfig(
                drafter,
                numbers.randint(1, 6),
                tree_shape=(shape := numbers.choice(shapes)),
                combine="merge" if "+" in drafter and shape == "trie" else "fallback",
                tree_width=numbers.randint(1, 4),
                tree_nodes=numbers.randint(1, 8),
                tree_paths="0 1 2 0.0 0.1 1.0 0.0.0",
                stop_rule=numbers.choice(RULES if is_model else RULES[:2]),
                stop_threshold=round(numbers.uniform(0.05, 0.8), 2),
                draft_temperature=numbers.choice((-1.0, 0.0, 0.5)),
            )
        except ConfigError:
            continue


def test_the_rule_that_keeps_plain_decoding_s_tokens_is_replayed_exactly(
    sampler: SpeculativeDecoder, texts: Trace
) -> None:
    numbers, simulator = random.Random(1), Simulator(texts, recorder=Recorder(sampler, BUDGET))
    differing, num_runs = 0, 0
    for _ in range(25):
        config = random_config(numbers)
        if config.tree_shape not in sampler._drafter(config).shapes:  # type: ignore[union-attr]
            continue
        replay = simulator.replay(config)
        for row in numbers.sample(range(len(texts.prompts)), 3):
            output = live(sampler, texts, row, config, texts.prompts[row].seed)
            own = replay.stats(row)
            num_runs += 1
            differing += (own.num_steps, own.num_drafted, own.position_accepted) != (
                output.stats.num_steps,
                output.stats.num_drafted,
                output.stats.position_accepted,
            )
    # A random number may fall within rounding of the edge between two tokens, or a rank between two candidates.
    print(f"{differing} of {num_runs} runs differ")
    assert num_runs > 40
    assert differing <= 1


CHAINS = {
    "rejection": SpecConfig("draft", 4, accept_rule="rejection"),
    "rejection-confidence": SpecConfig(
        "draft", 5, accept_rule="rejection", stop_rule="confidence", stop_threshold=0.4
    ),
    "rejection-heuristic": SpecConfig(
        "draft", 5, accept_rule="rejection", stop_rule="heuristic", draft_length_start=2
    ),
    "block": SpecConfig("draft", 5, accept_rule="block"),
    "coupled": SpecConfig("draft", 4, accept_rule="coupled"),
    "multi_candidate-best_first": SpecConfig(
        "draft", 4, accept_rule="multi_candidate", tree_shape="best_first", tree_width=3, tree_nodes=6
    ),
    "traversal-ngram": SpecConfig("ngram", 4, accept_rule="traversal"),
    "rejection-ngram-or-draft": SpecConfig("ngram+draft", 4, accept_rule="rejection"),
    "rejection-cold": SpecConfig("draft", 4, accept_rule="rejection", draft_temperature=0.0),
    "rejection-cool": SpecConfig("draft", 4, accept_rule="rejection", draft_temperature=0.5),
}


def means(sampler: SpeculativeDecoder, trace: Trace, config: SpecConfig, num_seeds: int) -> np.ndarray:
    """Steps, drafted and accepted tokens of live runs of other seeds: [runs, 3]."""
    counts = []
    for first in range(0, len(trace.prompts), NUM_SEEDS):
        for seed in range(1000, 1000 + num_seeds):
            stats = live(sampler, trace, first, config, seed).stats
            counts.append((stats.num_steps, stats.num_drafted, stats.num_accepted))
    return np.array(counts, dtype=np.float64)


def scores(
    sampler: SpeculativeDecoder, trace: Trace, config: SpecConfig, asked: SpecConfig, num_seeds: int
) -> np.ndarray:
    """How many standard errors the expectation for one configuration is from live runs of another, by count: [3]."""
    simulator = Simulator(trace, recorder=Recorder(sampler, BUDGET))
    found, counts = expected(simulator, asked), means(sampler, trace, config, num_seeds)
    own = np.stack([found.num_steps, found.num_drafted, found.num_accepted], axis=1)

    def by_prompt(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        groups = values.reshape(3, -1, 3)
        return groups.mean(axis=1).mean(axis=0), (groups.var(axis=1, ddof=1) / groups.shape[1]).sum(axis=0) / 9

    (mean, error), (goal, spread) = by_prompt(own), by_prompt(counts)
    return np.asarray(np.abs(mean - goal) / np.sqrt(error + spread + 1e-12))


@pytest.mark.parametrize("name", ["rejection", "rejection-heuristic", "block", "coupled", "rejection-ngram-or-draft"])
def test_expected_counts_are_those_of_live_runs(sampler: SpeculativeDecoder, texts: Trace, name: str) -> None:
    assert np.all(scores(sampler, texts, CHAINS[name], CHAINS[name], 12) < 4.0)


@pytest.mark.slow
@pytest.mark.parametrize("config", CHAINS.values(), ids=CHAINS)
def test_expected_counts_are_those_of_many_live_runs(
    sampler: SpeculativeDecoder, texts: Trace, config: SpecConfig
) -> None:
    assert np.all(scores(sampler, texts, config, config, 150) < 4.0)


def test_what_another_configuration_does_is_not_what_is_expected(sampler: SpeculativeDecoder, texts: Trace) -> None:
    shorter = SpecConfig("draft", 2, accept_rule="rejection")
    assert np.any(scores(sampler, texts, CHAINS["rejection"], shorter, 12) > 4.0)


def test_a_rule_that_keeps_more_is_expected_to_take_fewer_steps(texts: Trace) -> None:
    simulator = Simulator(texts)
    steps = {
        rule: expected(simulator, SpecConfig("draft", 5, accept_rule=rule)).num_steps
        for rule in ("block", "rejection")
    }
    # Block verification accepts at least as many tokens of every draft (2403.10444).
    assert np.all(steps["block"] <= steps["rejection"] + 1e-9)
    assert steps["block"].sum() < steps["rejection"].sum()


def test_rules_on_chains_that_are_the_same_are_expected_the_same(texts: Trace) -> None:
    simulator = Simulator(texts)
    for one, other in (("multi_candidate", "rejection"), ("traversal", "block")):
        counts = [expected(simulator, SpecConfig("draft", 4, accept_rule=rule)).num_accepted for rule in (one, other)]
        np.testing.assert_allclose(*counts)


def test_expected_counts_add_up(texts: Trace) -> None:
    found = expected(Simulator(texts), SpecConfig("draft", 4, accept_rule="rejection"))
    # The prefill writes one token; every step one of the target's own and what was accepted.
    np.testing.assert_allclose(1 + found.num_steps + found.num_accepted, NUM_NEW)
    assert not found.is_exact
    assert expected(Simulator(texts), SpecConfig("draft", 4)).is_exact


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SpecConfig("draft", 2, accept_rule="typical"), "must be lossless, but got 'typical'"),
        (
            SpecConfig("draft", 2, accept_rule="multi_candidate", tree_shape="static", tree_paths="0 1"),
            "trees whose children are drawn",
        ),
        (SpecConfig("draft", 2, accept_rule="block", stop_rule="adaptive"), "'adaptive' carries what was accepted"),
    ],
)
def test_what_has_no_expectation_is_refused(texts: Trace, config: SpecConfig, message: str) -> None:
    with pytest.raises(ReplayError, match=message):
        expected(Simulator(texts), config)


def test_under_sampling_other_rules_write_other_texts_and_are_not_replayed(texts: Trace) -> None:
    with pytest.raises(ReplayError, match="only accept_rule 'exact' writes the text that was recorded"):
        Simulator(texts).replay(SpecConfig("draft", 2, accept_rule="rejection"))
