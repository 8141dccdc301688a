"""A profile made by hand, linear in everything, and the embedded pair with a trace of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from autospec import pocket
from autospec.config import SamplingParams, SpecConfig
from autospec.engine.decoder import SpeculativeDecoder
from autospec.profiling import HardwareProfile
from autospec.profiling.curves import Timing
from autospec.profiling.parts import (
    DrafterContext,
    DrafterCosts,
    DraftPoint,
    Memory,
    Noise,
    PlainPoint,
    PrefillPoint,
    TargetPoint,
)
from autospec.records import Measurement, StepStats
from autospec.replay import RecordedPrompt, Recorder, RecordingBudget, Trace
from autospec.sources import ModelSource

CONTEXTS = (1, 400)
NUM_NEW = 24
SIZES, DEPTHS, WIDTHS = (1, 2, 4, 8, 16, 32), (1, 2, 4, 8), (1, 2, 4)


def _time(seconds: float, is_difference: bool = False) -> Timing:
    return Timing.of([seconds] * 3, is_difference)


def _drafter(per_forward: float, per_row: float, lookup: float, extra: float) -> DrafterCosts:
    """A model that takes `per_forward` and, for each row but the first of a comb, `per_row`; or a lookup."""
    runs_model = lookup == 0.0
    points = [
        DraftPoint(
            exit_layer=0,
            batch_size=1,
            width=width,
            context_length=context,
            depth=depth,
            num_tokens=width * depth + 1,
            draft=_time(lookup or depth * per_forward + (depth - 1) * (width - 1) * per_row),
            verify=_time(10.0 + width * depth + 1 + context / 100 + extra),
            host=_time(0.5),
        )
        for width in (WIDTHS if runs_model else (1,))
        for depth in DEPTHS
        for context in CONTEXTS
    ]
    around = [
        DrafterContext(
            exit_layer=0,
            batch_size=1,
            context_length=context,
            prefill=_time(float(context)),
            first_draft=_time((lookup or per_forward) + (2.0 if runs_model else 0.0)),
            verify_extra=_time(extra, True),
            host_extra=_time(0.0, True),
        )
        for context in CONTEXTS
    ]
    return DrafterCosts(ModelSource("x"), runs_model, 0, 0, tuple(points), tuple(around))


def make_profile() -> HardwareProfile:
    """A forward of n tokens behind c takes 10 + n + c / 100 (4 rows: 10 + 4 n + c / 100), the host 0.5; a prompt n."""
    forwards = [
        TargetPoint(1, context, size, _time(10.0 + size + context / 100), _time(0.5), "step")
        for context in CONTEXTS
        for size in SIZES
    ]
    forwards += [
        TargetPoint(4, context, size, _time(10.0 + 4 * size + context / 100), None, "loop")
        for context in CONTEXTS
        for size in SIZES[:4]
    ]
    return HardwareProfile(
        fingerprint={"device_name": "by hand", "num_threads": 1, "dtype": "float32"},
        target=ModelSource("target"),
        drafters={"draft": _drafter(1.0, 0.25, 0.0, 0.125), "ngram": _drafter(0.0, 0.0, 0.25, 0.0)},
        sampling=SamplingParams(),
        workload="none",
        target_points=tuple(forwards),
        plain_points=tuple(PlainPoint(1, context, _time(11.5 + context / 100)) for context in CONTEXTS),
        prefill_points=tuple(PrefillPoint(1, context, _time(float(context))) for context in CONTEXTS),
        memory=Memory(0, 1.0, 0),
        noise=Noise(0.0, "quiet"),
        left_out=(),
        wall_seconds=1.0,
        created="2026-01-01T00:00:00+00:00",
        autospec_version="0",
    )


@pytest.fixture(scope="session")
def by_hand() -> HardwareProfile:
    return make_profile()


@pytest.fixture(scope="session")
def pair() -> SpeculativeDecoder:
    sources = {"draft": pocket.draft_path(), "ngram": "ngram"}
    return SpeculativeDecoder.from_pretrained(pocket.target_path(), sources, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def prompts(pair: SpeculativeDecoder) -> list[RecordedPrompt]:
    """Six prompts of several categories, cut to 60 tokens."""
    rows = [json.loads(line) for line in pocket.workload_path().read_text(encoding="utf-8").splitlines()]
    assert pair.text is not None
    return [
        RecordedPrompt(row["id"], row["category"], tuple(pair.text.encode(row["prompt"])[-60:]))
        for row in rows[::30][:6]
    ]


@pytest.fixture(scope="session")
def trace(pair: SpeculativeDecoder, prompts: list[RecordedPrompt]) -> Trace:
    return Recorder(pair, RecordingBudget(max_depth=8, width=4, max_nodes=8)).record(prompts, NUM_NEW)


@pytest.fixture(scope="session")
def measured() -> Callable[..., Measurement]:
    """(config, prompt_id, log_speedup, num_steps) -> plain decoding takes 100 s and 10 s of prompt for 10 tokens."""

    def make(config: SpecConfig, prompt_id: str, log_speedup: float, num_steps: int = 5) -> Measurement:
        stats = replace(StepStats(), num_steps=num_steps, num_new_tokens=10)
        return Measurement(
            config=config,
            prompt_id=prompt_id,
            category="any",
            stage="search",
            trial=1,
            repeat=0,
            seconds=100.0 / math.exp(log_speedup),
            baseline_seconds=100.0,
            num_tokens=10,
            baseline_num_tokens=10,
            prefill_seconds=10.0,
            baseline_prefill_seconds=10.0,
            stats=stats,
            identical=True,
        )

    return make
