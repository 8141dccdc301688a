from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autospec import profiling
from autospec.cli import threads
from autospec.cli.threads import check_threads, choose_threads, keep_threads, use_threads
from autospec.errors import ConfigError
from autospec.profiling import ThreadChoice
from autospec.profiling.curves import Timing
from autospec.profiling.parts import ThreadPoint

TIMING = Timing(0.002, 0.1, 12)
CHOICE = ThreadChoice(2, 256, 8, tuple(ThreadPoint(count, TIMING, TIMING, 1.5, 1.25, 2.0) for count in (1, 2)))


@pytest.fixture(autouse=True)
def used(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The numbers that torch was told to use, which it does not."""
    told: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    return told


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows whenever threads are compared."""
    calls: list[int] = []
    monkeypatch.setattr(profiling, "measure_threads", lambda *_: calls.append(1) or CHOICE, raising=False)
    monkeypatch.setattr(profiling, "text_of", lambda *_: (None, "text", (1, 2)), raising=False)
    monkeypatch.setattr(profiling, "threads_key_of", lambda decoder: "0123", raising=False)
    return calls


class Lines(list[str]):
    def line(self, text: str) -> None:
        self.append(text)


def choose(root: Path, device: str = "cpu", **options: Any) -> tuple[ThreadChoice | None, Lines]:
    decoder: Any = SimpleNamespace(target=SimpleNamespace(device=torch.device(device)))
    terminal: Any = Lines()
    how = {"keeps": True, "anew": False, **options}
    return choose_threads(decoder, None, root, terminal, **how), terminal  # type: ignore[arg-type]


def test_what_was_measured_is_used_kept_and_taken_the_next_time(
    tmp_path: Path, used: list[int], measured: list[int]
) -> None:
    assert choose(tmp_path)[0] == CHOICE
    assert choose(tmp_path)[0] == CHOICE
    assert (used, measured) == ([2, 2], [1])
    assert choose(tmp_path, anew=True)[1] == ["threads: 2; a plain forward takes 2.00 ms with 1, 2.00 ms with 2"]
    assert measured == [1, 1]


def test_what_was_kept_decides_even_where_a_measurement_would_say_otherwise(
    tmp_path: Path, used: list[int], measured: list[int]
) -> None:
    profiling.save_threads(profiling.threads_path(tmp_path, "0123"), replace(CHOICE, num_threads=1))
    choose(tmp_path)
    assert (used, measured) == ([1], [])


def test_nothing_is_kept_where_nothing_may_be_left(tmp_path: Path, used: list[int], measured: list[int]) -> None:
    choose(tmp_path, keeps=False)
    assert used == [2]
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_damaged_is_made_again(tmp_path: Path, measured: list[int]) -> None:
    path = profiling.threads_path(tmp_path, "0123")
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    found, lines = choose(tmp_path)
    assert found == CHOICE
    assert lines[0].startswith("threads are compared again: `num_threads` is missing")
    assert json.loads(path.read_text())["num_threads"] == 2


def keep(root: Path, num_threads: int) -> tuple[ThreadChoice | None, Lines]:
    decoder: Any = SimpleNamespace(target=SimpleNamespace(device=torch.device("cpu")))
    terminal: Any = Lines()
    return keep_threads(decoder, root, Path("begun"), num_threads, terminal), terminal


def test_an_unfinished_run_keeps_its_number_whatever_was_chosen_since(
    tmp_path: Path, used: list[int], measured: list[int]
) -> None:
    choose(tmp_path)
    start = "threads: 1, with which the unfinished run in begun was begun"
    assert keep(tmp_path, 1) == (None, [f"{start}, though 2 were chosen since (resume=false begins anew)"])
    assert keep(tmp_path / "elsewhere", 1) == (None, [start])
    assert keep(tmp_path, 2) == (CHOICE, ["threads: 2; a plain forward takes 2.00 ms with 1, 2.00 ms with 2"])
    assert (used, measured) == ([2, 1, 1, 2], [1])


def test_a_gpu_leaves_threads_alone(tmp_path: Path, used: list[int], measured: list[int]) -> None:
    assert choose(tmp_path, "cuda") == (None, ["threads: as torch has them, 1, because models run on a GPU"])
    assert (used, measured) == ([], [])


def test_a_given_number_is_used_and_otherwise_nothing_is_done(used: list[int]) -> None:
    use_threads(None)
    use_threads("auto")
    assert used == []
    use_threads(2)
    assert used == [2]


def test_numbers_that_make_no_sense_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "host_fingerprint", lambda: {"num_cores": 4})
    for fine in (None, "auto", 1, 4):
        check_threads(fine)  # type: ignore[arg-type]
    for wrong in (0, -1, 5):
        with pytest.raises(ConfigError, match=f"1 to 4, the cores this process may use, but got {wrong}"):
            check_threads(wrong)
