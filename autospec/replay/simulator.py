"""Replays configurations on a trace: the steps that a live run would take, without running a model.

Exact for greedy decoding and whatever keeps greedy decoding's tokens; what a trace does not decide is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.costs import CONSTANT_COSTS, CostCurve
from autospec.engine.drafters import Drafter
from autospec.errors import ConfigError, ReplayError, ReplayMiss
from autospec.records import StepStats
from autospec.replay.branching import follow_ranks, grow_layers
from autospec.replay.recorder import Recorder, wanted_of
from autospec.replay.tables import Chains, StepTable
from autospec.replay.textual import TextTables, made_of
from autospec.replay.trace import Trace
from autospec.replay.walking import Route, walk_adaptive, walk_heuristic, walk_plain
from autospec.rules import ACCEPT_RULES

_LADDER_DEPTH = 16


@dataclass(frozen=True, slots=True)
class Replay:
    """The steps of one configuration, those of the first prompt first: arrays [steps].

    Args:
        config: What was replayed.
        prompts: Row of the prompt in the trace.
        contexts: Tokens of the text when the step began; the target's cache held one fewer.
        nodes: Draft tokens verified; the target's forward ran one more.
        depth: Of the draft.
        accepted: Of them kept; one more token was written.
        tested: Positions put to the test.
        calls: Forwards of draft models, the first of each behind the text.
        run: Draft nodes that the forwards behind the first ran, all together.
        num_prompts: In the trace.
    """

    config: SpecConfig
    prompts: NDArray[np.int64]
    contexts: NDArray[np.int64]
    nodes: NDArray[np.int16]
    depth: NDArray[np.int16]
    accepted: NDArray[np.int16]
    tested: NDArray[np.int16]
    calls: NDArray[np.int16]
    run: NDArray[np.int16]
    num_prompts: int

    def per_prompt(self, counts: NDArray[np.int16] | None = None) -> NDArray[np.int64]:
        """Return the sum of one of the arrays for every prompt, or how many steps it has: [prompts]."""
        weights = None if counts is None else counts.astype(np.float64)
        return np.bincount(self.prompts, weights, minlength=self.num_prompts).astype(np.int64)

    def stats(self, row: int) -> StepStats:
        """Return the counts of one prompt, as a live run whose length ended it has them; its seconds are 0."""
        stats, own = StepStats(num_new_tokens=1), self.prompts == row
        for nodes, accepted, tested in zip(
            self.nodes[own].tolist(), self.accepted[own].tolist(), self.tested[own].tolist(), strict=True
        ):
            stats.add_step(nodes, accepted, tested)
            stats.num_new_tokens += accepted + 1
        return stats


class Simulator:
    """Replays on one trace.

    Args:
        trace: What was recorded.
        drafters: By name, those that look text up and need more than the trace knows of them.
        costs: For the cost-aware stopping rule.
        recorder: Records what is missed; None raises `ReplayMiss`.
        max_new_tokens: Of every prompt; None takes what was recorded.
        sampling: What is asked about; its seed does not count. None takes what was recorded.

    Raises:
        ReplayError: The trace was recorded under other sampling, or with fewer tokens.
    """

    def __init__(
        self,
        trace: Trace,
        drafters: Mapping[str, Drafter] | None = None,
        *,
        costs: CostCurve = CONSTANT_COSTS,
        recorder: Recorder | None = None,
        max_new_tokens: int | None = None,
        sampling: SamplingParams | None = None,
    ) -> None:
        _check_sampling(trace, trace.sampling if sampling is None else sampling)
        self.trace, self._costs, self._recorder = trace, costs, recorder
        self._drafters, self._texts = dict(drafters or {}), dict[str, TextTables]()
        left = trace.left(max_new_tokens)
        ends = trace.position_starts[1:][trace.prompt_of]
        self._route = Route(trace.position_starts[:-1], left, ends)
        self._most = np.maximum(left - 1, 0)
        self._chains: dict[tuple[str, int, int], Chains] = {}
        self._ladders: dict[tuple[object, ...], StepTable] = {}

    def replay(self, config: SpecConfig) -> Replay:
        """Replay one configuration; see `replay_all`."""
        return self.replay_all([config])[0]

    def replay_all(self, configs: Sequence[SpecConfig]) -> list[Replay]:
        """Replay configurations.

        Raises:
            ReplayError: An acceptance rule that may leave the recorded text, or a drafter the trace does not hold.
            ReplayMiss: A draft that is reached was not recorded, and there is no recorder.
        """
        tables = [self._steps(config) for config in configs]
        if not tables:
            return []
        visited = walk_plain(np.stack([table.accepted for table in tables]), self._route)
        return [self._seen(*one) for one in zip(configs, tables, visited, strict=True)]

    def _steps(self, config: SpecConfig) -> StepTable:
        """Return the step at every position; a rule with state is walked first, so that the position decides."""
        self._refuse(config)
        if config.is_off:
            return StepTable.empty(self.trace.num_positions)
        if config.stop_rule == "adaptive":
            return self._adaptive(config)
        if config.stop_rule == "heuristic":
            tables = StepTable.stack([self._table(config, limit) for limit in range(config.draft_length + 1)])
            chosen = np.maximum(walk_heuristic(tables, config, self._route), 0)
            places = np.arange(len(chosen))
            return StepTable(*(getattr(tables, one.name)[chosen, places] for one in fields(tables)))
        return self._table(config, config.draft_length)

    def _refuse(self, config: SpecConfig) -> None:
        if not (ACCEPT_RULES[config.accept_rule].is_lossless or config.accept_rule == "typical" or config.is_off):
            raise ReplayError(
                f"a rule that is replayed must keep the target's own tokens, but {config.accept_rule!r} writes "
                "another text than the one recorded"
            )
        if len(config.drafter_names) > 1 and config.combine == "merge":
            raise ReplayError(f"drafts that are merged cannot be replayed yet, but got {config.drafter!r}")

    def _table(self, config: SpecConfig, limit: int) -> StepTable:
        limits = np.minimum(self._most, limit)
        parts = [self._part(config, name, limits) for name in config.drafter_names]
        table = parts[0]
        for part in parts[1:]:
            table = table.or_else(part)
        return table

    def _part(self, config: SpecConfig, name: str, limits: NDArray[np.int64]) -> StepTable:
        key = self._key(config, name)
        if key is None:
            return self._text(name).table(config, limits)
        limits = np.clip(limits, 0, np.maximum(self.trace.rooms[key] - self.trace.contexts + 1, 0))
        if config.tree_shape == "chain":
            chains = self._chain(key, int(limits.max(initial=0)))
            return chains.table(np.minimum(chains.stops(config, self._costs), limits))
        self._check_width(config, key)
        if config.tree_shape in ("static", "optimal"):
            forest, places = self.trace.forests[key], np.arange(len(limits))
            return follow_ranks(forest, config, wanted_of(self.trace, places, limits), limits, places)
        ladder, places = self._ladder(config, key), np.arange(len(limits))
        return StepTable(*(getattr(ladder, one.name)[limits, places] for one in fields(ladder)))

    def _key(self, config: SpecConfig, name: str) -> str | None:
        """Return under which name a drafter was recorded; None where it is recomputed."""
        return self.trace.key_of(name, config.exit_layer)

    def _text(self, name: str) -> TextTables:
        if name not in self._texts:
            source = self.trace.sources.get(name)
            drafter = self._drafters.get(name) or (made_of(source) if source else None)
            if drafter is None:
                raise ReplayError(f"a drafter must be recorded or given, but {name!r} is neither")
            self._texts[name] = TextTables(self.trace, drafter, name)
        return self._texts[name]

    def _check_width(self, config: SpecConfig, key: str) -> None:
        ranks = max((rank for path in config.tree_paths for rank in path), default=0) + 1
        wanted = ranks if config.tree_paths else config.tree_width
        if wanted > self.trace.forests[key].width:
            raise ReplayMiss(f"a node was recorded with {self.trace.forests[key].width} candidates, not {wanted}")

    def _chain(self, key: str, depth: int) -> Chains:
        forest = self.trace.forests[key]
        known = (key, depth, forest.num_nodes)
        if known not in self._chains:
            self._chains[known] = Chains.of(forest, self.trace.next_tokens, depth)
        return self._chains[known]

    def _adaptive(self, config: SpecConfig) -> StepTable:
        if len(config.drafter_names) > 1 or (key := self._key(config, config.drafter)) is None:
            raise ConfigError(f"stop_rule 'adaptive' needs draft probabilities, but got {config.drafter!r}")
        limits = np.minimum(self._most, config.draft_length)
        limits = np.clip(limits, 0, np.maximum(self.trace.rooms[key] - self.trace.contexts + 1, 0))
        chains = self._chain(key, int(limits.max(initial=0)))
        return chains.table(np.maximum(walk_adaptive(chains, limits, config, self._route), 0))

    def _ladder(self, config: SpecConfig, key: str) -> StepTable:
        forest, least = self.trace.forests[key], config.stop_threshold * (config.stop_rule == "cumulative")
        shape = (config.tree_shape, config.tree_width, config.tree_nodes)
        depth = max(_LADDER_DEPTH, config.draft_length)  # one growth serves every shorter draft
        known = (key, forest.num_nodes, *shape, least, depth)
        if known not in self._ladders:
            places = np.arange(self.trace.num_positions)
            limits = np.minimum(self._most, depth)
            limits = np.clip(limits, 0, np.maximum(self.trace.rooms[key] - self.trace.contexts + 1, 0))
            wanted = wanted_of(self.trace, places, limits)
            self._ladders[known] = grow_layers(forest, config, wanted, limits, places)
        return self._ladders[known]

    def _seen(self, config: SpecConfig, table: StepTable, visited: NDArray[np.bool_]) -> Replay:
        places = np.nonzero(visited)[0]
        missing = places[table.is_missing[places]]
        if len(missing):
            if self._recorder is None:
                raise ReplayMiss(
                    f"every draft that is reached must be recorded, but under {config.short()} those at "
                    f"{len(missing)} positions are not"
                )
            self._record(config, missing)
            return self.replay(config)
        names = ("nodes", "depth", "accepted", "tested", "calls", "run")
        counts = {name: getattr(table, name)[places] for name in names}
        prompts = self.trace.prompt_of[places]
        return Replay(config, prompts, self.trace.contexts[places], num_prompts=len(self.trace.prompts), **counts)

    def _record(self, config: SpecConfig, missing: NDArray[np.int64]) -> None:
        """Record what a configuration drafts at positions, of every drafter in it that is recorded."""
        assert self._recorder is not None
        chain = SpecConfig("x", 1, tree_shape="best_first", tree_width=1, tree_nodes=config.draft_length)
        wanted = chain if config.tree_shape == "chain" else config
        for name in config.drafter_names:
            if (key := self._key(config, name)) is None:
                continue
            forest, adders = self.trace.forests[key], self._recorder.adders(self.trace, key)
            limits = np.minimum(self.trace.left() - 1, config.draft_length)
            limits = np.clip(limits, 0, np.maximum(self.trace.rooms[key] - self.trace.contexts + 1, 0))
            for row in np.unique(self.trace.prompt_of[missing]).tolist():
                places = missing[self.trace.prompt_of[missing] == row]
                tokens = wanted_of(self.trace, places, limits)
                grow_layers(forest, wanted, tokens, limits[places], places, adders[row])


def _check_sampling(trace: Trace, asked: SamplingParams) -> None:
    recorded = trace.sampling
    both_greedy = asked.is_greedy and recorded.is_greedy
    if not both_greedy and replace(asked, seed=0) != replace(recorded, seed=0):
        raise ReplayError(f"a trace must be recorded under the sampling asked for, {asked}, but this is of {recorded}")
