"""What is measured behind one context: the plain loop, target forwards of every size, every drafter; and batches.

All of them share one prefill of the target and take turns, so that a machine that is slow for a while is slow for all.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from autospec.config import SpecConfig
from autospec.engine.drafters import Drafter, EarlyExitDrafter
from autospec.engine.session import Job, Session
from autospec.profiling.batches import BatchVisit
from autospec.profiling.memory import cache_bytes
from autospec.profiling.probe import MAX_GROWTH, Probe, ScriptDrafter, without_collector
from autospec.profiling.samples import Samples, StepKey, Subject
from autospec.profiling.settings import STEP_ROOM, ProfileSettings

_NUM_PLAIN_STEPS = 4  # in each round
_TREE_DEPTHS, _DEEPEST_TREE = (1, 2, 4, 8, 16), 8


class Visit(Protocol):
    """One thing that is measured again and again."""

    def run(self, samples: Samples, order: random.Random) -> None:
        """Measure everything of it once, in an order that is drawn, and add it to the samples."""
        ...


class StepVisit:
    """Steps of one session with drafts of several depths.

    Args:
        probe: Takes the steps.
        key: What they are alike in, but for the depth.
        depths: Of their drafts.
        is_exact: The drafter always drafts what it is asked for, where it can; depths that it cannot reach are no
            longer asked for. Of others, such as retrieval, every draft counts, an empty one too.
    """

    def __init__(self, probe: Probe, key: StepKey, depths: Sequence[int], is_exact: bool = False) -> None:
        self._probe, self._key, self._depths, self._is_exact = probe, key, list(depths), is_exact

    def run(self, samples: Samples, order: random.Random) -> None:
        """See `Visit`."""
        key = self._key
        # Up or down, not at random: a small forward right behind a large one, which has emptied the caches, takes 4 to
        # 7 % longer than behind one of about its size, and in real texts steps are about as large as those before.
        depths = sorted(self._depths, reverse=order.random() < 0.5)
        with without_collector():
            first = self._probe.restart()
            if key.drafter and key.width == 1:
                samples.first_drafts[key.drafter, key.exit_layer, key.context_length].append(first)
            for depth in depths:
                times = self._probe.step(depth)
                if self._is_exact and times.num_nodes != key.width * depth:
                    self._depths.remove(depth)
                else:
                    samples.steps[replace(key, depth=depth)].append(times)


@dataclass(slots=True)
class Place:
    """One context, about to be measured.

    Args:
        subject: What is profiled.
        settings: What to measure of it.
        context_length: Tokens of the prompt.
        is_reference: Everything is measured here; elsewhere fewer sizes and depths.
    """

    subject: Subject
    settings: ProfileSettings
    context_length: int
    is_reference: bool

    @property
    def num_new(self) -> int:
        """Tokens for which there is room behind the context, as far as any are needed."""
        return min(
            self.subject.target.usable_length - self.context_length,
            max(self.settings.max_tokens, self.settings.draft_lengths[-1] + 1) + MAX_GROWTH + STEP_ROOM,
        )

    @property
    def capacity(self) -> int:
        """Slots of the target's cache that every session here can do with."""
        return self.context_length + self.num_new + self.settings.max_tokens

    def visits(self, samples: Samples) -> Iterator[Visit]:
        """Run the prompt and yield what is to be measured behind it."""
        root = self._root("", None)
        samples.prefills["", 1, self.context_length].append(root.stats.prefill_seconds)
        samples.kv_bytes_per_token = cache_bytes(root.cache) / root.cache.capacity
        yield StepVisit(self._probe(root), StepKey("", 0, 0, self.context_length), [0] * _NUM_PLAIN_STEPS)
        settings = self.settings
        sizes = settings.num_tokens if self.is_reference else settings.fewer_tokens
        text = self.subject.token_ids
        script = ScriptDrafter(text[len(text) // 2 :] + text[: len(text) // 2])
        twin = root.twin(script, self._job(SpecConfig("script", 1)))
        # Steps without a draft come in rows, like those of the plain loop, so they are measured as often in a row.
        depths = [*(0,) * (_NUM_PLAIN_STEPS - 1), *self._fitting([size - 1 for size in sizes])]
        yield StepVisit(self._probe(twin), StepKey("", 0, 1, self.context_length), depths)
        for name, drafter in self.subject.drafters.items():
            yield from self._drafter_visits(name, drafter, root, samples)
        yield from self._batch_visits(samples)

    def _drafter_visits(self, name: str, drafter: Drafter, root: Session, samples: Samples) -> Iterator[StepVisit]:
        if drafter.needs.anything:
            root = self._root(name, drafter)
            samples.prefills[name, 1, self.context_length].append(root.stats.prefill_seconds)
        for exit_layer in exit_layers(drafter, self.settings):
            lengths = self.settings.draft_lengths
            chains = lengths if self.is_reference else [one for one in lengths if one in (*_TREE_DEPTHS, lengths[-1])]
            yield self._visit(root, StepKey(name, exit_layer, 1, self.context_length), chains)
            if "static" in drafter.shapes:
                for width in self.settings.widths:
                    depths = tree_depths(width, self.settings)
                    if depths:
                        yield self._visit(root, StepKey(name, exit_layer, width, self.context_length), depths)

    def _visit(self, root: Session, key: StepKey, depths: Sequence[int]) -> StepVisit:
        depths = self._fitting(depths)
        drafter, deepest = self.subject.drafters[key.drafter], max(depths, default=1)
        config = SpecConfig(key.drafter, deepest, exit_layer=key.exit_layer)
        if key.width > 1:
            paths = comb_paths(key.width, deepest)
            config = replace(config, tree_shape="static", tree_paths=paths)
        probe = self._probe(root.twin(drafter, self._job(config)))
        return StepVisit(probe, key, depths, is_exact=drafter.has_probs)

    def _batch_visits(self, samples: Samples) -> Iterator[BatchVisit]:
        for batch_size in self.settings.batch_sizes:
            most = self.settings.max_tokens // batch_size
            sizes = [one for one in self.settings.fewer_tokens if one <= most and one < self.num_new]
            if sizes:
                visit = BatchVisit(self.subject, batch_size, self.context_length, sizes)
                visit.open(samples)
                yield visit

    def _root(self, name: str, drafter: Drafter | None) -> Session:
        """Return a session behind its prefill, in a cache with room for all its twins."""
        config = SpecConfig(name, 1) if drafter is not None else SpecConfig()
        session = Session(self.subject.target, drafter, self._job(config), self.subject.watch.now)
        session.cache = self.subject.target.new_cache(self.capacity)
        session.prefill()
        return session

    def _job(self, config: SpecConfig) -> Job:
        prompt, sampling = self.subject.token_ids[: self.context_length], self.subject.sampling
        return Job(prompt, config, sampling, sampling.seed, self.num_new)

    def _probe(self, session: Session) -> Probe:
        return Probe(session, self.context_length, self.subject.watch)

    def _fitting(self, depths: Sequence[int]) -> list[int]:
        return [depth for depth in depths if depth + 1 + STEP_ROOM <= self.num_new]


def default_exit_layer(drafter: Drafter) -> int:
    """Return how many first layers draft where a configuration says 0; 0 for drafters without that choice."""
    if not isinstance(drafter, EarlyExitDrafter) or drafter.layers:
        return 0
    return (drafter.target.num_layers + 1) // 2


def exit_layers(drafter: Drafter, settings: ProfileSettings) -> tuple[int, ...]:
    """Return with how many first layers a drafter is measured; 0 where it has no such choice."""
    default = default_exit_layer(drafter)
    if not default or not isinstance(drafter, EarlyExitDrafter):
        return (0,)
    total = drafter.target.num_layers
    chosen = {default, *(settings.exit_layers or (1, 3 * total // 4))}
    return tuple(sorted(layer for layer in chosen if 1 <= layer < total))


def tree_depths(width: int, settings: ProfileSettings) -> list[int]:
    """Return the depths of the trees of one width: combs, of `width` teeth, within `max_tokens`."""
    most = (settings.max_tokens - 1) // width
    longest = settings.draft_lengths[-1]
    chosen = {one for one in _TREE_DEPTHS if one <= most} | ({min(most, _DEEPEST_TREE)} if most else set())
    return sorted(one for one in chosen if one <= longest)


def comb_paths(width: int, depth: int) -> tuple[tuple[int, ...], ...]:
    """Return the rank paths of `width` chains side by side: every draft forward but the first runs `width` rows."""
    return tuple((rank, *(0,) * below) for rank in range(width) for below in range(depth))
