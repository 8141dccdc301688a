"""Batches and lengths of prompts: how groups are made, what is tried in them, and which rows stand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autospec.config import SpecConfig
from autospec.errors import ConfigError, MeasurementError
from autospec.records import Measurement, Prompt, Workload
from autospec.tuning.events import Event, PhaseStarted, Warned
from autospec.tuning.log import MeasurementLog
from autospec.tuning.measuring import Measurer
from autospec.tuning.situations import Situation, Situations, candidates, situations_of

PROMPTS = tuple(Prompt(f"p{number}", "code", text="x" * (number + 1)) for number in range(7))
LONG, SHORT, MID, OTHER = (
    SpecConfig("draft", 8),
    SpecConfig("draft", 2),
    SpecConfig("draft", 4),
    SpecConfig("ngram", 8),
)


def length(prompt: Prompt) -> int:
    return len(prompt.text)


def names(groups: Sequence[Prompt]) -> list[list[str]]:
    return [[one.text for one in (group, *group.companions)] for group in groups]


def test_groups_hold_prompts_in_order_and_leave_out_what_is_over() -> None:
    groups = Situation(3).groups(PROMPTS, length)
    assert names(groups) == [["x", "xx", "xxx"], ["xxxx", "xxxxx", "xxxxxx"]]
    assert [group.prompt_id for group in groups] == ["p0 (batch 3)", "p3 (batch 3)"]


def test_lengths_part_prompts() -> None:
    workload = Workload("w", PROMPTS, PROMPTS, batch_sizes=(1, 2), context_lengths=(2, 5))
    batch, short, long = situations_of(workload)
    assert batch == Situation(2)
    assert [one.text for one in short.groups(PROMPTS, length)] == ["x", "xx"]
    assert [one.text for one in long.groups(PROMPTS, length)] == ["xxx", "xxxx", "xxxxx"]
    assert (short.name, long.name) == ("prompts to 2", "prompts to 5")


@pytest.mark.parametrize("sizes", [(0,), (2, 1), (2, 2), (1.5,), (True,)])
def test_sizes_must_be_whole_and_ascend(sizes: Any) -> None:
    with pytest.raises(ConfigError, match="`batch_sizes` must be whole numbers of at least 1 that ascend"):
        Workload("w", PROMPTS, PROMPTS, batch_sizes=sizes)


def test_a_workload_of_single_prompts_is_the_same_as_before() -> None:
    plain = Workload("w", PROMPTS, PROMPTS)
    assert situations_of(plain) == ()
    assert plain.content_hash == replace(plain, batch_sizes=(1,)).content_hash
    assert plain.content_hash != replace(plain, batch_sizes=(1, 4)).content_hash


def test_the_length_of_a_bucket_is_that_of_its_middle_prompt() -> None:
    _, long = situations_of(Workload("w", PROMPTS, PROMPTS, context_lengths=(2, 5)))
    assert long.prompt_length(PROMPTS, length) == 4  # of 3, 4 and 5
    assert long.prompt_length(PROMPTS[:2], length) is None
    assert Situation(4).prompt_length(PROMPTS, length) is None


def test_candidates_are_the_best_shorter_ones_and_another_drafter() -> None:
    third = SpecConfig("draft", 7)
    assert candidates([LONG, third, OTHER, MID, SHORT, SpecConfig()]) == (LONG, MID, SHORT, OTHER)
    assert candidates([SpecConfig("draft", 1)]) == (SpecConfig("draft", 1),)
    assert candidates([SpecConfig()]) == ()


def test_what_is_predicted_of_a_situation_comes_first() -> None:
    assert candidates([LONG, OTHER, MID, SHORT], [SHORT, OTHER, MID]) == (SHORT, OTHER, LONG, MID)


def test_predictions_that_are_hardly_told_apart_are_tried_once() -> None:
    twin = replace(OTHER, ngram_max=5)
    assert candidates([LONG, OTHER, twin], [OTHER, twin, SHORT]) == (OTHER, SHORT, LONG)


class LoadedRunner:
    """Speculation loses by every token drafted beside others: seconds are planted, one tick of noise apart."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    def measure(self, config: SpecConfig, prompt: Prompt, *, stage: str, trial: int, repeat: int) -> Measurement:
        self.calls.append((stage, prompt.prompt_id))
        size = 1 + len(prompt.companions)
        speed = 2.0 - 0.05 * config.draft_length * (size - 1) + (0.2 if config.draft_length > 5 else 0.0)
        noise = 0.01 * math.sin(len(self.calls))
        return Measurement(
            config=config,
            prompt_id=prompt.prompt_id,
            category=prompt.category,
            stage=stage,
            trial=trial,
            repeat=repeat,
            seconds=math.exp(noise) / max(speed, 0.1),
            baseline_seconds=1.0,
            num_tokens=10 * size,
            baseline_num_tokens=10 * size,
            prefill_seconds=0.0,
            baseline_prefill_seconds=0.0,
            stats=_no_steps(),
            identical=True,
        )


def _no_steps() -> Any:
    from autospec.records import StepStats

    return StepStats()


def judge(
    folder: Path, runner: LoadedRunner, sizes: tuple[int, ...], num_prompts: int = 32, seconds: float = math.inf
) -> tuple[Any, list[Event]]:
    prompts = [tuple(Prompt(f"{split}{number}", "code") for number in range(num_prompts)) for split in "th"]
    events: list[Event] = []
    folder.mkdir(exist_ok=True)
    log = MeasurementLog(folder / "log.jsonl")
    measurer = Measurer(runner, log, events.append, lambda: 0.0)
    workload = Workload("w", *prompts, batch_sizes=sizes)
    rows = Situations(workload, measurer, length, 1.0, events.append).judge([LONG, OTHER, MID, SHORT], seconds)
    log.close()
    return rows, events


def test_drafts_shrink_with_the_batch_and_stop_where_nothing_pays(tmp_path: Path) -> None:
    # Planted: 2.2 - 0.4 (size - 1) at length 8, 2 - 0.2 (size - 1) at 4, 2 - 0.1 (size - 1) at 2.
    rows, events = judge(tmp_path, LoadedRunner(), (1, 2, 4, 8), num_prompts=48)
    assert [(row.situation.batch_size, row.config.draft_length) for row in rows] == [(2, 2), (4, 2), (8, 2)]
    assert rows[0].ratio.value == pytest.approx(1.9, rel=0.02)
    assert rows[2].ratio.value == pytest.approx(1.3, rel=0.02)
    rows, _ = judge(tmp_path / "more", LoadedRunner(), (16,), num_prompts=64)
    assert (rows[0].config.is_off, rows[0].ratio.value, rows[0].tried.is_off) == (True, 1.0, True)
    begun = [event.phase for event in events if isinstance(event, PhaseStarted)]
    assert begun[:2] == ["situation: batch 2", "situation_confirm: batch 2"]


def test_held_out_groups_are_judged_once_and_apart_from_those_of_the_choice(tmp_path: Path) -> None:
    runner = LoadedRunner()
    rows, _ = judge(tmp_path, runner, (2,))
    seen = {
        stage: [name for one, name in runner.calls if one == stage] for stage in ("situation", "situation_confirm")
    }
    assert all(name.startswith("t") for name in seen["situation"])
    assert all(name.startswith("h") for name in seen["situation_confirm"])
    assert len(seen["situation_confirm"]) == len(set(seen["situation_confirm"])) == rows[0].ratio.num_prompts == 16


def test_what_fails_in_a_large_batch_still_serves_smaller_ones(tmp_path: Path) -> None:
    class TooLarge(LoadedRunner):
        def measure(self, config: SpecConfig, prompt: Prompt, **where: Any) -> Measurement:
            if len(prompt.companions) > 2 and not config.is_off:
                raise MeasurementError("out of memory")
            return super().measure(config, prompt, **where)

    large = judge(tmp_path, TooLarge(), (4,))[0]
    assert large[0].config.is_off
    (both,) = judge(tmp_path, TooLarge(), (2,))[0]  # the same log
    assert not both.config.is_off


def test_what_was_measured_and_decided_is_not_measured_again(tmp_path: Path) -> None:
    first, _ = judge(tmp_path, LoadedRunner(), (2, 4))
    again = LoadedRunner()
    assert judge(tmp_path, again, (2, 4))[0] == first
    assert again.calls == []


def test_too_few_prompts_are_told_and_off(tmp_path: Path) -> None:
    rows, events = judge(tmp_path, LoadedRunner(), (8,), num_prompts=16)
    assert rows[0].config.is_off
    warned = [str(event.message) for event in events if isinstance(event, Warned)]
    assert warned == ["batch 8 is off: at least 3 groups of 8 held-out prompts are needed, but there are 2"]


def test_little_time_means_few_groups(tmp_path: Path) -> None:
    runner = LoadedRunner()
    judge(tmp_path, runner, (2,), seconds=1.0)
    assert len({name for stage, name in runner.calls if stage == "situation"}) == 3


def test_what_is_predicted_is_asked_for_by_size_and_length(tmp_path: Path) -> None:
    prompts = [tuple(Prompt(f"{split}{number}", "code", text="x" * number) for number in range(16)) for split in "th"]
    log, runner = MeasurementLog(tmp_path / "log.jsonl"), LoadedRunner()
    measurer = Measurer(runner, log, lambda event: None, lambda: 0.0)
    workload, asked = Workload("w", *prompts, batch_sizes=(2,), context_lengths=(3, 9)), list[Any]()

    def predicted(batch_size: int, prompt_length: int | None) -> Sequence[SpecConfig]:
        asked.append((batch_size, prompt_length))
        return [MID]

    judging = Situations(workload, measurer, length, 1.0, lambda event: None, predicted=predicted)
    judging.judge([LONG, SHORT, MID], math.inf)
    log.close()
    assert asked == [(2, None), (1, 2), (1, 7)]


def test_nothing_known_to_be_faster_is_off_without_measuring(tmp_path: Path) -> None:
    prompts = [tuple(Prompt(f"{split}{number}", "code") for number in range(16)) for split in "th"]
    log, runner = MeasurementLog(tmp_path / "log.jsonl"), LoadedRunner()
    measurer = Measurer(runner, log, lambda event: None, lambda: 0.0)
    workload = Workload("w", *prompts, batch_sizes=(2,))
    (row,) = Situations(workload, measurer, length, 1.0, lambda event: None).judge([SpecConfig()], math.inf)
    log.close()
    assert (row.config.is_off, runner.calls) == (True, [])
