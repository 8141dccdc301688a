"""Which context is measured when, and for how long: all of them a little, then again while there is time.

Knows what a visit is, not what it measures.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from autospec.engine.memory import free_bytes
from autospec.errors import MeasurementError
from autospec.profiling.samples import Samples, Subject
from autospec.profiling.settings import ProfileSettings
from autospec.profiling.visits import Place

_ROUNDS_AT_ONCE = 3  # of one context, before another's turn comes
_WARM_UP_SHARE = 0.1  # of the budget
_MEMORY_SHARE = 0.5  # of what is free, for the caches of one context

# Told what is being measured, and which share of the budget was used before.
OnProgress = Callable[[str, float], None]


@dataclass(slots=True)
class Campaign:
    """Measures a subject within a budget.

    Args:
        subject: What is profiled.
        settings: What to measure, and the budget.
        on_progress: Told what is being measured.
        samples: All timings so far.
        left_out: A sentence for everything that was not measured.
    """

    subject: Subject
    settings: ProfileSettings
    on_progress: OnProgress
    samples: Samples = field(default_factory=Samples)
    left_out: list[str] = field(default_factory=list)
    _rounds: dict[int, int] = field(default_factory=dict)
    _seconds: dict[int, float] = field(default_factory=dict)  # of the last turn of each context
    _started: float = 0.0

    def run(self) -> None:
        """Measure.

        Raises:
            MeasurementError: There is no context that fits the target and the text.
        """
        contexts = self._contexts()
        self._started = self.subject.watch.now()
        self._warm_up(contexts[0])
        for number, context in enumerate(contexts, start=1):
            share = number / len(contexts)
            if number > 1 and self._used >= 1.0:
                self.left_out.append(f"context {context}: the budget was used up")
            else:
                self._turn(context, contexts[0], share)
        for context in itertools.cycle(contexts):
            ready = [one for one in contexts if self._can_repeat(one)]
            if not ready:
                return
            if context in ready:
                self._turn(context, contexts[0], 1.0)

    @property
    def _used(self) -> float:
        """Share of the budget that was used."""
        return (self.subject.watch.now() - self._started) / self.settings.budget_seconds

    def _contexts(self) -> tuple[int, ...]:
        target, num_text = self.subject.target, len(self.subject.token_ids)
        contexts = self.settings.contexts_of(target.usable_length, num_text)
        for asked in sorted(set(self.settings.contexts) - set(contexts)):
            self.left_out.append(
                f"context {asked}: the target takes {target.usable_length} tokens, the workload has {num_text}"
            )
        if not contexts:
            raise MeasurementError(
                f"a context must leave room for steps, but the target takes {target.usable_length} tokens and the "
                f"workload has {num_text}"
            )
        return contexts

    def _can_repeat(self, context: int) -> bool:
        if context not in self._rounds or self._rounds[context] >= self.settings.max_rounds:
            return False
        return self._used + self._seconds[context] / self.settings.budget_seconds <= 1.0

    def _warm_up(self, context: int) -> None:
        """Run everything once at first, or as much of it as fits: kernels are chosen and memory is taken meanwhile."""
        nowhere, order = Samples(), random.Random(self.settings.seed)
        self.on_progress("warm-up", 0.0)
        for visit in Place(self.subject, self.settings, context, is_reference=True).visits(nowhere):
            visit.run(nowhere, order)
            if self._used > _WARM_UP_SHARE:
                return

    def _turn(self, context: int, reference: int, share: float) -> None:
        """Measure one context for some rounds, at least one, or until a share of the budget is used."""
        began, place = self.subject.watch.now(), Place(self.subject, self.settings, context, context == reference)
        if refusal := self._memory_refusal(place):
            self.left_out.append(f"context {context}: {refusal}")
            return
        try:
            visits = list(place.visits(self.samples))
            done = self._rounds.get(context, 0)
            for number in range(done, min(done + _ROUNDS_AT_ONCE, self.settings.max_rounds)):
                if number > done and self._used > share:
                    break
                self.on_progress(f"context {context}, round {number + 1}", self._used)
                order = random.Random(f"{self.settings.seed} {context} {number}")
                order.shuffle(visits)
                for visit in visits:
                    visit.run(self.samples, order)
                self._rounds[context] = number + 1
        except torch.OutOfMemoryError:
            self._rounds.pop(context, None)
            self.left_out.append(f"context {context}: out of memory, what was measured until then is kept")
        self._seconds[context] = self.subject.watch.now() - began

    def _memory_refusal(self, place: Place) -> str:
        """Say why the caches of a context do not fit; nothing where they do, or nobody knows yet."""
        subject = self.subject
        num_caches = 1 + sum(drafter.needs.anything for drafter in subject.drafters.values())
        num_tokens = place.capacity * num_caches + 2 * place.context_length * sum(self.settings.batch_sizes)
        needed = num_tokens * self.samples.kv_bytes_per_token
        free = free_bytes(subject.target.device)
        if needed <= _MEMORY_SHARE * free:
            return ""
        return f"its caches take {needed / 2**30:.1f} GiB, of {free / 2**30:.1f} GiB that are free"
