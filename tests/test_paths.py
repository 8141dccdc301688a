from __future__ import annotations

import re
from pathlib import Path

import pytest

from autospec import paths
from autospec.errors import ConfigError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site" / "autospec"
    folder.mkdir(parents=True)
    monkeypatch.setattr(paths, "PACKAGE_DIR", folder)
    return folder


@pytest.mark.parametrize("name", ["conf", "search_spaces"])
def test_this_installation_has_its_folders(name: str) -> None:
    assert paths.data_dir(name).name == name
    assert paths.data_dir(name).is_absolute()


def test_checkout_keeps_data_beside_the_package(package: Path) -> None:
    (package.parent / "conf").mkdir()
    assert paths.data_dir("conf") == package.parent / "conf"


def test_wheel_keeps_data_in_the_package_and_comes_first(package: Path) -> None:
    (package.parent / "conf").mkdir()
    (package / "_data" / "conf").mkdir(parents=True)
    assert paths.data_dir("conf") == package / "_data" / "conf"


def test_missing_data_names_both_places(package: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        paths.data_dir("conf")
    assert str(package / "_data" / "conf") in str(caught.value)
    assert str(package.parent / "conf") in str(caught.value)


def test_a_checkout_is_told_from_an_installed_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert paths.is_checkout()
    monkeypatch.setattr(paths, "PACKAGE_DIR", tmp_path / "site-packages" / "autospec")
    assert not paths.is_checkout()


def test_output_dir_is_named_by_command_and_time(tmp_path: Path) -> None:
    folder = paths.new_output_dir(tmp_path / "outputs", "tune")
    assert folder.is_dir()
    assert folder.parent == tmp_path / "outputs" / "tune"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", folder.name)


def test_output_dirs_of_one_second_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(paths.datetime):
        @classmethod
        def now(cls, tz: object = None) -> Stopped:
            return cls(2026, 2, 3, 4, 5, 6)

    monkeypatch.setattr(paths, "datetime", Stopped)
    names = [paths.new_output_dir(tmp_path, "bench").name for _ in range(3)]
    assert names == ["2026-02-03_04-05-06", "2026-02-03_04-05-06_2", "2026-02-03_04-05-06_3"]


def test_relative_root_gives_an_absolute_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert paths.new_output_dir(Path("results"), "tune").is_relative_to(tmp_path / "results" / "tune")


@pytest.mark.parametrize("below", [".", "deeper/still"])
def test_folder_below_a_regular_file_is_a_config_error(tmp_path: Path, below: str) -> None:
    file = tmp_path / "file"
    file.write_text("not a folder")
    with pytest.raises(ConfigError, match="output folder"):
        paths.new_output_dir(file / below, "tune")
    assert file.read_text() == "not a folder"


def test_folder_without_permission_is_a_config_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ConfigError, match="Permission denied"):
        paths.new_output_dir(tmp_path / "outputs", "tune")
