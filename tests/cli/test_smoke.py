from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import autospec


@pytest.mark.slow
def test_the_main_job_ends_with_a_policy_that_loads(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "autospec", "tune", "experiment=smoke"]
    root = str(Path(autospec.__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (tmp_path / "outputs" / "tune").iterdir()
    assert f"policy: {folder / 'policy.json'}" in done.stdout
    assert autospec.load_policy(folder / "policy.json").target.source == "pocket/target"
    result = json.loads((folder / "result.json").read_text())
    assert {"value", "low", "high", "num_prompts"} == set(result["speedup"])
    assert json.loads((folder / "run.json").read_text())["finished"] is True
    assert {path.name for path in folder.iterdir()} >= {
        "config.yaml",
        "measurements.jsonl",
        "study.journal",
        "figures",
    }
    assert (tmp_path / "outputs" / "mlflow" / "mlflow.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]
