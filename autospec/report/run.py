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

from autospec.comparison import Estimate, noise_floor, speedup
from autospec.config import SpecConfig
from autospec.errors import MeasurementError
from autospec.records import Measurement, StepStats


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial of the search.

    Args:
        number: Its number in the study.
        config: What was measured.
        state: `complete`, `pruned` (decided early) or `failed`.
        speedup: Over its own measurements; None where it has none.
    """

    number: int
    config: SpecConfig
    state: str
    speedup: Estimate | None


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The content of an output folder.

    Args:
        measurements: Everything measured, in order.
        trials: Trials of the search, by number; trial 0, the baseline against itself, is not among them.
        noise_floor: Coefficient of variation of one timing; None where trial 0 was not measured.
        device: Name of the device.
        predictions: Configuration to prompt to the log speedup that was predicted; empty where nothing was.
        expected: Configurations whose prediction is of expected steps, not of replayed ones.
    """

    measurements: tuple[Measurement, ...]
    trials: tuple[Trial, ...]
    noise_floor: float | None
    device: str
    predictions: Mapping[SpecConfig, Mapping[str, float]] = field(default_factory=dict)
    expected: frozenset[SpecConfig] = frozenset()

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of all measured categories, sorted."""
        return tuple(sorted({one.category for one in self.measurements}))


def estimate(measurements: Iterable[Measurement]) -> Estimate | None:
    """Return the speedup over some measurements, or None where there are none."""
    by_prompt: defaultdict[str, list[float]] = defaultdict(list)
    for one in measurements:
        by_prompt[one.prompt_id].append(one.log_speedup)
    return speedup(by_prompt) if by_prompt else None


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
    baseline: defaultdict[str, list[float]] = defaultdict(list)
    for one in measurements:
        if one.config.is_off and one.stage == "search":
            baseline[one.prompt_id].append(one.log_speedup)
    return RunFiles(
        measurements,
        _trials([one for one in measurements if one.stage == "search"], failed),
        noise_floor(baseline) if baseline else None,
        next((str(row["value"]["machine"]["device_name"]) for row in rows if row.get("decision") == "identity"), ""),
        *_predictions(output_dir / "predictions.json"),
    )


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


def _trials(search: Sequence[Measurement], failed: dict[int, SpecConfig]) -> tuple[Trial, ...]:
    by_number: defaultdict[int, list[Measurement]] = defaultdict(list)
    for one in search:
        by_number[one.trial].append(one)
    whole = max((len({one.prompt_id for one in group}) for group in by_number.values()), default=0)
    trials = [
        Trial(number, config, "failed", estimate(by_number.get(number, ()))) for number, config in failed.items()
    ]
    for number, group in by_number.items():
        if number not in failed and not group[0].config.is_off:
            is_whole = len({one.prompt_id for one in group}) == whole
            trials.append(Trial(number, group[0].config, "complete" if is_whole else "pruned", estimate(group)))
    return tuple(sorted(trials, key=lambda trial: trial.number))


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    except (OSError, ValueError) as error:
        raise MeasurementError(f"a run must hold readable measurements, but {path}: {error}") from error
