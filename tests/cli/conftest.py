"""Hand-made measurements, plans and results, and a decoder that knows names only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autospec.comparison import Estimate
from autospec.config import SamplingParams, SpecConfig
from autospec.errors import ConfigError
from autospec.policy import ModelSource, Policy, Reproduction, Row, TunedWorkload
from autospec.records import Measurement, Prompt, StepStats
from autospec.tuning import StudyPlan, StudySettings, TuningResult
from autospec.tuning.confirm import Confirmation, CrossCheck
from autospec.tuning.confirm import Row as ConfirmedRow
from autospec.tuning.result import Comparison, Latency, Throughput, TokenIdentity
from autospec.yardsticks import LATENCY, SPEED

DRAFT4 = SpecConfig(drafter="draft", draft_length=4)
NGRAM8 = SpecConfig(drafter="ngram", draft_length=8)
OFF = SpecConfig()


@dataclass
class FakeDecoder:
    """Names, and text that comes word by word."""

    target: Any = field(
        default_factory=lambda: SimpleNamespace(
            name="pocket/target",
            revision=None,
            device=torch.device("cpu"),
            dtype=torch.float32,
            usable_length=100_000,
            compiles=False,
            model=SimpleNamespace(),
        )
    )
    drafters: dict[str, Any] = field(
        default_factory=lambda: {
            "draft": SimpleNamespace(source="pocket/draft", has_probs=True),
            "ngram": SimpleNamespace(source="ngram", has_probs=False),
        }
    )
    calls: list[dict[str, Any]] = field(default_factory=list)
    text: Any = None

    def check(self, config: SpecConfig) -> None:
        if not config.is_off and config.drafter not in self.drafters:
            raise ConfigError(f"unknown {config.drafter}")

    def render(self, prompt: Prompt) -> list[int]:
        return list(range(len(prompt.text)))

    def stream(self, prompt: str, **options: Any) -> Iterator[Any]:
        self.calls.append({"prompt": prompt, **options})
        stats = StepStats(
            num_new_tokens=3, total_seconds=0.5, num_steps=2, num_step_tokens=3, num_drafted=4, num_accepted=1
        )
        stats.position_tested, stats.position_accepted = [2, 1], [1, 0]
        for word in ("a ", "b"):
            yield SimpleNamespace(text=word, stats=stats)


def _measurement(
    config: SpecConfig, prompt: Prompt, speedup: float, stage: str = "confirm", repeat: int = 0, trial: int = -1
) -> Measurement:
    return Measurement(
        config=config,
        prompt_id=prompt.prompt_id,
        category=prompt.category,
        stage=stage,
        trial=trial,
        repeat=repeat,
        seconds=1.0 / speedup,
        baseline_seconds=1.0,
        num_tokens=10,
        baseline_num_tokens=10,
        prefill_seconds=0.1,
        baseline_prefill_seconds=0.1,
        stats=StepStats(num_steps=4, num_drafted=8, num_accepted=6, num_new_tokens=10),
        identical=True,
    )


@pytest.fixture
def decoder() -> FakeDecoder:
    return FakeDecoder()


@pytest.fixture
def measurement() -> Callable[..., Measurement]:
    """(config, prompt, speedup, stage, repeat, trial) -> 10 tokens beside 10 tokens in one second."""
    return _measurement


@pytest.fixture
def prompts() -> tuple[Prompt, ...]:
    return tuple(
        Prompt(f"{category}-{index}", category, "x" * 5) for index in range(3) for category in ("code", "talk")
    )


@pytest.fixture
def plan() -> StudyPlan:
    return StudyPlan(
        target="pocket/target",
        drafters={"draft": "pocket/draft", "ngram": "ngram"},
        device="cpu",
        dtype="float32",
        fingerprint={"device_name": "A Processor", "num_cores": 2, "num_threads": 2},
        workload="pocket",
        workload_hash="0" * 16,
        categories=("code", "talk"),
        decoding="greedy",
        max_new_tokens=48,
        space_size=1234,
        settings=StudySettings(),
        seconds_per_prompt=0.5,
        num_search_prompts=12,
        num_finalist_prompts=24,
        num_held_out_prompts=48,
        search_seconds=180.0,
        confirm_seconds=90.0,
        num_logged=0,
    )


@pytest.fixture
def policy() -> Policy:
    return Policy(
        target=ModelSource("pocket/target"),
        drafters={"draft": ModelSource("pocket/draft"), "ngram": ModelSource("ngram")},
        dtype="float32",
        device={},
        workload=TunedWorkload("pocket", "0123456789abcdef", ("code", "talk")),
        sampling=SamplingParams(),
        rows=(Row(DRAFT4), Row(NGRAM8, category="talk")),
        reproduce=Reproduction("tune", 0, "0.1.0", "2026-01-02T03:04:05+00:00"),
    )


@pytest.fixture
def result(policy: Policy, prompts: tuple[Prompt, ...]) -> TuningResult:
    """The policy's result: code twice as fast under draft, talk four times under ngram."""
    chosen = {"code": (DRAFT4, 2.0), "talk": (NGRAM8, 4.0)}
    measurements = tuple(_measurement(chosen[one.category][0], one, chosen[one.category][1]) for one in prompts)
    rows = {
        name: ConfirmedRow(config, Estimate(ratio, ratio - 0.5, ratio + 0.5, 3))
        for name, (config, ratio) in chosen.items()
    }
    speed = Comparison(
        SPEED,
        Estimate(2.83, 2.5, 3.2, 6),
        {name: row.ratio for name, row in rows.items()},
        Estimate(1.9, 1.7, 2.1, 6),
    )
    waits = Estimate(0.8, 0.7, 0.9, 6)
    return TuningResult(
        objective="tokens_per_second",
        policy=policy,
        measurements=measurements,
        stop_reason="trials",
        finished=True,
        confirmation=Confirmation(
            ratio=Estimate(2.83, 2.5, 3.2, 6),
            overall=ConfirmedRow(DRAFT4, Estimate(1.9, 1.7, 2.1, 6)),
            categories=rows,
            claims={},
            cross_checks=(CrossCheck("talk", NGRAM8, "code", DRAFT4, Estimate(1.5, 1.2, 1.9, 3)),),
        ),
        comparisons=(speed, Comparison(LATENCY, waits, dict.fromkeys(rows, waits), waits)),
        decode_speedup=Estimate(3.0, 2.6, 3.4, 6),
        throughput=Throughput(10.0, 26.7),
        latency=Latency(0.004, 0.005),
        identity=TokenIdentity(6, 60, 1, 0),
        noise_floor=0.021,
        num_live_trials=9,
        num_replayed_trials=0,
        wall_seconds={"search": 12.0, "confirm": 90.0},
    )


@pytest.fixture
def off_result(result: TuningResult, policy: Policy) -> TuningResult:
    """Nothing beat plain decoding."""
    none = Estimate(1.0, 1.0, 1.0, 3)
    rows = {name: ConfirmedRow(OFF, none) for name in ("code", "talk")}
    confirmation = replace(
        result.confirmation, ratio=none, overall=ConfirmedRow(OFF, none), categories=rows, cross_checks=()
    )
    return replace(result, policy=replace(policy, rows=(Row(OFF),)), confirmation=confirmation)


@pytest.fixture
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run with an empty folder as the current one, and return it."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder
