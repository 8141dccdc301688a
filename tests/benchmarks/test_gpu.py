from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ROOT / "benchmarks" / "gpu.py"
SPARED = ("optuna", "mlflow", "hydra", "omegaconf", "matplotlib", "rich", "psutil", "pynvml")
WITHOUT = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({SPARED!r}))
sys.argv = sys.argv[1:]
sys.path.insert(0, {os.fspath(COMMAND.parent)!r})
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(out: Path, *arguments: str, is_bare: bool = False) -> dict[str, Any]:
    """The document that the command writes, on the CPU, with or without what a GPU machine need not have."""
    start = [sys.executable, "-c", WITHOUT] if is_bare else [sys.executable]
    done = subprocess.run(
        [*start, COMMAND, "--dry-run", "--threads", "1", "--out", out, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=out.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    document: dict[str, Any] = json.loads(out.read_text())
    assert document["is_dry_run"] is True
    return document["sections"]


@pytest.mark.slow
def test_every_section_runs_without_what_only_tuning_needs(tmp_path: Path) -> None:
    arguments = ("laws", "roofline_1b", "roofline_8b", "verification", "draft_loop", "batch_sweep", "tuned")
    sections = run(tmp_path / "bare.json", "--sections", *arguments, is_bare=True)
    assert tuple(sections) == arguments
    assert "optuna" in sections["tuned"]["left_out"]
    laws = sections["laws"]
    assert laws["hold"] is True
    assert laws["failures"] == []
    assert laws["num_checks"] > 50
    assert laws["num_tokens_compared"] > 1000
    assert laws["num_launches"]["llama, graphs"] > laws["num_launches"]["llama, eager"] == 0
    for name in ("roofline_1b", "roofline_8b"):
        roofline = sections[name]
        share = roofline["bytes_per_token"] * roofline["tokens_per_second"] / roofline["copy_bytes_per_second"]
        assert roofline["share_of_copy_bandwidth"] == pytest.approx(share)
        # 2 layers of 64 x 64 queries and outputs, 64 x 32 keys and values, 3 maps of 64 x 128, norms; head; cache.
        weights = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64) + 64 + 512 * 64
        assert roofline["num_weights"] == weights + 512 * 64
        assert roofline["bytes_per_token"] == 2 * weights + (128 + 4) * 2 * 2 * 2 * 16 * 2
    assert sections["verification"]["in_plain"]["1"] == 1.0
    assert {row["batch_size"] for row in sections["batch_sweep"]["embedded pair"]} >= {1}


@pytest.mark.slow
def test_the_pair_is_tuned_and_profiled(tmp_path: Path) -> None:
    sections = run(tmp_path / "tuned.json", "--sections", "tuned", "profile")
    assert sections["tuned"]["baseline_tokens_per_second"] > 0
    assert sections["tuned"]["policy"]["target"]
    assert sections["profile"]["target_points"]


def test_a_section_that_fails_is_recorded_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(os.fspath(COMMAND.parent))
    import gpu  # a script beside others, not a part of the package

    def breaks(device: str, is_small: bool, until: float) -> dict[str, Any]:
        raise ValueError("planted")

    sections = {"first": (breaks, 1.0), "second": (lambda *where: {"device": where[0]}, 1.0)}
    monkeypatch.setattr(gpu, "SECTIONS", sections)
    out = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--dry-run", "--threads", "1", "--out", os.fspath(out)])
    assert gpu.main() == 1
    written = json.loads(out.read_text())["sections"]
    assert written["first"]["error"] == "ValueError: planted"
    assert written["second"]["device"] == "cpu"
    assert "failed: first" in capsys.readouterr().out
