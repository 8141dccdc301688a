"""The embedded pair and a trace of it, and random configurations that a live run is compared with."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from autospec import pocket
from autospec.config import SpecConfig
from autospec.engine.datastore import Datastore
from autospec.engine.decoder import SpeculativeDecoder
from autospec.engine.drafters import DatastoreDrafter
from autospec.errors import ConfigError
from autospec.replay import RecordedPrompt, Recorder, RecordingBudget, Trace

NUM_NEW = 32
BUDGET = RecordingBudget(max_depth=8, width=6, max_nodes=12, exit_layers=(2, 6))
STATIC = ("0 1 0.0", "0 1 2 0.0 0.1 1.0 0.0.0 0.0.1 0.0.0.0", "0 0.0 0.1 0.0.0 0.1.0 0.0.0.0 0.0.0.0.0")
SHAPES = {
    "draft": ("chain", "static", "beam", "best_first"),
    "early_exit": ("chain", "static", "beam", "best_first"),
    "ngram": ("chain", "trie"),
    "suffix": ("chain", "trie"),
    "datastore": ("chain", "trie"),
    "recycling": ("chain", "static", "best_first"),
    "ngram+draft": ("chain",),
    "suffix+recycling": ("chain",),
    "suffix+draft": ("chain", "trie"),
    "ngram+recycling+early_exit": ("trie",),
    "draft+early_exit": ("chain", "trie"),
}
RULES = ("static", "heuristic", "confidence", "entropy", "cumulative", "adaptive", "cost_aware")


def random_config(numbers: random.Random) -> SpecConfig:
    """Any configuration of the drafters above; those that `SpecConfig` or a decoder refuses are drawn again."""
    while True:
        drafter = numbers.choice(list(SHAPES))
        rule = numbers.choice(RULES if drafter in ("draft", "early_exit") else RULES[:2])
        values: dict[str, Any] = {
            "drafter": drafter,
            "draft_length": numbers.randint(1, 8),
            "tree_shape": (shape := numbers.choice(SHAPES[drafter])),
            "combine": "merge" if "+" in drafter and shape == "trie" else "fallback",
            "tree_width": numbers.randint(1, 6),
            "tree_nodes": numbers.randint(1, 12),
            "tree_paths": numbers.choice(STATIC),
            "stop_rule": rule,
            "stop_threshold": round(numbers.uniform(0.05, 0.95), 2),
            "entropy_form": numbers.choice(("svip", "adaedl")),
            "adaptive_goal": numbers.choice((0.5, 0.9)),
            "draft_length_start": numbers.randint(1, 4),
            "exit_layer": numbers.choice((2, 6)) if "early_exit" in drafter else 0,
            "ngram_max": numbers.randint(1, 4),
            "suffix_factor": numbers.choice((0.5, 1.0, 2.0)),
            "suffix_min_prob": numbers.choice((0.05, 0.3)),
        }
        try:
            return SpecConfig(**values)
        except ConfigError:
            continue


@pytest.fixture(scope="session")
def draw_config() -> Callable[[random.Random], SpecConfig]:
    return random_config


@pytest.fixture(scope="session")
def pair() -> SpeculativeDecoder:
    """The embedded pair with every drafter that can be replayed."""
    sources: dict[str, Any] = {"draft": pocket.draft_path(), "early_exit": "early_exit", "ngram": "ngram"}
    sources |= {"suffix": "suffix", "recycling": "recycling"}
    decoder = SpeculativeDecoder.from_pretrained(pocket.target_path(), sources, device="cpu", dtype="float32")
    rows = [json.loads(line) for line in pocket.workload_path().read_text(encoding="utf-8").splitlines()]
    assert decoder.text is not None
    texts = [decoder.text.encode(row["prompt"]) for row in rows[40:60]]
    decoder.drafters["datastore"] = DatastoreDrafter(Datastore.of(texts))
    return decoder


@pytest.fixture(scope="session")
def prompts(pair: SpeculativeDecoder) -> list[RecordedPrompt]:
    """The shortest prompt of each category, cut to 120 tokens."""
    rows = [json.loads(line) for line in pocket.workload_path().read_text(encoding="utf-8").splitlines()]
    shortest = {row["category"]: row for row in sorted(rows, key=lambda row: -len(row["prompt"]))}
    assert pair.text is not None
    return [
        RecordedPrompt(row["id"], category, tuple(pair.text.encode(row["prompt"])[-120:]))
        for category, row in sorted(shortest.items())
    ]


@pytest.fixture(scope="session")
def trace(pair: SpeculativeDecoder, prompts: list[RecordedPrompt]) -> Trace:
    return Recorder(pair, BUDGET).record(prompts, NUM_NEW)
