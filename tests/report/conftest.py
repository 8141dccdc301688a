"""Output folders written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from autospec.config import SpecConfig
from autospec.records import Measurement, StepStats


def measured(
    config: SpecConfig, trial: int, prompt_id: str, seconds: float, stage: str = "search", repeat: int = 0
) -> Measurement:
    """Ten tokens in `seconds`, against ten in one second; a category for each first letter of a prompt."""
    stats = StepStats(
        num_steps=30,
        num_drafted=60,
        num_accepted=35,
        num_new_tokens=66,
        num_step_tokens=65,
        position_tested=[30, 20, 10],
        position_accepted=[20, 10, 5],
    )
    category = {"a": "docs", "b": "edit"}.get(prompt_id[0], "complete")
    return Measurement(config, prompt_id, category, stage, trial, repeat, seconds, 1.0, 10, 10, 0, 0, stats, True)


@pytest.fixture
def write_run(tmp_path) -> Callable[..., Path]:
    """Write the measurements of a run, given as arguments of `measured`, and return the folder."""

    def write(*rows: tuple, failure: tuple[SpecConfig, int] | None = None) -> Path:
        lines = [measured(*row).to_json() for row in rows]
        lines.insert(0, {"decision": "identity", "value": {"machine": {"device_name": "Example CPU"}}})
        if failure:
            config, trial = failure
            details = {"config": config.to_json(), "prompt_id": "a", "stage": "search", "trial": trial, "reason": "no"}
            lines.append({"failure": details})
        (tmp_path / "measurements.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return tmp_path

    return write
