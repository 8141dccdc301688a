from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from autospec.errors import ConfigError
from autospec.imports import code_digest, import_callable

MODULE = "own_code_of_test_imports"


@pytest.fixture
def own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / f"{MODULE}.py"
    file.write_text("def double(number): return 2 * number\nfour = 4\n")
    (tmp_path / f"{MODULE}_leaving.py").write_text("raise SystemExit(0)\n")
    (tmp_path / f"{MODULE}_broken.py").write_text("raise RuntimeError('no luck\\ntoday')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    return file


def test_a_callable_of_an_allowed_module_is_imported(own_file: Path) -> None:
    assert import_callable(f"{MODULE}:double", {MODULE})(4) == 8
    assert import_callable("os.path:join", ["os.path"])("a", "b") == str(Path("a/b"))


@pytest.mark.parametrize("allowed", [(), ("os",), (MODULE.upper(),)])
def test_nothing_of_a_module_that_is_not_allowed_runs(own_file: Path, allowed: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=rf"with `allow_import=\[{MODULE}\]` on the command line or in Python"):
        import_callable(f"{MODULE}:double", allowed)
    assert MODULE not in sys.modules


def test_allowing_a_package_does_not_allow_what_is_in_it() -> None:
    with pytest.raises(ConfigError, match="allowed are \\['os'\\]"):
        import_callable("os.path:join", ["os"])


@pytest.mark.parametrize("path", ["double", f"{MODULE}:", f"{MODULE}:a.b", "a-b:c", ":c", "a..b:c"])
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="must be named `MODULE:NAME`"):
        import_callable(path, [MODULE, "a-b", "", "a..b"])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module_x:f", r"must be a module that can be imported, but: ModuleNotFoundError: No module"),
        (f"{MODULE}_broken:f", r"but: RuntimeError: no luck$"),
        (f"{MODULE}_leaving:f", r"but: SystemExit: 0$"),
        (f"{MODULE}:doubel", r"`doubel` is not there; did you mean `double`\?"),
        (f"{MODULE}:four", r"must name a function or a class, but it is 4"),
    ],
)
def test_what_cannot_be_imported_or_called_is_refused(path: str, message: str, own_file: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        import_callable(path, [path.partition(":")[0]])


def test_code_is_known_by_its_file_once_it_was_imported(own_file: Path) -> None:
    assert code_digest(f"{MODULE}:double") is None
    import_callable(f"{MODULE}:double", [MODULE])
    assert code_digest(f"{MODULE}:double") == hashlib.sha256(own_file.read_bytes()).hexdigest()[:16]
    assert code_digest("sys:exit") is None
