from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from autospec.cli.runs import RunKey, config_hash, finish_run, open_run, write_config

KEY = RunKey("c", "w", "d")


def _rewrite(folder: Path, **changes: object) -> None:
    path = folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_new_run_has_a_folder_with_its_key(tmp_path: Path) -> None:
    folder, resumed = open_run(tmp_path, "tune", KEY, resume=True)
    assert not resumed
    assert folder.parent == tmp_path / "tune"
    run = json.loads((folder / "run.json").read_text())
    assert (run["config_hash"], run["workload_hash"], run["device_hash"]) == ("c", "w", "d")
    assert run["finished"] is False
    assert [path.name for path in folder.iterdir()] == ["run.json"]


def test_the_newest_unfinished_run_is_gone_on_with(tmp_path: Path) -> None:
    old, _ = open_run(tmp_path, "tune", KEY, resume=False)
    new, _ = open_run(tmp_path, "tune", KEY, resume=False)
    os.utime(old / "run.json", ns=(1, 1))
    assert open_run(tmp_path, "tune", KEY, resume=True) == (new, True)


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    old, _ = open_run(tmp_path, "tune", KEY, resume=True)
    finish_run(old, KEY)
    new, resumed = open_run(tmp_path, "tune", KEY, resume=True)
    assert (new != old, resumed) == (True, False)


@pytest.mark.parametrize("key", [RunKey("x", "w", "d"), RunKey("c", "x", "d"), RunKey("c", "w", "x")])
def test_another_key_starts_anew(tmp_path: Path, key: RunKey) -> None:
    open_run(tmp_path, "tune", KEY, resume=True)
    assert open_run(tmp_path, "tune", key, resume=True)[1] is False


def test_a_run_that_another_process_is_at_is_left_alone(tmp_path: Path) -> None:
    folder, _ = open_run(tmp_path, "tune", KEY, resume=True)
    parent = psutil.Process(os.getppid())
    _rewrite(folder, pid=parent.pid, process_started=parent.create_time())
    assert open_run(tmp_path, "tune", KEY, resume=True)[1] is False


def test_a_run_whose_process_number_was_given_to_another_is_gone_on_with(tmp_path: Path) -> None:
    folder, _ = open_run(tmp_path, "tune", KEY, resume=True)
    parent = psutil.Process(os.getppid())
    _rewrite(folder, pid=parent.pid, process_started=parent.create_time() - 1000)
    assert open_run(tmp_path, "tune", KEY, resume=True) == (folder, True)


def test_a_run_of_a_dead_process_is_gone_on_with(tmp_path: Path) -> None:
    folder, _ = open_run(tmp_path, "tune", KEY, resume=True)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    _rewrite(folder, pid=child.pid)
    assert open_run(tmp_path, "tune", KEY, resume=True) == (folder, True)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"config_hash": "c"}'])
def test_a_torn_run_file_is_passed_over(tmp_path: Path, text: str) -> None:
    folder, _ = open_run(tmp_path, "tune", KEY, resume=True)
    (folder / "run.json").write_text(text)
    assert open_run(tmp_path, "tune", KEY, resume=True)[1] is False


def test_the_hash_depends_on_values_not_on_their_order_or_on_what_is_left_out() -> None:
    first = config_hash({"a": 1, "b": {"c": 2, "d": 3}, "resume": True}, without=("resume",))
    assert first == config_hash({"b": {"d": 3, "c": 2}, "a": 1, "resume": False}, without=("resume",))
    assert first != config_hash({"a": 1, "b": {"c": 2, "d": 4}})


def test_the_configuration_is_written_in_the_order_given(tmp_path: Path) -> None:
    write_config(tmp_path, {"b": [1, "x"], "a": {"text": "ä"}})
    assert (tmp_path / "config.yaml").read_text(encoding="utf-8") == "b:\n- 1\n- x\na:\n  text: ä\n"
