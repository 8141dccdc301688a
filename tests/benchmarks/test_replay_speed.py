from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(__file__).resolve().parents[2] / "benchmarks" / "replay_speed.py"


def test_the_document_says_where_it_was_measured_and_how_far_repeats_lie_apart(tmp_path: Path) -> None:
    out = tmp_path / "replay_speed.json"
    small = ("--configs", "8", "--prompts", "1", "--new-tokens", "6", "--repeats", "3", "--threads", "1")
    done = subprocess.run(
        [sys.executable, COMMAND, "--out", out, *small],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(out.read_text())
    assert document["machine"]["device_kind"] == "cpu"
    assert (document["prompts"], document["new_tokens"]) == (1, 6)
    replay, rate = document["replay"], document["replay"]["configs_a_minute"]
    assert replay["configs"] == 8 == sum(kind["configs"] for kind in replay["kinds"].values())
    assert len(replay["seconds"]) == 3
    assert rate["median"] == pytest.approx(60 * 8 / statistics.median(replay["seconds"]))
    assert rate["least"] == pytest.approx(60 * 8 / max(replay["seconds"]))
    assert rate["most"] == pytest.approx(60 * 8 / min(replay["seconds"]))
    assert document["recording"]["seconds"]["plain"] > 0
    assert document["recording"]["megabytes"] > 0
