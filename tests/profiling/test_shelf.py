from __future__ import annotations

from pathlib import Path

import pytest

from autospec.errors import ConfigError, ProfileError
from autospec.profiling import find_profile, profile_path, shelf, shipped_profiles


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "conf" / "profiles"
    folder.mkdir(parents=True)
    monkeypatch.setattr(shelf, "data_dir", lambda name: tmp_path / name)
    monkeypatch.setattr(shelf, "load_profile", lambda path: f"loaded {path.name}")
    return folder


def test_a_profile_is_kept_under_its_key(tmp_path: Path) -> None:
    assert profile_path(tmp_path, "0123") == tmp_path / "profiles" / "0123.json"


def test_a_profile_is_found_by_name_or_path(shipped: Path, tmp_path: Path) -> None:
    (shipped / "small_cpu.json").write_text("{}")
    (tmp_path / "mine.json").write_text("{}")
    assert shipped_profiles() == {"small_cpu": shipped / "small_cpu.json"}
    assert find_profile("small_cpu") == "loaded small_cpu.json"
    assert find_profile(tmp_path / "mine.json") == "loaded mine.json"


def test_what_is_neither_is_refused_with_the_nearest_name(shipped: Path) -> None:
    (shipped / "small_cpu.json").write_text("{}")
    with pytest.raises(
        ConfigError, match=r"must be a file or one of \['small_cpu'\], but got 'smal_cpu'; did you mean"
    ):
        find_profile("smal_cpu")


def test_a_file_that_is_no_profile_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(ProfileError, match=r"mine.json cannot be used as a hardware profile"):
        find_profile(tmp_path / "mine.json")


def test_every_profile_that_ships_loads_under_its_name() -> None:
    assert shipped_profiles()
    for name, path in shipped_profiles().items():
        assert find_profile(name).key == find_profile(path).key
