"""A small policy written by hand, and the documents made from it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autospec.comparison import Estimate
from autospec.config import SamplingParams, SpecConfig
from autospec.policy import Evidence, ModelSource, Policy, Quality, Reproduction, Row, TunedWorkload
from autospec.profiling.fingerprint import host_fingerprint


@pytest.fixture
def evidence() -> Evidence:
    return Evidence(
        baseline_tokens_per_second=40.0,
        tokens_per_second=70.0,
        speedup=Estimate(1.75, 1.5, 2.04, 24),
        decode_speedup=Estimate(1.9, 1.6, 2.25, 24),
        tokens_per_step=2.5,
        acceptance_rate=0.6,
        position_acceptance=(0.8, 0.6, 0.5),
        num_prompts=24,
        num_measurements=48,
        quality=Quality(num_identical=48, num_excused=0, verdict="identical"),
    )


@pytest.fixture
def policy(evidence: Evidence) -> Policy:
    return Policy(
        target=ModelSource("pocket/target"),
        drafters={"draft": ModelSource("pocket/draft"), "ngram": ModelSource("ngram")},
        dtype="float32",
        device={**host_fingerprint(), "num_threads": 2, "dtype": "float32"},
        workload=TunedWorkload("pocket", "0123456789abcdef", ("complete", "docs", "edit")),
        sampling=SamplingParams(seed=7),
        rows=(
            Row(SpecConfig(drafter="draft", draft_length=3), evidence=evidence),
            Row(SpecConfig(drafter="ngram", draft_length=8), category="edit"),
        ),
        reproduce=Reproduction("autospec tune", 7, "0.1.0", "2026-01-02T03:04:05+00:00"),
    )


@pytest.fixture
def with_rows(policy: Policy) -> Callable[..., Policy]:
    """Build the same policy with a table of (batch_size, context_length, category, draft_length)."""

    def build(*rows: tuple[int | None, int | None, str | None, int]) -> Policy:
        table = tuple(
            Row(SpecConfig(drafter="draft", draft_length=length) if length else SpecConfig(), batch, context, category)
            for batch, context, category, length in rows
        )
        return dataclasses.replace(policy, rows=table)

    return build


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], Path]:
    """Write a document, whatever is in it, and return where."""

    def write_one(document: Any) -> Path:
        path = tmp_path / "policy.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return path

    return write_one
