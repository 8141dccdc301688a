from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from autospec.cli.resuming import machine_under, run_key, tell_left, threads_of_run
from autospec.cli.runs import RunKey, open_run
from autospec.records import Prompt, Workload
from autospec.tuning import SearchSpace

HERE = {"device_name": "A", "num_threads": 2}
KEY = RunKey("c", "w", "two threads")


class Lines(list[str]):
    def line(self, text: str) -> None:
        self.append(text)


def begin(root: Path, key: RunKey, machine: dict[str, Any] | None) -> Path:
    """Leave an unfinished run of a machine; None is one that was interrupted before it measured."""
    folder, _ = open_run(root, "tune", key, resume=False)
    if machine is not None:
        line = json.dumps({"decision": "identity", "value": {"machine": machine}})
        (folder / "measurements.jsonl").write_text(line + "\n")
    return folder


@pytest.mark.parametrize(
    ("machine", "num_threads"),
    [
        (HERE, 2),
        ({**HERE, "num_threads": 1}, 1),
        ({**HERE, "device_name": "B"}, None),
        ({"device_name": "A"}, None),
        ({**HERE, "cuda_version": "13"}, None),
        (None, None),
    ],
)
def test_a_run_is_gone_on_with_under_its_threads_where_the_machine_is_the_same(
    tmp_path: Path, machine: dict[str, Any] | None, num_threads: int | None
) -> None:
    assert threads_of_run(begin(tmp_path, KEY, machine), HERE) == num_threads


def told(root: Path, folder: Path) -> list[str]:
    terminal: Any = Lines()
    tell_left(root, KEY, folder, HERE, terminal)
    return list(terminal)


def test_what_is_left_as_it_is_is_said_with_what_is_different(tmp_path: Path) -> None:
    new = begin(tmp_path, KEY, None)
    begin(tmp_path, RunKey("another", "w", "one"), {**HERE, "num_threads": 1})
    begin(tmp_path, RunKey("c", "w", "one"), None)  # nothing of it is lost
    assert told(tmp_path, new) == []
    left = begin(tmp_path, RunKey("c", "w", "one"), {**HERE, "num_threads": 1})
    start = f"the unfinished run in {left} stays as it is, because the machine is another: "
    assert told(tmp_path, new) == [f"{start}num_threads: 1 -> 2; threads=1 goes on with it"]


def test_no_number_of_threads_goes_on_with_a_run_of_another_machine(tmp_path: Path) -> None:
    new = begin(tmp_path, KEY, None)
    begin(tmp_path, RunKey("c", "w", "b"), {"device_name": "B", "num_threads": 1})
    assert [line.partition("another: ")[2] for line in told(tmp_path, new)] == [
        "device_name: B -> A, num_threads: 1 -> 2"
    ]


def test_a_number_of_threads_counts_as_the_machine_s_wherever_it_comes_from(decoder: Any) -> None:
    workload = Workload("w", (Prompt("a", "x", "text"),), (Prompt("b", "x", "text"),))
    space = SearchSpace.load("smoke")

    def key(threads: Any, **values: Any) -> RunKey:
        return run_key(decoder, workload, space, {"threads": threads, **values})

    before = torch.get_num_threads()
    assert key(None) == key(before) == key(None, resume=False)
    assert key("auto") != key(None)
    assert key(None, seed=1) != key(None)
    assert machine_under(decoder)["num_threads"] == before
    try:
        torch.set_num_threads(before + 1)
        other = key(None)
    finally:
        torch.set_num_threads(before)
    assert other != key(None)
    assert other.of_any_device == key(None).of_any_device
