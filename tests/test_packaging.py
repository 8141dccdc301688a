from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel as hatchling builds it here."""
    pytest.importorskip("hatchling", reason="without hatchling here, `make smoke` builds the wheel in isolation")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_configuration_and_search_spaces_inside_the_package(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for folder in ("conf", "search_spaces"):
        shipped = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.yaml")}
        assert shipped
        assert {f"autospec/_data/{name}" for name in shipped} <= names
    assert not [name for name in names if name.split("/")[0] in ("conf", "search_spaces", "tests", "outputs")]


def test_the_wheel_holds_every_module_and_the_embedded_family(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "autospec").rglob("*.py")}
    assert modules <= names
    for model in ("target", "draft"):
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            assert f"autospec/pocket/{model}/{name}" in names
    assert "autospec/pocket/workload.jsonl" in names


def test_the_package_says_that_it_is_typed() -> None:
    assert "Typing :: Typed" in PROJECT["project"]["classifiers"]
    assert (ROOT / "autospec" / "py.typed").is_file()


def test_the_wheel_says_that_it_is_typed(wheel: zipfile.ZipFile) -> None:
    assert "autospec/py.typed" in wheel.namelist()


def test_the_wheel_names_its_command_and_its_licence(wheel: zipfile.ZipFile) -> None:
    (entry,) = [name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt")]
    assert "autospec = autospec.cli:main" in wheel.read(entry).decode()
    assert [name for name in wheel.namelist() if name.endswith(".dist-info/licenses/LICENSE")]


def test_every_dependency_says_which_file_uses_it() -> None:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    for requirement in PROJECT["project"]["dependencies"]:
        (line,) = [line for line in lines if line.strip().startswith(f'"{requirement}"')]
        assert "autospec/" in line.partition("#")[2], requirement


@pytest.mark.parametrize("name", ["README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "outputs/README.md"])
def test_the_documents_are_there(name: str) -> None:
    assert (ROOT / name).read_text().strip()


def test_the_licence_is_the_whole_apache_licence() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION" in text
    assert text.count("\n") > 195
