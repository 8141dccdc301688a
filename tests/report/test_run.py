from __future__ import annotations

import math

import pytest

from autospec.config import SpecConfig
from autospec.errors import MeasurementError
from autospec.report.run import counts, estimate, read_run

DRAFT = SpecConfig(drafter="draft", draft_length=3)
NGRAM = SpecConfig(drafter="ngram", draft_length=8)
OFF = SpecConfig()


def test_trials_are_rebuilt_from_measurements(write_run):
    folder = write_run(
        *[(OFF, 0, prompt, 1.0) for prompt in "abcd"],
        *[(DRAFT, 1, prompt, 0.5) for prompt in "abcd"],
        *[(NGRAM, 2, prompt, 2.0) for prompt in "ab"],
        failure=(SpecConfig(drafter="draft", draft_length=60), 3),
    )
    run = read_run(folder)
    assert [(trial.number, trial.state) for trial in run.trials] == [(1, "complete"), (2, "pruned"), (3, "failed")]
    speeds = [trial.ratio for trial in run.trials]
    assert speeds[0] is not None
    assert speeds[0].value == pytest.approx(2.0)
    assert speeds[1] is not None
    assert speeds[1].num_prompts == 2
    assert speeds[2] is None
    assert run.device == "Example CPU"


def test_only_the_search_makes_trials(write_run):
    folder = write_run((DRAFT, 1, "a", 0.5), (DRAFT, -1, "b", 0.5, "confirm"), (NGRAM, -1, "b", 0.5, "finalist"))
    run = read_run(folder)
    assert [trial.number for trial in run.trials] == [1]
    assert len(run.measurements) == 3


def test_the_noise_floor_is_that_of_the_baseline_against_itself(write_run):
    folder = write_run((OFF, 0, "a", math.exp(-0.1)), (OFF, 0, "b", math.exp(0.1)), (DRAFT, 1, "a", 0.5))
    assert read_run(folder).noise_floor == pytest.approx(0.1 / 0.67448975 / math.sqrt(2))
    assert read_run(write_run((DRAFT, 1, "a", 0.5))).noise_floor is None


def test_a_run_that_was_killed_while_writing_is_read_up_to_the_last_whole_line(write_run):
    folder = write_run((DRAFT, 1, "a", 0.5), (DRAFT, 1, "b", 0.5))
    path = folder / "measurements.jsonl"
    path.write_text(path.read_text()[:-10])
    assert len(read_run(folder).measurements) == 1


def test_a_run_without_readable_measurements_is_refused(tmp_path):
    with pytest.raises(MeasurementError, match="must hold readable measurements"):
        read_run(tmp_path)
    (tmp_path / "measurements.jsonl").write_text("nonsense\n")
    with pytest.raises(MeasurementError, match="must hold readable measurements"):
        read_run(tmp_path)


def test_repeats_of_a_prompt_are_averaged_before_prompts_are(write_run):
    run = read_run(write_run((DRAFT, 1, "a", 0.5), (DRAFT, 1, "a", 0.125, "search", 1), (DRAFT, 1, "b", 0.25)))
    speed = estimate(run.measurements)
    assert speed is not None
    assert speed.value == pytest.approx(4.0)
    assert estimate([]) is None


def test_counts_add_up(write_run):
    run = read_run(write_run((DRAFT, 1, "a", 0.5), (DRAFT, 1, "b", 0.5)))
    assert counts(run.measurements).position_tested == [60, 40, 20]
    assert counts(run.measurements).position_accepted == [40, 20, 10]
