from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from autospec.errors import ConfigError
from autospec.tuning.identity import check_identity, machine_of
from autospec.tuning.log import MeasurementLog


@pytest.fixture
def log(tmp_path: Path) -> MeasurementLog:
    return MeasurementLog(tmp_path / "measurements.jsonl")


def test_the_same_task_goes_on_and_its_machine_can_be_read(
    fakes: SimpleNamespace, tmp_path: Path, log: MeasurementLog
) -> None:
    assert machine_of(tmp_path) is None
    task = replace(fakes.make_task(tmp_path), machine={"device_name": "A", "num_threads": 2})
    check_identity(task, log)
    check_identity(task, log)
    assert machine_of(tmp_path) == {"device_name": "A", "num_threads": 2}
    log.close()


def test_all_that_differs_is_said_and_of_the_machine_what(
    fakes: SimpleNamespace, tmp_path: Path, log: MeasurementLog
) -> None:
    task = replace(fakes.make_task(tmp_path), machine={"device_name": "A", "num_threads": 2})
    check_identity(task, log)
    other = replace(fakes.make_task(tmp_path, seed=5), machine={"device_name": "A", "num_threads": 1})
    with pytest.raises(ConfigError, match=r"differs in machine \(num_threads: 2 -> 1\), settings$"):
        check_identity(other, log)
    log.close()


def test_compiled_models_do_not_go_on_with_a_run_of_others(
    fakes: SimpleNamespace, tmp_path: Path, log: MeasurementLog
) -> None:
    task = fakes.make_task(tmp_path)
    check_identity(task, log)
    task.decoder.target.compiles = True
    with pytest.raises(ConfigError, match=r"differs in compile$"):
        check_identity(task, log)
    log.close()


@pytest.mark.parametrize("text", ["", "{", "[1]\n", '{"decision": "identity", "value": []}\n', '{"decision": "x"}\n'])
def test_a_folder_that_says_nothing_has_no_machine(tmp_path: Path, text: str) -> None:
    (tmp_path / "measurements.jsonl").write_text(text)
    assert machine_of(tmp_path) is None
