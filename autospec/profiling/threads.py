"""Which number of torch's threads is fastest on this processor: forwards under each of several, in turn.

A study, and the profile it predicts from, run under one number, which the fingerprint records. Decides nothing but
that number, and leaves torch as it was.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import psutil
import torch

from autospec.clock import Clock
from autospec.comparison import Estimate, speedup
from autospec.engine.cache import KVCache
from autospec.engine.model import CausalLM
from autospec.errors import MeasurementError
from autospec.profiling.curves import Timing
from autospec.profiling.fingerprint import host_fingerprint
from autospec.profiling.parts import ThreadChoice, ThreadPoint
from autospec.profiling.probe import Watch, without_collector

CONTEXT, NUM_VERIFIED = 256, 8
_ROUNDS, _LEAST_ROUNDS = 12, 4
_NUM_PLAIN, _NUM_VERIFIED = 3, 2  # forwards of a round, after one that is not timed
_SECONDS = 10.0


def thread_counts() -> tuple[int, ...]:
    """Return what is worth trying: powers of two, and all physical and all logical cores of this process."""
    logical = int(host_fingerprint()["num_cores"])
    physical = min(psutil.cpu_count(logical=False) or logical, logical)
    powers = {1 << power for power in range(logical.bit_length())}
    return tuple(sorted({one for one in powers if one <= logical} | {physical, logical}))


def measure_threads(
    target: CausalLM,
    token_ids: Sequence[int],
    counts: Sequence[int] = (),
    *,
    seconds: float = _SECONDS,
    watch: Watch | None = None,
    use: Callable[[int], None] = torch.set_num_threads,
) -> ThreadChoice:
    """Time plain forwards and forwards of 8 tokens under several numbers of threads, and choose one.

    Every round takes all numbers in a random order, so that a machine that is slow for a while is slow for all.

    Args:
        target: The target, on a CPU.
        token_ids: Text of the workload.
        counts: Numbers of threads; empty takes `thread_counts`.
        seconds: No round begins later, but for the first few.
        watch: Reads the time.
        use: Makes torch use so many threads.

    Raises:
        MeasurementError: The text or the target's context is too short.
    """
    counts = tuple(counts) or thread_counts()
    context = min(CONTEXT, min(len(token_ids), target.usable_length) - NUM_VERIFIED)
    if context < 1:
        raise MeasurementError(
            f"text and target must reach to {NUM_VERIFIED + 1} tokens, but the text has {len(token_ids)}, and the "
            f"target takes {target.usable_length}"
        )
    watch = Clock(target.device) if watch is None else watch
    trial = _Trial(target, token_ids[: context + NUM_VERIFIED], watch)
    plain, verified = ({count: list[float]() for count in counts} for _ in range(2))
    before, order = torch.get_num_threads(), random.Random(0)
    try:
        for count in counts:
            use(count)
            trial.run(1)  # where models are compiled, they are for each number of threads
        started = watch.now()
        with without_collector():
            for number in range(_ROUNDS):
                if number >= _LEAST_ROUNDS and watch.now() - started > seconds:
                    break
                for count in order.sample(counts, len(counts)):
                    use(count)
                    trial.run(1)  # threads are started meanwhile
                    plain[count].append(median(trial.run(1) for _ in range(_NUM_PLAIN)))
                    verified[count].append(median(trial.run(NUM_VERIFIED) for _ in range(_NUM_VERIFIED)))
    finally:
        use(before)
    return _chosen(plain, verified, context)


class _Trial:
    """Forwards behind one text."""

    def __init__(self, target: CausalLM, token_ids: Sequence[int], watch: Watch) -> None:
        self._target, self._watch, self._start = target, watch, len(token_ids) - NUM_VERIFIED
        self._token_ids, self._cache = torch.tensor([list(token_ids)]), KVCache(len(token_ids))
        target.forward(self._token_ids[:, : self._start], self._cache, num_logits=1)

    def run(self, num_tokens: int) -> float:
        """Return the seconds of a forward."""
        started = self._watch.now()
        self._target.forward(self._token_ids[:, self._start : self._start + num_tokens], self._cache)
        seconds = self._watch.now() - started
        self._cache.crop(0, self._start)
        return seconds


def _chosen(
    plain: Mapping[int, Sequence[float]], verified: Mapping[int, Sequence[float]], context: int
) -> ThreadChoice:
    """Choose the smallest number whose plain forwards are not beyond noise slower than those of the fastest.

    Args:
        plain: Number of threads to seconds of a plain forward, round by round.
        verified: The same of forwards of 8 tokens.
        context: Tokens cached before.
    """
    fastest = min(plain, key=lambda count: median(plain[count]))
    slower = {count: _against(seconds, plain[fastest]) for count, seconds in plain.items()}
    points = tuple(
        ThreadPoint(
            num_threads=count,
            plain=Timing.of(plain[count]),
            verify=Timing.of(verified[count]),
            slowdown=slower[count].value,
            slowdown_low=slower[count].low,
            slowdown_high=slower[count].high,
        )
        for count in sorted(plain)
    )
    return ThreadChoice(min(count for count, one in slower.items() if one.low <= 1.0), context, NUM_VERIFIED, points)


def _against(seconds: Sequence[float], fastest: Sequence[float]) -> Estimate:
    """Return how many times as long forwards take, round by round, with a 95 % interval."""
    pairs = enumerate(zip(seconds, fastest, strict=True))
    return speedup({str(number): [math.log(own / other)] for number, (own, other) in pairs})
