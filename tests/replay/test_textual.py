"""Drafts that are listed once for all configurations, against the engine's own drafters walked along the texts."""

from __future__ import annotations

import random
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.drafters import SuffixDrafter
from autospec.replay import Simulator, Trace, TracePrompt, spans, textual
from autospec.replay.following import Follower
from autospec.replay.keeping import Kept
from autospec.replay.listing import Listing
from autospec.replay.walking import walk_plain

SOURCES = {name: name for name in ("ngram", "suffix", "recycling", "lookahead")}
STORED = [[0, 1, 2, 0, 1, 3, 0, 1, 2], [3, 3, 1, 2, 0]]
KINDS = [(name, shape) for name in ("ngram", "suffix", "lookahead") for shape in ("chain", "trie")]
KINDS += [("recycling", "chain"), ("recycling", "best_first")]


def random_trace(seed: int, vocab: int = 4) -> Trace:
    """Texts of few tokens, so that almost everything occurred before, and random thoughts of the target."""
    numbers = np.random.default_rng(seed)
    prompts = tuple(TracePrompt(f"{row}", "x", 0, size, 24) for row, size in enumerate((2, 9, 30)))
    num = sum(prompt.num_prompt + prompt.num_new for prompt in prompts)
    text = numbers.integers(0, vocab, num).astype(np.int32)
    top = np.stack([numbers.permutation(vocab + 3)[:6] for _ in range(num)]).astype(np.int32)
    # Many ties, whose order must be the drafter's, too.
    logprobs = -np.sort(numbers.integers(0, 4, top.shape), axis=1).astype(np.float32)
    trace = Trace("t", SamplingParams(), prompts, text, top, logprobs, sources=dict(SOURCES))
    for size in (2, 5):
        count = int((np.diff(trace.text_starts) // size).sum())
        trace.windows[size] = numbers.integers(0, vocab, (count, size, 4)).astype(np.int32)
    return trace


def random_config(numbers: random.Random, drafter: str, shape: str) -> SpecConfig:
    low, high = sorted((numbers.randint(1, 5), numbers.randint(1, 5)))
    values: dict[str, Any] = {
        "tree_width": numbers.choice((1, 2, 3, 6, 9)),
        "tree_nodes": numbers.choice((1, 3, 8, 20, 40)),
        "stop_rule": numbers.choice(("static", "heuristic")),
        "draft_length_start": numbers.randint(1, 5),
        "ngram_min": low,
        "ngram_max": high,
        "suffix_factor": numbers.choice((0.4, 1.0, 1.5, 4.0)),
        "suffix_depth": numbers.choice((1, 2, 5, 24)),
        "suffix_min_prob": numbers.choice((0.05, 0.1, 0.3, 0.6)),
        "lookahead_window": numbers.choice((2, 5)),
        "lookahead_ngram": numbers.randint(2, 5),
    }
    return SpecConfig(drafter, numbers.choice((1, 2, 4, 7, 16, 20)), tree_shape=shape, **values)


def check_walk(simulator: Simulator, config: SpecConfig) -> int:
    """The simulator's steps are those of the engine's drafter; returns how many tokens were accepted."""
    table = simulator.steps(config)
    drafter = simulator.cast.followed(config, simulator.shelf, None)
    walked = Follower(simulator.trace, simulator.route, {}).follow(drafter, config)
    visited = walk_plain(walked.accepted[None], simulator.route)[0]
    for part in fields(table):
        own, theirs = (getattr(one, part.name)[visited] for one in (table, walked))
        np.testing.assert_array_equal(own, theirs, err_msg=f"{part.name} of {config}")
    return int(table.accepted[visited].sum())


@pytest.mark.parametrize(("drafter", "shape"), KINDS)
def test_listed_drafts_are_those_of_the_drafters(drafter: str, shape: str) -> None:
    numbers, accepted = random.Random(f"{drafter} {shape}"), 0
    for seed in range(3):
        trace = random_trace(seed)
        given = {"suffix": SuffixDrafter(STORED)} if seed else None
        simulator = Simulator(trace, given, max_new_tokens=24 - 5 * seed)
        for _ in range(25):
            accepted += check_walk(simulator, random_config(numbers, drafter, shape))
    assert accepted > 300


@pytest.mark.parametrize("drafter", ["suffix+recycling", "ngram+suffix"])
def test_the_first_that_has_a_chain_drafts(drafter: str) -> None:
    numbers, simulator = random.Random(drafter), Simulator(random_trace(5))
    assert sum(check_walk(simulator, random_config(numbers, drafter, "chain")) for _ in range(30)) > 100


def test_shares_too_small_to_be_listed_are_walked() -> None:
    simulator = Simulator(random_trace(6, vocab=12))
    for shape in ("chain", "trie"):
        config = SpecConfig("suffix", 6, tree_shape=shape, tree_width=6, tree_nodes=12, suffix_min_prob=0.01)
        assert check_walk(simulator, config) > 0


def test_budgets_and_limits_are_cut_from_a_list() -> None:
    # In order: a, a.b, a.b.c, d; the target writes a b x.
    listing = Listing.of(
        np.array([[1, 2, 3, 1, 0]]),
        np.array([[True, True, False, False, False]]),
        np.array([[True, True, True, True, False]]),
    )
    row, expected = (
        np.array([0]),
        {(1, 9): [1, 1, 1, 1], (3, 9): [3, 3, 2, 3], (9, 2): [3, 2, 2, 2], (2, 1): [2, 1, 1, 1]},
    )
    for (budget, limit), counts in expected.items():
        assert listing.stepper(budget)(row, np.array([limit]))[:, 0].tolist() == counts


@pytest.mark.parametrize("bound", ["MOST_POSITIONS", "MOST_CELLS"])
@pytest.mark.parametrize("drafter", ["ngram", "suffix", "lookahead"])
def test_many_positions_are_walked_one_by_one(drafter: str, bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, numbers = random_trace(7), random.Random(drafter)
    configs = [random_config(numbers, drafter, shape) for shape in ("chain", "trie") for _ in range(4)]
    listed = [Simulator(trace).replay(config) for config in configs]
    longest = int(np.diff(trace.text_starts).max())
    most = {"MOST_POSITIONS": trace.num_positions - 1, "MOST_CELLS": trace.num_positions * longest - 1}
    monkeypatch.setattr(textual, bound, most[bound])
    monkeypatch.setattr(textual, "lookahead_spans", None)
    monkeypatch.setattr(textual, "ngram_spans", None)
    monkeypatch.setattr(textual, "SuffixLists", None)
    for config, replay in zip(configs, listed, strict=True):
        np.testing.assert_array_equal(Simulator(trace).replay(config).accepted, replay.accepted)


def test_how_many_contexts_are_looked_at_together_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    trace, config = random_trace(8), SpecConfig("ngram", 6, ngram_max=4)
    whole = spans.ngram_spans(trace, config, 4, 6)
    monkeypatch.setattr(spans, "_CELLS", 2 * int(np.diff(trace.text_starts).max()) + 1)
    parts = spans.ngram_spans(trace, config, 4, 6)
    for name in ("lengths", "hits", "shared"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    assert whole.hits.max() > 1


def test_what_was_asked_for_longest_ago_makes_room() -> None:
    kept, made = Kept[Listing](3 * 6 * 2), list[int]()

    def get(key: int) -> int:
        def make() -> Listing:
            made.append(key)
            levels = np.full((1, 3), key)
            return Listing.of(levels, levels > 0, levels > 0)

        return int(kept.get(key, make).levels[0, 0])

    assert [get(key) for key in (1, 2, 1, 3, 1, 2)] == [1, 2, 1, 3, 1, 2]
    assert made == [1, 2, 3, 2]
