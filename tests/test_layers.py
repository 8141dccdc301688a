from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"optuna", "sklearn", "mlflow", "hydra", "omegaconf", "matplotlib", "fastapi"}
POLICY = ROOT / "tests" / "assets" / "policies"
ROOMS = {
    "fastapi": ("autospec.serving",),
    "hydra": ("autospec.cli",),
    "matplotlib": ("autospec.report",),
    "mlflow": ("autospec.tracking",),
    "omegaconf": ("autospec.cli",),
    "optuna": ("autospec.tuning",),
    "rich": ("autospec.cli",),
    "sklearn": ("autospec.cost_model",),
    "transformers": ("autospec.engine.model", "autospec.engine.mtp", "autospec.engine.text", "autospec.training"),
}


def _loaded_by(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after running some code."""
    ending = "\nimport sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code + ending], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.splitlines()[-1].split())


def test_the_check_itself_sees_what_is_loaded() -> None:
    assert "optuna" in _loaded_by("import autospec; autospec.SearchSpace")


@pytest.mark.parametrize(
    "room", ["autospec", "autospec.config", "autospec.records", "autospec.policy", "autospec.workloads"]
)
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


def _heavy_contract() -> dict[str, list[str]]:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = [one for one in contracts if one["id"] == "heavy"]
    return contract


def test_the_contract_forbids_every_heavy_library_outside_its_room() -> None:
    contract = _heavy_contract()
    assert sorted(contract["forbidden_modules"]) == sorted(ROOMS)
    exceptions: dict[str, set[str]] = {}
    for rule in contract["ignore_imports"]:
        room, library = rule.split(" -> ")
        exceptions.setdefault(library.split(".")[0], set()).add(room.removesuffix(".**"))
    assert exceptions == {library: set(rooms) for library, rooms in ROOMS.items()}


def _imported(path: Path) -> set[str]:
    """Return the top-level modules that a file imports, wherever in it."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("library", sorted(ROOMS))
def test_no_file_outside_its_room_imports_a_heavy_library(library: str) -> None:
    outside = []
    for path in sorted((ROOT / "autospec").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if library in _imported(path) and not any(f"{module}.".startswith(f"{room}.") for room in ROOMS[library]):
            outside.append(module)
    assert not outside


def test_the_scan_itself_finds_what_is_in_its_room() -> None:
    assert "transformers" in _imported(ROOT / "autospec" / "engine" / "model.py")
    assert "hydra" in _imported(ROOT / "autospec" / "cli" / "main.py")
