"""Which number of threads is chosen, under a clock that moves only where the target runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from autospec.engine.model import CausalLM
from autospec.errors import MeasurementError, ProfileError
from autospec.profiling import ThreadChoice, measure_threads, thread_counts, threads
from autospec.profiling.curves import Timing
from autospec.profiling.parts import ThreadPoint

TEXT = [(7 * place + place // 5) % 60 for place in range(400)]


class Bench:
    """A target whose forwards take what is said of the number of threads in use; counts who used what."""

    def __init__(self, model: Any, seconds: Callable[[int, int], float]) -> None:
        self.now_at, self.threads, self.used = 0.0, 3, list[int]()
        bench = self

        class Timed(CausalLM):
            def forward(self, input_ids: Any, cache: Any, **how: Any) -> Any:
                bench.now_at += seconds(bench.threads, input_ids.shape[1])
                return super().forward(input_ids, cache, **how)

        self.target = Timed(model, "timed")

    def now(self) -> float:
        return self.now_at

    def use(self, count: int) -> None:
        self.used.append(count)
        self.threads = count

    def choose(self, *counts: int, **options: Any) -> ThreadChoice:
        return measure_threads(self.target, TEXT, counts, watch=self, use=self.use, **options)


@pytest.fixture
def bench(tiny_model: Any) -> Callable[..., Bench]:
    return lambda seconds: Bench(tiny_model("llama"), seconds)


def test_numbers_are_what_the_clock_says(bench: Any) -> None:
    chosen = bench(lambda threads, tokens: (10 + tokens) / threads).choose(1, 2, 4)
    assert chosen.num_threads == 4
    assert chosen.context_length == 256 - 8  # the model takes 256 tokens
    assert [one.num_threads for one in chosen.points] == [1, 2, 4]
    assert [one.plain.seconds for one in chosen.points] == pytest.approx([11, 5.5, 2.75])
    assert [one.verify.seconds for one in chosen.points] == pytest.approx([18, 9, 4.5])
    assert [one.slowdown for one in chosen.points] == pytest.approx([4, 2, 1])
    assert [one.slowdown_low for one in chosen.points] == pytest.approx([4, 2, 1])


def test_of_equals_the_fewest_are_taken(bench: Any) -> None:
    assert bench(lambda threads, tokens: 1.0 if threads == 1 else 0.5).choose(1, 2, 4).num_threads == 2


def test_more_that_are_slower_are_not_taken(bench: Any) -> None:
    assert bench(lambda threads, tokens: 1.0 + threads).choose(1, 2).num_threads == 1


def test_what_is_slower_within_noise_only_is_taken_and_beyond_it_is_not(bench: Any) -> None:
    numbers = torch.Generator().manual_seed(0)

    def noisy(gap: float) -> Callable[[int, int], float]:
        return lambda threads, tokens: (
            (1.0 + gap * (threads == 1)) * (0.9 + 0.2 * float(torch.rand(1, generator=numbers)))
        )

    few = bench(noisy(0.005)).choose(1, 2)
    assert few.num_threads == 1
    slow = bench(noisy(0.25)).choose(1, 2)
    assert slow.num_threads == 2
    assert slow.points[0].slowdown_low > 1.0


def test_all_numbers_take_turns_and_the_old_one_is_left(bench: Any) -> None:
    made = bench(lambda threads, tokens: 0.001)
    made.choose(1, 2)
    *used, last = made.used
    assert last == torch.get_num_threads()
    warm, rounds = used[:2], used[2:]
    assert warm == [1, 2], "models are compiled for each number before anything is timed"
    pairs = list(zip(rounds[::2], rounds[1::2], strict=True))
    assert len(pairs) == 12
    assert set(pairs) == {(1, 2), (2, 1)}


def test_a_failure_leaves_the_old_number_too(bench: Any) -> None:
    def fail(threads: int, tokens: int) -> float:
        if threads == 2:
            raise KeyboardInterrupt
        return 1.0

    made = bench(fail)
    with pytest.raises(KeyboardInterrupt):
        made.choose(1, 2)
    assert made.used[-1] == torch.get_num_threads()


def test_a_slow_target_gets_fewer_rounds(bench: Any) -> None:
    chosen = bench(lambda threads, tokens: 1.0).choose(1, 2, seconds=2.0)
    assert {one.plain.num_samples for one in chosen.points} == {4}


def test_a_text_of_a_few_tokens_is_refused(bench: Any) -> None:
    with pytest.raises(MeasurementError, match="must reach to 9 tokens, but the text has 8"):
        measure_threads(bench(lambda *_: 1.0).target, TEXT[:8], (1,))


@pytest.mark.parametrize(
    ("logical", "physical", "expected"),
    [(1, 1, (1,)), (2, 1, (1, 2)), (6, 3, (1, 2, 3, 4, 6)), (8, None, (1, 2, 4, 8)), (2, 64, (1, 2))],
)
def test_powers_of_two_and_all_cores_are_tried(
    logical: int, physical: int | None, expected: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "host_fingerprint", lambda: {"num_cores": logical})
    monkeypatch.setattr(threads.psutil, "cpu_count", lambda logical: physical)
    assert thread_counts() == expected


def test_a_choice_is_one_of_what_was_measured() -> None:
    timing = Timing(1.0, 0.0, 3)
    points = tuple(ThreadPoint(count, timing, timing, 1.0, 1.0, 1.0) for count in (1, 2))
    with pytest.raises(ProfileError, match=r"must be one of the ascending numbers measured, \[1, 2\], but got 3"):
        ThreadChoice(3, 256, 8, points)
    with pytest.raises(ProfileError, match="ascending"):
        ThreadChoice(1, 256, 8, points[::-1])
