from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"optuna", "sklearn", "mlflow", "hydra", "omegaconf", "matplotlib", "fastapi"}
POLICY = ROOT / "tests" / "assets" / "policies"


def _loaded_by(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after running some code."""
    ending = "\nimport sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code + ending], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.splitlines()[-1].split())


def test_the_check_itself_sees_what_is_loaded() -> None:
    assert "optuna" in _loaded_by("import autospec; autospec.SearchSpace")


@pytest.mark.parametrize("room", ["autospec", "autospec.config", "autospec.records", "autospec.policy"])
def test_importing_a_light_room_loads_nothing_heavy(room: str) -> None:
    loaded = _loaded_by(f"import {room}")
    assert not loaded & (HEAVY | {"torch", "transformers", "scipy"})


def test_loading_a_policy_and_choosing_loads_nothing_heavy() -> None:
    (path,) = sorted(POLICY.glob("*.json"))[-1:]
    loaded = _loaded_by(f"import autospec; autospec.load_policy({str(path)!r}).choose(1, 100, None)")
    assert not loaded & (HEAVY | {"torch", "transformers"})


def test_generating_loads_no_tuning_library() -> None:
    code = (
        "import autospec\n"
        "from autospec.pocket import target_path\n"
        "decoder = autospec.SpeculativeDecoder.from_pretrained(str(target_path()), {'ngram': 'ngram'})\n"
        "config = autospec.SpecConfig(drafter='ngram', draft_length=2)\n"
        "assert decoder.generate('import os', config=config, max_new_tokens=2)[0].token_ids\n"
    )
    loaded = _loaded_by(code)
    assert "transformers" in loaded
    assert not loaded & HEAVY


def test_imports_go_down_only_and_heavy_libraries_stay_in_their_rooms() -> None:
    pytest.importorskip("importlinter", reason="import-linter is a development extra")
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program, "--no-logo", "--no-cache"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
