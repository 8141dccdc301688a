"""From jobs to outputs: tokens of each step become text until something ends it, alone or side by side with others."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

from autospec.config import SpecConfig
from autospec.engine.batch import Batch
from autospec.engine.drafters.base import Drafter, fork
from autospec.engine.model import CausalLM
from autospec.engine.options import Chunk
from autospec.engine.session import Job, Session
from autospec.engine.text import GrowingText, TextCodec
from autospec.records import Generation, StepStats


@dataclass(frozen=True, slots=True)
class Ending:
    """What ends an output besides its length.

    Args:
        text: Tokenizer, where there is one.
        stop: Strings that end it.
        eos: Tokens that end it.
    """

    text: TextCodec | None
    stop: tuple[str, ...]
    eos: frozenset[int]


class _Output:
    """What one job has brought so far."""

    def __init__(self, job: Job, ending: Ending) -> None:
        self.job, self._eos = job, ending.eos
        self.growing = GrowingText(ending.text, ending.stop)
        self.token_ids: list[int] = []
        self.stats, self.reason, self._started = StepStats(), "", perf_counter()

    def take(self, tokens: Sequence[int], stats: StepStats) -> list[int]:
        """Add the tokens of a step, up to what ends the output, and return them."""
        self.stats = stats
        kept = self._until_end(tokens)
        stats.drop(len(tokens) - len(kept))
        if not self.reason and stats.num_new_tokens == self.job.max_new_tokens:
            self.reason = "length"
        elapsed = perf_counter() - self._started
        if stats.num_steps:
            stats.gap_seconds.append(elapsed - stats.total_seconds)
        stats.total_seconds = elapsed
        self.token_ids.extend(kept)
        return kept

    def _until_end(self, tokens: Sequence[int]) -> list[int]:
        for place, token in enumerate(tokens, start=1):
            if self.growing.append(token):
                self.reason = "stop"
            elif token in self._eos:
                self.reason = "eos"
            if self.reason:
                return list(tokens[:place])
        return list(tokens)

    def finish(self) -> Generation:
        text = self.growing.show(is_final=True)
        return Generation(tuple(self.token_ids), text, self.stats, self.reason, self.job.prompt_ids)


def run_alone(target: CausalLM, drafter: Drafter | None, job: Job, ending: Ending) -> Generation:
    """Decode one job."""
    output, session = _Output(job, ending), Session(target, drafter, job)
    for tokens in session.run():
        output.take(tokens, session.stats)
        if output.reason:
            break
    session.close()
    return output.finish()


def stream_alone(target: CausalLM, drafter: Drafter | None, job: Job, ending: Ending) -> Iterator[Chunk]:
    """Decode one job and yield what each step adds."""
    output, session = _Output(job, ending), Session(target, drafter, job)
    try:
        for tokens in session.run():
            kept = output.take(tokens, session.stats)
            yield Chunk(output.growing.show(is_final=bool(output.reason)), tuple(kept), output.stats, output.reason)
            if output.reason:
                return
    finally:  # an abandoned stream, too, makes room for the next
        session.close()


class Crew:
    """The drafters of every row of a batch.

    Args:
        drafters: Of each configuration; None is the plain loop.
        num_rows: Rows.

    Raises:
        ConfigError: A drafter serves one prompt at a time.
    """

    def __init__(self, drafters: Mapping[SpecConfig, Drafter | None], num_rows: int) -> None:
        self.num_rows = num_rows
        self._forked = {
            config: [None] * num_rows if drafter is None else fork(drafter, config.drafter, num_rows)
            for config, drafter in drafters.items()
        }

    def of(self, config: SpecConfig, row: int) -> Drafter | None:
        """Return the drafter of a configuration in a row."""
        return self._forked[config][row]


def run_together(target: CausalLM, crew: Crew, jobs: Sequence[Job], ending: Ending) -> list[Generation]:
    """Decode jobs side by side, in order; whoever is done makes room for the next.

    The time of an output counts from when it joined.
    """
    capacity = max(Session.slots_for(crew.of(job.config, 0), job) for job in jobs)
    batch, waiting = Batch(target, crew.num_rows, capacity), deque(enumerate(jobs))
    outputs: dict[Session, tuple[int, _Output]] = {}
    finished: dict[int, Generation] = {}

    def settle(session: Session, tokens: Sequence[int]) -> None:
        number, output = outputs[session]
        output.take(tokens, session.stats)
        if output.reason:
            finished[number] = output.finish()
            del outputs[session]  # what its prompt left behind can be large
            batch.leave(session)

    while len(finished) < len(jobs):
        while waiting and (row := batch.free_row) is not None:
            number, job = waiting.popleft()
            output = _Output(job, ending)
            session, first = batch.join(row, crew.of(job.config, row), job)
            outputs[session] = (number, output)
            settle(session, first)
            if not output.reason:
                session.start_drafter()
        for session, tokens in batch.step() if batch.sessions else ():
            settle(session, tokens)
    return [finished[number] for number in range(len(jobs))]
