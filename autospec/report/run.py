"""What a finished or unfinished run left in its output folder, read for figures and pages.

Needs only `measurements.jsonl`, which also holds what was decided and what failed. Knows no study and draws nothing.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autospec.comparison import Estimate, noise_floor
from autospec.config import SpecConfig
from autospec.errors import MeasurementError
from autospec.records import Measurement, StepStats
from autospec.yardsticks import DECISIVE, SPEED, Yardstick


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial of the search.

    Args:
        number: Its number in the study.
        config: What was measured.
        state: `complete`, `pruned` (decided early) or `failed`.
        ratio: By what decides, over its own measurements; None where it has none.
    """

    number: int
    config: SpecConfig
    state: str
    ratio: Estimate | None


@dataclass(frozen=True, slots=True)
class FrontRow:
    """A configuration that nothing beats in speed, quality and memory.

    Args:
        stage: On which prompts: `tune` or `held-out`.
        config: The configuration; off among them.
        speedup: Against plain decoding.
        loss: Nats per token.
        memory_bytes: Weights and caches of what it runs.
    """

    stage: str
    config: SpecConfig
    speedup: Estimate
    loss: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The content of an output folder.

    Args:
        measurements: Everything measured, in order.
        trials: Trials of the search, by number; trial 0, the baseline against itself, is not among them.
        noise_floor: Coefficient of variation of one timing; None where trial 0 was not measured.
        device: Name of the device.
        predictions: Configuration to prompt to the log speedup that was predicted; empty where nothing was.
        objective: What was looked for.
        front: Of `result.json`, rows of the Pareto set where memory was weighed too; empty elsewhere.
        expected: Configurations whose prediction is of expected steps, not of replayed ones.
    """

    measurements: tuple[Measurement, ...]
    trials: tuple[Trial, ...]
    noise_floor: float | None
    device: str
    predictions: Mapping[SpecConfig, Mapping[str, float]] = field(default_factory=dict)
    objective: str = "tokens_per_second"
    front: tuple[FrontRow, ...] = ()
    expected: frozenset[SpecConfig] = frozenset()

    @property
    def yardstick(self) -> Yardstick:
        """What decided."""
        return DECISIVE[self.objective]

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of all measured categories, sorted."""
        return tuple(sorted({one.category for one in self.measurements}))


def estimate(measurements: Iterable[Measurement]) -> Estimate | None:
    """Return the speedup over some measurements, or None where there are none."""
    return SPEED.estimate(measurements)


def counts(measurements: Iterable[Measurement]) -> StepStats:
    """Return the counts of some measurements added up."""
    total = StepStats()
    for one in measurements:
        total.merge(one.stats)
    return total


def read_run(output_dir: Path) -> RunFiles:
    """Read an output folder.

    Raises:
        MeasurementError: The measurements cannot be read.
    """
    rows = _read_lines(output_dir / "measurements.jsonl")
    measurements = tuple(Measurement.from_json(row) for row in rows if "failure" not in row and "decision" not in row)
    failed = {
        row["failure"]["trial"]: SpecConfig.from_json(row["failure"]["config"])
        for row in rows
        if row.get("failure", {}).get("stage") == "search"
    }
    identity: dict[str, Any] = next((row["value"] for row in rows if row.get("decision") == "identity"), {})
    objective = str(identity.get("settings", {}).get("objective", "tokens_per_second"))
    baseline: defaultdict[str, list[float]] = defaultdict(list)
    for one in measurements:
        if one.config.is_off and one.stage == "search":
            baseline[one.prompt_id].append(DECISIVE[objective].log_ratio(one))
    predictions, expected = _predictions(output_dir / "predictions.json")
    return RunFiles(
        measurements,
        _trials([one for one in measurements if one.stage == "search"], failed, DECISIVE[objective]),
        noise_floor(baseline) if baseline else None,
        str(identity.get("machine", {}).get("device_name", "")),
        predictions,
        objective,
        _front(output_dir / "result.json"),
        expected,
    )


def _front(path: Path) -> tuple[FrontRow, ...]:
    if not path.is_file():
        return ()
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["objective"] != "pareto":
            return ()
        return tuple(
            FrontRow(
                row["stage"],
                SpecConfig.from_json(row["config"]),
                Estimate.from_json(row["speedup"]),
                float(row["loss"]),
                int(row["memory_bytes"]),
            )
            for row in document["pareto"]
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MeasurementError(f"a run must hold a readable result, but {path}: {error}") from error


def _predictions(path: Path) -> tuple[dict[SpecConfig, dict[str, float]], frozenset[SpecConfig]]:
    """Return what was predicted, and of which configurations steps were only expected."""
    if not path.is_file():
        return {}, frozenset()
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        rows = {SpecConfig.from_json(row["config"]): row for row in document["rows"]}
        known = {one: dict(zip(document["prompt_ids"], row["log_speedups"], strict=True)) for one, row in rows.items()}
        # Runs of versions that expected nothing do not say so.
        return known, frozenset(config for config, row in rows.items() if not row.get("is_exact", True))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MeasurementError(f"a run must hold readable predictions, but {path}: {error}") from error


def _trials(search: Sequence[Measurement], failed: dict[int, SpecConfig], yardstick: Yardstick) -> tuple[Trial, ...]:
    by_number: defaultdict[int, list[Measurement]] = defaultdict(list)
    for one in search:
        by_number[one.trial].append(one)
    whole = max((len({one.prompt_id for one in group}) for group in by_number.values()), default=0)
    trials = [
        Trial(number, config, "failed", yardstick.estimate(by_number.get(number, ())))
        for number, config in failed.items()
    ]
    for number, group in by_number.items():
        if number not in failed and not group[0].config.is_off:
            is_whole = len({one.prompt_id for one in group}) == whole
            trials.append(
                Trial(number, group[0].config, "complete" if is_whole else "pruned", yardstick.estimate(group))
            )
    return tuple(sorted(trials, key=lambda trial: trial.number))


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    except (OSError, ValueError) as error:
        raise MeasurementError(f"a run must hold readable measurements, but {path}: {error}") from error
