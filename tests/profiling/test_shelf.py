from __future__ import annotations

from pathlib import Path

import pytest

from autospec.errors import ConfigError, ProfileError
from autospec.profiling import (
    ThreadChoice,
    find_profile,
    load_threads,
    profile_path,
    save_threads,
    shelf,
    shipped_profiles,
    threads_path,
)
from autospec.profiling.curves import Timing
from autospec.profiling.parts import ThreadPoint, threads_key
from autospec.sources import ModelSource


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


def test_a_number_of_threads_is_kept_as_it_was_chosen(tmp_path: Path) -> None:
    path = threads_path(tmp_path, "0123")
    assert path == tmp_path / "profiles" / "threads" / "0123.json"
    chosen = ThreadChoice(1, 256, 8, (ThreadPoint(1, Timing(0.5, 0.1, 12), Timing(0.75, 0.0, 12), 1.0, 1.0, 1.0),))
    save_threads(path, chosen)
    assert load_threads(path) == chosen
    path.write_text('{"num_threads": 0}')
    with pytest.raises(ProfileError, match=r"(?s)`num_threads >= 1` must hold.*`points` is missing"):
        load_threads(path)


def test_it_is_found_again_whatever_the_number_of_threads_now() -> None:
    target, here = ModelSource("target"), {"device_name": "Small", "num_threads": 2}
    assert threads_key(here, target) == threads_key({**here, "num_threads": 1}, target)
    assert threads_key(here, target) != threads_key({**here, "device_name": "Large"}, target)
    assert threads_key(here, target) != threads_key(here, ModelSource("other"))
    assert threads_key(here, target, compile=True) == threads_key(here, target) + "-compiled"
