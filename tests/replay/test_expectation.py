"""Chances of steps, worked by hand and by going through every way that a generation can take."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from autospec.config import SamplingParams, SpecConfig
from autospec.errors import ReplayError
from autospec.replay import Simulator, Trace, TracePrompt, expected
from autospec.replay.forest import DraftForest, Drawn, Rows

# The target writes 6, 7, 8, 9 behind the 5 of its prefill, and as much in a second text.
OWN = np.array([0.1, 0.5, 0.3, 0.4, 0.2, 0.6, 0.05, 0.9], dtype=np.float32)
TARGET = np.array([0.2, 0.4, 0.5, 0.4, 0.8, 0.3, 0.5, 0.6], dtype=np.float32)
NUM_NEW = 5


def by_hand(**changes: Any) -> Trace:
    """Two texts of five tokens behind one; a drafter `m` that draws two tokens, and `ngram`."""
    num, depth = len(OWN), 2
    rows = Rows(np.full((num, 2), 3, np.int32), np.log(np.full((num, 2), 0.5, np.float32)), np.ones(num, np.float32))
    left = np.tile(np.arange(NUM_NEW - 2, -1, -1), 2)
    drawn = Drawn(
        tokens=np.full((num, depth), 3, dtype=np.int32),
        probs=np.full((num, depth), 0.5, dtype=np.float32),
        entropies=np.ones((num, depth), dtype=np.float32),
        lengths=np.minimum(left, depth).astype(np.int32),
        own=OWN,
        coupled=OWN,
    )
    text = np.array([2, 5, 6, 7, 8, 9, 2, 5, 7, 6, 9, 8], dtype=np.int32)
    top = np.zeros((len(text), 2), dtype=np.int32)
    values: dict[str, Any] = {
        "target": "t",
        "sampling": SamplingParams(temperature=1.0),
        "prompts": (TracePrompt("a", "x", 0, 1, NUM_NEW), TracePrompt("b", "y", 0, 1, NUM_NEW)),
        "text": text,
        "top_tokens": top,
        "top_logprobs": top.astype(np.float32),
        "sources": {"m": "model", "ngram": "ngram"},
        "forests": {"m": DraftForest.of_positions(rows, np.full(num, 99, dtype=np.int32))},
        "drawn": {"m": drawn},
        "target_probs": TARGET,
    }
    return Trace(**{**values, **changes})


def test_chains_of_one_token_by_hand() -> None:
    found = expected(Simulator(by_hand()), SpecConfig("m", 1, accept_rule="rejection"))
    # Kept with min(1, own / target): 0.5, 1, 0.6; nothing is drafted at the last place. A step begins at the second
    # place unless the first kept its token, and so on: 1, 0.5, 0.5 + 0, 0.5 * 1 + 0.5 * 0.4.
    own = found.prompts == 0
    assert found.contexts[own].tolist() == [2, 3, 4, 5]
    np.testing.assert_allclose(found.chances[own], [1.0, 0.5, 0.5, 0.7], rtol=1e-6)
    np.testing.assert_allclose(found.kept[own], [0.5, 1.0, 0.6, 0.0], rtol=1e-6)
    assert found.nodes[own].tolist() == [1, 1, 1, 0]
    assert found.num_steps[0] == pytest.approx(2.7)
    assert found.num_drafted[0] == found.num_calls[0] == pytest.approx(2.0)
    assert found.num_accepted[0] == pytest.approx(0.5 + 0.5 * 1.0 + 0.5 * 0.6)
    assert found.firsts[own].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert not found.is_exact


def test_a_block_of_two_tokens_by_hand() -> None:
    found = expected(Simulator(by_hand()), SpecConfig("m", 2, accept_rule="block"))
    # Ratios 0.5 and 1.25: products 0.5 and 0.625, the least of which so far 0.5, 0.5. Then 1.25 and 0.6: 1, 0.75.
    np.testing.assert_allclose(found.kept[:2], [1.0, 1.75], rtol=1e-6)
    # Both tokens or none, so that the third place is never begun at; the last is where the second kept one alone.
    assert found.contexts[:3].tolist() == [2, 3, 5]
    np.testing.assert_allclose(found.chances[:3], [1.0, 0.5, 0.5 + 0.5 * 0.25], rtol=1e-6)


def paths(config: SpecConfig, first: int) -> Iterator[tuple[float, list[tuple[int, int]]]]:
    """Every way through a text by rejection, written down anew: its probability, and (place, drafted) of its steps."""
    ratios = np.minimum(1.0, OWN.astype(np.float64) / TARGET)

    def go(
        place: int, limit: int, prob: float, seen: list[tuple[int, int]]
    ) -> Iterator[tuple[float, list[tuple[int, int]]]]:
        left = NUM_NEW - 1 - place
        if left <= 0:
            yield prob, seen
            return
        num_drafted = min(limit, left - 1)
        for kept in range(num_drafted + 1):
            chance = float(np.prod(ratios[first + place : first + place + kept]))
            if kept < num_drafted:
                chance *= 1.0 - ratios[first + place + kept]
            after = limit
            if config.stop_rule == "heuristic" and num_drafted:
                after = min(limit + 2, config.draft_length) if kept == num_drafted else max(limit - 1, 1)
            yield from go(place + kept + 1, after, prob * chance, [*seen, (place, num_drafted)])

    start = config.draft_length_start if config.stop_rule == "heuristic" else config.draft_length
    yield from go(0, start, 1.0, [])


@pytest.mark.parametrize(
    "config",
    [
        SpecConfig("m", 2, accept_rule="rejection"),
        SpecConfig("m", 2, accept_rule="rejection", stop_rule="heuristic", draft_length_start=1),
    ],
    ids=["static", "heuristic"],
)
def test_every_step_has_the_chance_that_all_ways_together_give_it(config: SpecConfig) -> None:
    found = expected(Simulator(by_hand()), config)
    for row, first in enumerate((0, NUM_NEW - 1)):
        total, by_step = 0.0, defaultdict[tuple[int, int], float](float)
        for prob, steps in paths(config, first):
            total += prob
            for place, num_drafted in steps:
                by_step[place, num_drafted] += prob
        assert total == pytest.approx(1.0)
        own, chances = found.prompts == row, defaultdict[tuple[int, int], float](float)
        for context, nodes, chance in zip(found.contexts[own], found.nodes[own], found.chances[own], strict=True):
            chances[int(context) - 2, int(nodes)] += chance
        assert dict(chances) == pytest.approx({step: prob for step, prob in by_step.items() if prob > 0.0}, rel=1e-6)
        assert found.num_steps[row] == pytest.approx(sum(by_step.values()))


def test_the_first_forward_of_a_model_behind_lookups_by_hand() -> None:
    # ngram finds the 5 of a text that repeats itself: at the first place it drafts 6, and what it finds is right.
    text = np.array([5, 6, 5, 6, 7, 8, 9, 5, 6, 5, 7, 6, 9, 8], dtype=np.int32)
    prompts = (TracePrompt("a", "x", 0, 2, NUM_NEW), TracePrompt("b", "y", 0, 2, NUM_NEW))
    top = np.zeros((len(text), 2), dtype=np.int32)
    trace = by_hand(text=text, prompts=prompts, top_tokens=top, top_logprobs=top.astype(np.float32))
    found = expected(Simulator(trace), SpecConfig("ngram+m", 1, accept_rule="rejection", ngram_max=1))
    own = found.prompts == 0
    # The lookup's 6 is kept for sure, so that the model runs first at the third place.
    assert found.contexts[own].tolist() == [3, 5, 6]
    assert found.calls[own].tolist() == [0, 1, 0]
    np.testing.assert_allclose(found.chances[own], [1.0, 1.0, 0.4], rtol=1e-6)
    np.testing.assert_allclose(found.firsts[own], [0.0, 1.0, 0.0], rtol=1e-6)
    # In the second text the 6 is wrong, and the model runs at the second place, whose token it has with 0.6 / 0.3.
    np.testing.assert_allclose(found.firsts.sum(), 2.0)
    assert found.contexts[~own].tolist()[:2] == [3, 4]


def test_what_is_not_drawn_is_counted_with_certainty() -> None:
    found = expected(Simulator(by_hand()), SpecConfig("ngram", 2, accept_rule="block"))
    assert found.chances.tolist() == [1.0] * 8  # nothing repeats itself, so that every token is a step
    assert found.config.accept_rule == "block"
    assert not found.is_exact
    assert expected(Simulator(by_hand()), SpecConfig("m", 2)).is_exact


def test_chains_that_were_not_recorded_to_the_end_are_refused() -> None:
    with pytest.raises(ReplayError, match="chains of 3 tokens must be recorded to the end"):
        expected(Simulator(by_hand()), SpecConfig("m", 3, accept_rule="rejection"))
