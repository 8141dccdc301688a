from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from autospec.config import SamplingParams, SpecConfig
from autospec.cost_model import Prediction
from autospec.errors import MeasurementError
from autospec.records import Measurement
from autospec.tuning.guide import Guide
from autospec.tuning.knobs import Choices, Knob
from autospec.tuning.replaying import is_priced_whole, price, replay_study
from autospec.tuning.run import run_task
from autospec.tuning.settings import StudySettings
from autospec.tuning.space import SearchSpace
from autospec.yardsticks import SPEED

NOTHING = np.zeros(0)
Values = Callable[[SpecConfig], Sequence[float] | None]


class Planted:
    """Predicts what it is told to, per prompt; learns one shift for all, and is then sure of it."""

    def __init__(self, values: Values, categories: tuple[str, ...] = ("code", "prose"), spread: float = 0.0) -> None:
        self.values, self.categories, self.spread = values, categories, spread
        self.shift, self.taught, self.prompt_ids, self.yardstick = 0.0, list[Measurement](), (), SPEED
        self.waiting, self.asked = dict[SpecConfig, float](), list[SpecConfig]()  # what must be recorded: seconds

    def uncorrected(self, config: SpecConfig) -> Prediction | None:
        values = self.values(config)
        if values is None:
            return None
        return Prediction(config, NOTHING, NOTHING, np.array(values), np.zeros(0, dtype=np.int64), NOTHING)

    def predict(self, configs: Sequence[SpecConfig]) -> list[Prediction | None]:
        self.asked += configs
        found = map(self.uncorrected, configs)
        return [
            one
            and Prediction(
                one.config, NOTHING, NOTHING, one.log_speedups + self.shift, one.num_steps, NOTHING, self.spread
            )
            for one in found
        ]

    def unrecorded(self, configs: Sequence[SpecConfig]) -> list[SpecConfig]:
        return [one for one in configs if one in self.waiting]

    def recordings(self, configs: Sequence[SpecConfig]) -> list[tuple[float, list[SpecConfig]]]:
        groups: dict[str, list[SpecConfig]] = {}
        for one in configs:
            groups.setdefault(one.drafter, []).append(one)
        return [(self.waiting[group[0]], group) for group in groups.values()]

    def joint(self, configs: Sequence[SpecConfig]) -> Any:
        prices = [one for one in self.predict(configs) if one is not None]
        return np.array([one.log_ratio for one in prices]), np.eye(len(prices)) * 1e-4

    def for_batches(self, batch_size: int) -> Any:
        if batch_size > 8:
            raise MeasurementError("nothing was measured of such batches")
        return SimpleNamespace(log_speedups=lambda configs: [-sum(self.values(one) or ()) for one in configs])

    def correct(self, measurements: Iterable[Measurement]) -> None:
        self.taught = [one for one in measurements if not one.config.is_off]
        errors = [
            one.log_speedup - known.log_speedup
            for one in self.taught
            if (known := self.uncorrected(one.config)) is not None
        ]
        self.shift = float(np.mean(errors)) if errors else 0.0

    def for_length(self, prompt_length: int) -> Any:
        """Behind longer prompts, longer drafts are worth less; of the longest nothing is known."""
        if prompt_length > 1000:
            raise MeasurementError("nothing was measured of such prompts")

        def values(config: SpecConfig) -> list[float] | None:
            own = self.values(config)
            return None if own is None else [one - prompt_length / 1000 * config.draft_length for one in own]

        return Planted(values)


def draft(length: int, **knobs: Any) -> SpecConfig:
    return SpecConfig("draft", length, **knobs)


def guide_of(values: dict[SpecConfig, Sequence[float] | None], is_whole: bool = True, spread: float = 0.0) -> Guide:
    return Guide(Planted(values.get, spread=spread), values, is_whole)


def test_the_best_comes_first_then_the_best_of_other_kinds_that_are_near() -> None:
    best, second = draft(4), draft(5)
    near, far = draft(4, stop_rule="confidence"), SpecConfig("ngram", 4)
    guide = guide_of({far: [0.2, 0.2], near: [0.4, 0.4], second: [0.48, 0.48], best: [0.5, 0.5]})
    assert guide.opening() == (best, near)  # `second` is of the best one's kind, `far` 0.3 behind
    assert [one.config for one in guide.ranked()] == [best, second, near, far]


def test_a_category_for_which_another_promises_more_gets_its_own() -> None:
    best, own = draft(4), SpecConfig("ngram", 8)
    assert guide_of({best: [0.5, 0.5], own: [-0.3, 0.6]}).opening() == (best, own)
    assert guide_of({best: [0.5, 0.5], own: [-0.3, 0.505]}).opening() == (best,)


def test_nothing_opens_a_study_where_everything_is_slower_than_plain_decoding() -> None:
    assert guide_of({draft(4): [-0.1, -0.2]}).opening() == ()
    assert guide_of({draft(4): None}).opening() == ()


def test_what_may_still_be_faster_comes_next_and_then_nothing() -> None:
    values = {draft(4): [0.5, 0.5], draft(3): [0.4, 0.4], draft(2): [0.3, 0.3]}
    guide = guide_of(values)
    assert guide.next((), 0.0) == draft(4)
    assert guide.next({draft(4)}, 0.35) == draft(3)
    assert guide.next({draft(4)}, 0.395) is None  # 0.4 is no more than noise above it
    assert guide.next(set(values), 0.0) is None
    assert guide_of(values, spread=0.1).next({draft(4)}, 0.48) == draft(3)  # one standard deviation up


def test_a_guide_says_what_it_cannot_price_and_whether_it_saw_everything() -> None:
    guide = guide_of({draft(4): [0.5, 0.5], draft(3): None, SpecConfig(): [0.0, 0.0]})
    assert (guide.num_asked, guide.num_priced, guide.is_complete) == (2, 1, False)
    assert guide_of({draft(4): [0.1, 0.1]}).is_complete
    assert not guide_of({draft(4): [0.1, 0.1]}, is_whole=False).is_complete


def far_from_best(config: SpecConfig) -> list[float]:
    return [0.5 - 0.001 * (config.draft_length - 37) ** 2 - abs(config.stop_threshold - 0.4)]


def test_a_replayed_study_finds_what_is_best_in_a_space_too_large_to_be_priced_whole() -> None:
    lengths = tuple(range(1, 61))
    thresholds = tuple(round(0.01 * step, 2) for step in range(5, 95))
    space = SearchSpace([
        Knob("drafter", Choices(("draft",))),
        Knob("draft_length", Choices(lengths)),
        Knob("stop_rule", Choices(("confidence",))),
        Knob("stop_threshold", Choices(thresholds)),
    ])  # fmt: skip
    settings = StudySettings(replayed_trials=300, seed=1)
    assert not is_priced_whole(space, settings)
    assert is_priced_whole(space, StudySettings(replayed_trials=60 * 90))
    found, num_left = replay_study(Planted(far_from_best), space, settings, 1e9, lambda: 0.0)
    assert 200 < len(found) == len(set(found)) <= 300
    assert num_left == 0
    assert max(far_from_best(config)[0] for config in found) > 0.4


def test_a_replayed_study_ends_when_its_time_is_up() -> None:
    space = SearchSpace([Knob("drafter", Choices(("draft",))), Knob("draft_length", Choices(tuple(range(1, 61))))])
    clock, planted = iter(range(100)), Planted(far_from_best)
    replay_study(planted, space, StudySettings(), 5.5, lambda: next(clock))
    assert len(planted.asked) == 5


def test_what_must_be_recorded_comes_last_and_only_as_far_as_there_is_time() -> None:
    known, cheap, dear = draft(4), [SpecConfig("a", length) for length in (1, 2, 3)], [SpecConfig("b", 1)]
    clock, planted = SimpleNamespace(now=0.0), Planted(lambda _: [0.1, 0.1])
    planted.waiting = {**dict.fromkeys(cheap, 6.0), **dict.fromkeys(dear, 5.0)}
    whole = [*dear, *cheap, known]
    assert price(planted, whole, 10.0, lambda: clock.now) == []
    assert planted.asked == [*cheap, *dear]  # 2 s for each against 5
    assert price(planted, whole, 5.5, lambda: clock.now) == cheap
    guide = Guide(planted, [known, *dear], is_whole=True, num_left=len(cheap))
    assert (guide.num_asked, guide.num_priced, guide.num_left, guide.is_complete) == (5, 2, 3, False)


def test_a_replayed_study_counts_what_there_was_no_time_to_record() -> None:
    space = SearchSpace([Knob("drafter", Choices(("a", "b"))), Knob("draft_length", Choices((1, 2, 3)))])
    planted = Planted(lambda config: [0.1 * config.draft_length] * 2)
    planted.waiting = dict.fromkeys([SpecConfig("b", length) for length in (1, 2, 3)], 7.0)
    settings = StudySettings(replayed_trials=60, seed=3)
    found, num_left = replay_study(planted, space, settings, 6.0, lambda: 0.0)
    assert (sorted(one.draft_length for one in found), {one.drafter for one in found}) == ([1, 2, 3], {"a"})
    assert num_left == 3
    found, num_left = replay_study(planted, space, settings, 8.0, lambda: 0.0)
    assert (len(found), num_left) == (6, 0)


def guided(fakes: SimpleNamespace, bias: float, num_priced: int = 10_000) -> Callable[..., SimpleNamespace]:
    """A preparation whose predictions are off by `bias` for everything, and know `num_priced` configurations."""

    def prepare(task: Any, *_: Any) -> SimpleNamespace:
        space = task.space.under(SamplingParams())
        configs = list(space.walk())
        known = set(configs[:num_priced])

        def values(config: SpecConfig) -> list[float] | None:
            return [math.log(fakes.peak(config, "code")) + bias] * 2 if config in known else None

        predictor = Planted(values)
        return SimpleNamespace(
            guide=Guide(predictor, configs, True), space=space, predictor=predictor, independence=(), acceptance=()
        )

    return prepare


@pytest.mark.parametrize("bias", [0.0, 0.3, -0.3])
def test_a_guided_study_needs_few_trials(fakes: SimpleNamespace, tmp_path: Path, bias: float) -> None:
    task = fakes.make_task(tmp_path, trials=40, patience=20, prepare=guided(fakes, bias))
    result = run_task(task)
    assert result.policy.choose().drafter == "draft"
    assert abs(result.policy.choose().draft_length - 6) <= 1
    assert result.num_live_trials <= 12
    assert result.stop_reason.startswith("converged")
    assert result.num_replayed_trials == task.space.under(SamplingParams()).size()


def test_what_cannot_be_priced_is_left_to_the_sampler(fakes: SimpleNamespace, tmp_path: Path) -> None:
    space = SearchSpace([Knob("drafter", Choices(("draft",))), Knob("draft_length", Choices(tuple(range(1, 13))))])
    result = run_task(fakes.make_task(tmp_path, trials=12, patience=0, space=space, prepare=guided(fakes, 0.0, 3)))
    assert result.num_replayed_trials == 3
    assert result.num_live_trials > 8
    assert result.policy.choose().draft_length in (5, 6, 7)


def test_a_guided_study_that_is_resumed_goes_the_same_way(fakes: SimpleNamespace, tmp_path: Path) -> None:
    whole = fakes.FakeRunner()
    run_task(fakes.make_task(tmp_path / "whole", whole, trials=20, prepare=guided(fakes, 0.1)))

    def stop(count: int) -> None:
        if count == 37:
            raise KeyboardInterrupt

    first, second = fakes.FakeRunner(hook=stop), fakes.FakeRunner()
    assert not run_task(fakes.make_task(tmp_path / "cut", first, trials=20, prepare=guided(fakes, 0.1))).finished
    assert run_task(fakes.make_task(tmp_path / "cut", second, trials=20, prepare=guided(fakes, 0.1))).finished
    assert [*first.calls, *second.calls] == whole.calls


def test_where_memory_counts_too_every_drafter_that_pays_gets_its_chance() -> None:
    best, far, slower = draft(4), SpecConfig("ngram", 4), SpecConfig("suffix", 4)
    values = {best: [0.5, 0.5], draft(5): [0.45, 0.45], far: [0.2, 0.2], slower: [-0.1, -0.1]}
    assert Guide(Planted(values.get), values, True, every_drafter=True).opening() == (best, far)
    assert guide_of(values).opening() == (best,)


def test_batches_are_ranked_by_what_is_predicted_of_them() -> None:
    guide = Guide(Planted(lambda config: [config.draft_length / 10] * 2), [draft(2), draft(6)], is_whole=True)
    assert [one.config for one in guide.ranked()] == [draft(6), draft(2)]
    assert guide.ranked_for(4) == [draft(2), draft(6)]
    assert guide.ranked_for(16) == []


def test_lengths_of_prompts_are_ranked_by_what_is_predicted_of_them() -> None:
    guide = Guide(Planted(lambda config: [config.draft_length / 10] * 2), [draft(2), draft(6)], is_whole=True)
    assert guide.ranked_for(1, 50) == [draft(6), draft(2)]  # 0.6 - 0.3 and 0.2 - 0.1
    assert guide.ranked_for(1, 150) == [draft(2), draft(6)]  # 0.6 - 0.9 and 0.2 - 0.3
    assert guide.ranked_for(1, 2000) == []


def test_what_is_believed_is_predicted_and_corrected_or_else_what_was_measured() -> None:
    guide = guide_of({draft(4): [0.5, 0.3], draft(3): [0.2, 0.2], SpecConfig("ngram", 4): None})
    assert guide.believed(draft(4), 0.9) == pytest.approx(0.4)
    assert guide.believed(SpecConfig("ngram", 4), 0.9) == 0.9
    known = guide.beliefs([draft(3), SpecConfig("ngram", 4), SpecConfig(), draft(4)])
    assert known.configs == (draft(3), draft(4))
    assert known.means == pytest.approx([0.2, 0.4])
    assert guide.beliefs([SpecConfig("ngram", 4)]).configs == ()
