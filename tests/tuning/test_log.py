from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from autospec.config import SpecConfig
from autospec.errors import ConfigError, MeasurementError
from autospec.records import Measurement
from autospec.tuning.log import Failure, MeasurementLog, cut_torn_line, read_measurements

CONFIG = SpecConfig("draft", 4)


@pytest.fixture
def measured(fakes: SimpleNamespace) -> list[Measurement]:
    runner, prompts = fakes.FakeRunner(), fakes.make_workload().tune
    return [runner.measure(CONFIG, prompt, stage="search", trial=1, repeat=0) for prompt in prompts[:3]]


def test_what_was_appended_is_read_back(tmp_path: Path, measured: list[Measurement]):
    path = tmp_path / "measurements.jsonl"
    log = MeasurementLog(path)
    for one in measured:
        log.append(one)
    log.append_failure(Failure(SpecConfig("ngram", 3), "p", "search", 2, "out of memory"))
    assert log.decide("stop_reason", lambda: "trials") == "trials"
    log.close()

    again = MeasurementLog(path)
    assert again.measurements == measured
    assert again.failures == [Failure(SpecConfig("ngram", 3), "p", "search", 2, "out of memory")]
    assert again.decide("stop_reason", lambda: "minutes") == "trials"
    assert again.find(CONFIG, measured[1].prompt_id, "search", 0) == measured[1]
    assert again.find(CONFIG, measured[1].prompt_id, "search", 1) is None
    assert again.failure_of(CONFIG) is None
    again.close()
    assert read_measurements(path) == measured


def test_what_failed_beside_others_may_be_tried_with_fewer(tmp_path: Path) -> None:
    config, path = SpecConfig("ngram", 3), tmp_path / "log.jsonl"
    log = MeasurementLog(path)
    log.append_failure(Failure(config, "p", "situation", -1, "out of memory", num_outputs=4))
    log.close()
    for _ in range(2):
        log = MeasurementLog(path)
        assert [log.failure_of(config, size) is not None for size in (1, 2, 4, 8)] == [False, False, True, True]
        log.append_failure(Failure(SpecConfig("ngram", 2), "p", "search", 1, "no drafts"))
        assert all(log.failure_of(SpecConfig("ngram", 2), size) for size in (1, 2, 8)), "alone and so in any batch"
        assert str(log.failures[0]).endswith(
            "failed in the choice for a batch or a length, on prompt 'p' and 3 beside it: out of memory"
        )
        log.close()


def test_a_line_is_on_the_disk_when_append_returns(tmp_path: Path, measured: list[Measurement]):
    log = MeasurementLog(tmp_path / "measurements.jsonl")
    log.append(measured[0])
    assert json.loads((tmp_path / "measurements.jsonl").read_text())["prompt_id"] == measured[0].prompt_id
    log.close()


def test_a_measurement_made_twice_is_refused_before_it_is_written(tmp_path: Path, measured: list[Measurement]):
    log = MeasurementLog(tmp_path / "measurements.jsonl")
    log.append(measured[0])
    with pytest.raises(MeasurementError, match="once"):
        log.append(measured[0])
    log.close()
    assert len(read_measurements(tmp_path / "measurements.jsonl")) == 1


def test_every_torn_last_line_is_cut(tmp_path: Path, measured: list[Measurement]):
    path = tmp_path / "measurements.jsonl"
    log = MeasurementLog(path)
    for one in measured:
        log.append(one)
    log.close()
    whole = path.read_bytes()
    second_end = whole.rfind(b"\n", 0, len(whole) - 1) + 1
    for cut in range(second_end + 1, len(whole), 97):
        path.write_bytes(whole[:cut])
        assert read_measurements(path) == measured[:2]
        torn = MeasurementLog(path)
        assert torn.measurements == measured[:2]
        torn.append(measured[2])
        torn.close()
        assert path.read_bytes() == whole


def test_a_second_process_is_refused(tmp_path: Path):
    log = MeasurementLog(tmp_path / "measurements.jsonl")
    with pytest.raises(ConfigError, match="held by another"):
        MeasurementLog(tmp_path / "measurements.jsonl")
    log.close()
    MeasurementLog(tmp_path / "measurements.jsonl").close()


@pytest.mark.parametrize("line", ["not json", "[]", '{"config": {}}', '{"failure": {}}'])
def test_a_line_in_the_middle_that_is_wrong_is_named(tmp_path: Path, line: str):
    path = tmp_path / "measurements.jsonl"
    path.write_text('{"decision":"identity","value":1}\n' + line + "\n")
    with pytest.raises(MeasurementError, match=r"measurements\.jsonl:2"):
        MeasurementLog(path)
    with pytest.raises(MeasurementError, match=r"jsonl:2"):
        MeasurementLog(path)  # the first attempt let go of the file
    if "failure" not in line:
        with pytest.raises(MeasurementError, match=r"measurements\.jsonl:2"):
            read_measurements(path)


def test_a_changed_configuration_does_not_match_its_hash(tmp_path: Path, measured: list[Measurement]):
    path = tmp_path / "measurements.jsonl"
    path.write_text(json.dumps(measured[0].to_json()).replace('"draft_length": 4', '"draft_length": 5') + "\n")
    with pytest.raises(MeasurementError, match="hash"):
        MeasurementLog(path)


def test_a_folder_in_place_of_the_file_is_a_config_error(tmp_path: Path):
    with pytest.raises(ConfigError, match="can be written"):
        MeasurementLog(tmp_path)


def test_cut_reports_how_much(tmp_path: Path):
    path = tmp_path / "journal"
    assert cut_torn_line(path) == 0
    path.write_text("whole\ntorn")
    assert cut_torn_line(path) == 4
    assert path.read_text() == "whole\n"


def test_a_missing_file_cannot_be_read(tmp_path: Path):
    with pytest.raises(MeasurementError, match="readable"):
        read_measurements(tmp_path / "nothing.jsonl")
