"""Replays configurations on a trace: the steps that a live run would take, without running a model.

Exact for greedy decoding and whatever keeps greedy decoding's tokens, and under sampling for the rule that keeps plain
decoding's; what a trace does not decide is refused, or expected (`autospec.replay.expectation`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import numpy as np
from numpy.typing import NDArray

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.costs import CostCurve
from autospec.engine.drafters import Drafter
from autospec.errors import ReplayError, ReplayMiss
from autospec.replay.casting import Cast
from autospec.replay.following import Follower
from autospec.replay.gaps import Gaps
from autospec.replay.listing import walk_listed
from autospec.replay.ranking import follow_ranks, grow_paths
from autospec.replay.recorder import Recorder
from autospec.replay.replayed import Replay, route_of
from autospec.replay.shelf import Shelf, wanted_of
from autospec.replay.tables import StepTable
from autospec.replay.textual import TextTables, drafts_everywhere
from autospec.replay.trace import Trace
from autospec.replay.walking import walk_adaptive, walk_heuristic, walk_plain
from autospec.rules import ACCEPT_RULES


class Simulator:
    """Replays on one trace.

    Args:
        trace: What was recorded.
        drafters: By name, those that the trace alone cannot make: text lookup over files, and drafters of one's own.
            None takes those of the recorder.
        costs: By drafter, for the cost-aware stopping rule; constants stand in for others, as in a decoder.
        recorder: Records what is missed; None raises `ReplayMiss`.
        max_new_tokens: Of every prompt; None takes what was recorded.
        ends: [prompts] after how many tokens each output ends; see `output_ends`. None goes on behind an end of text.
        sampling: What is asked about; its seed does not count. None takes what was recorded.

    Attributes:
        may_record: Whether what is missed is recorded now; otherwise it raises `ReplayMiss`, as without a recorder.

    Raises:
        ReplayError: The trace was recorded under other sampling, or with fewer tokens.
    """

    def __init__(  # noqa: PLR0913  (keywords of one question)
        self,
        trace: Trace,
        drafters: Mapping[str, Drafter] | None = None,
        *,
        costs: Mapping[str, CostCurve] | None = None,
        recorder: Recorder | None = None,
        max_new_tokens: int | None = None,
        ends: Sequence[int] | None = None,
        sampling: SamplingParams | None = None,
    ) -> None:
        _check_sampling(trace, trace.sampling if sampling is None else sampling)
        self.trace, self.costs, self._recorder = trace, dict(costs or {}), recorder
        given = drafters if drafters is not None or recorder is None else recorder.decoder.drafters
        self.may_record = True
        self.cast = Cast(trace, dict(given or {}))
        self.route = route_of(trace, max_new_tokens, ends)
        self.shelf = Shelf(trace, self.costs, np.maximum(self.route.left - 1, 0))
        self._texts = TextTables(trace, self.shelf.most)
        self._follower = Follower(trace, self.route, self.costs)

    def parts_to_record(self, config: SpecConfig) -> tuple[str, ...]:
        """Return the parts of a trace that a configuration reads and a recorder can add to.

        Raises:
            ReplayError: There is no recorder, or a drafter was recorded otherwise.
        """
        if self._recorder is None:
            raise ReplayMiss("what was not recorded can be added by a recorder only, but there is none")
        return Gaps(self.trace, self.cast, self._recorder).parts(config)

    def seconds_to_record(self, configs: Sequence[SpecConfig]) -> float:
        """Return about how long it takes to record what configurations read that read the same parts of the trace."""
        assert self._recorder is not None
        return Gaps(self.trace, self.cast, self._recorder).seconds(configs)

    def record(self, configs: Sequence[SpecConfig]) -> None:
        """Record what configurations would miss, of all of them at once; those that are refused are left out.

        Raises:
            ReplayError: It cannot be recorded.
        """
        self._gaps.look_ahead(configs)
        lacking = []
        for config in configs:
            try:
                self._refuse(config)
                table = self.steps(config)
            except ReplayError:
                continue
            if table.is_missing.any():
                lacking.append((config, table))
        if lacking:
            self._gaps.fill(lacking)

    @property
    def _gaps(self) -> Gaps:
        return Gaps(self.trace, self.cast, self._recorder if self.may_record else None)

    @property
    def drafters(self) -> Mapping[str, Drafter]:
        """The drafters that were given, by name; of a trace alone there are none."""
        return self.cast.given

    def replay(self, config: SpecConfig) -> Replay:
        """Replay one configuration; see `replay_all`."""
        return self.replay_all([config])[0]

    def replay_all(self, configs: Sequence[SpecConfig]) -> list[Replay]:
        """Replay configurations.

        Raises:
            ReplayError: An acceptance rule that may leave the recorded text, or a drafter the trace does not hold.
            ReplayMiss: A draft that is reached was not recorded, and there is no recorder.
        """
        for config in configs:
            self._refuse(config)
        self._gaps.look_ahead(configs)
        tables = [self.steps(config) for config in configs]
        if not tables:
            return []
        visited = walk_plain(np.stack([table.accepted for table in tables]), self.route)
        lacks = [bool((seen & table.is_missing).any()) for seen, table in zip(visited, tables, strict=True)]
        found = [
            None if lack else self._seen(*one)
            for lack, one in zip(lacks, zip(configs, tables, visited, strict=True), strict=True)
        ]
        if any(lacks):
            lacking = [(config, table) for config, table, lack in zip(configs, tables, lacks, strict=True) if lack]
            self._gaps.fill(lacking)
            added = iter(self.replay_all([config for config, _ in lacking]))
            return [next(added) if one is None else one for one in found]
        return [one for one in found if one is not None]

    def steps(self, config: SpecConfig) -> StepTable:
        """Return the step at every position that may be visited; a rule with state is walked first."""
        if config.is_off:
            return StepTable.empty(self.trace.num_positions)
        if not self._is_tabular(config):
            return self._walked(config)
        if config.stop_rule == "adaptive":
            return self._adaptive(config)
        if config.stop_rule == "heuristic":
            tables = self.tables(config)
            chosen = np.maximum(walk_heuristic(tables, config, self.route), 0)
            places = np.arange(len(chosen))
            return StepTable(*(getattr(tables, one.name)[chosen, places] for one in fields(tables)))
        return self._table(config, config.draft_length)

    def _walked(self, config: SpecConfig) -> StepTable:
        """Return the steps of what must be walked along: from lists where there are some, else draft by draft."""
        name = config.drafter_names[0]
        if len(config.drafter_names) == 1 and self.key_of(config, name) is None:
            step = self._texts.stepper(name, self.cast.lookup(name), config)
            if step is not None:
                return walk_listed(step, config, self.route)
        drafter = self.cast.followed(config, self.shelf, self._gaps.recorder)
        return self._follower.follow(drafter, config)

    def tables(self, config: SpecConfig) -> StepTable:
        """Return the steps under every draft length up to the configuration's: [draft_length + 1, positions]."""
        if config.tree_paths:
            return StepTable.stack([self._table(config, limit) for limit in range(config.draft_length + 1)])
        return self._table(config, np.arange(config.draft_length + 1)[:, None])

    def _refuse(self, config: SpecConfig) -> None:
        rule = config.accept_rule
        if config.is_off:
            return
        if self.trace.sampling.is_greedy:
            if not (ACCEPT_RULES[rule].is_lossless or rule == "typical"):
                raise ReplayError(
                    f"a rule that is replayed must keep the target's own tokens, but {rule!r} writes another text "
                    "than the one recorded"
                )
        elif rule != "exact":
            raise ReplayError(
                f"under sampling only accept_rule 'exact' writes the text that was recorded, but got {rule!r}; what "
                "lossless rules do on average, `expected` tells"
            )

    def _is_tabular(self, config: SpecConfig) -> bool:
        """Tell whether what a draft does at a position can be said without walking there."""
        if len(config.drafter_names) > 1 and config.combine == "merge":
            return False
        for name in config.drafter_names:
            if self.key_of(config, name) is None and not self._texts.has_chains(self.cast.lookup(name), config):
                return False
        return config.stop_rule != "adaptive" or len(config.drafter_names) == 1

    def key_of(self, config: SpecConfig, name: str) -> str | None:
        """Return under which name a drafter was recorded; None where its rows were not."""
        return self.cast.key_of(config, name)

    def _table(self, config: SpecConfig, limit: int | NDArray[np.int64]) -> StepTable:
        parts = [self.part(config, name, limit) for name in config.drafter_names]
        table = parts[0]
        for part in parts[1:]:
            table = table.or_else(part)
        return table

    def part(self, config: SpecConfig, name: str, limit: int | NDArray[np.int64]) -> StepTable:
        """Return the steps of one of the drafters of a configuration: [positions], or [limits, positions].

        Args:
            config: What is drafted.
            name: Of the drafter.
            limit: Longest draft; or [limits, 1] several.
        """
        key = self.key_of(config, name)
        if key is None:
            return self._looked_up(config, name, np.minimum(self.shelf.most, limit))
        limits = self.shelf.limits(key, limit)
        if config.tree_shape == "chain":
            chains = self.shelf.chain(key, config, config.draft_length)
            return chains.table(np.minimum(self.shelf.stops(key, config, config.draft_length), limits))
        if config.tree_shape in ("static", "optimal"):
            self.shelf.check_width(key, config)
            forest, places = self.trace.forests[key], np.arange(self.trace.num_positions)
            wanted = wanted_of(self.trace, places, limits)
            sampling = config.draft_sampling(self.trace.sampling)
            if sampling.is_greedy or (sampling.top_k == 0 and sampling.top_p == 1.0):
                return follow_ranks(forest, config, wanted, limits)
            return grow_paths(forest, config, wanted, limits, places)
        table, places = self.shelf.layers(key, config).table, np.arange(self.trace.num_positions)
        return StepTable(*(getattr(table, one.name)[limits, places] for one in fields(table)))

    def _looked_up(self, config: SpecConfig, name: str, limits: NDArray[np.int64]) -> StepTable:
        if (lookup := self.cast.lookup(name)) is None:
            raise ReplayError(f"a drafter must be recorded position by position or look text up, but got {name!r}")
        if not self._texts.has_chains(lookup, config):
            return drafts_everywhere(self.trace, lookup, config, limits)
        return self._texts.chains(name, lookup, config, limits)

    def _adaptive(self, config: SpecConfig) -> StepTable:
        key = self.key_of(config, config.drafter)
        if key is None:
            raise ReplayError(f"stop_rule 'adaptive' needs draft probabilities, but got {config.drafter!r}")
        chains = self.shelf.chain(key, config, config.draft_length)
        limits = self.shelf.limits(key, config.draft_length)
        return chains.table(np.maximum(walk_adaptive(chains, limits, config, self.route), 0))

    def _seen(self, config: SpecConfig, table: StepTable, visited: NDArray[np.bool_]) -> Replay:
        places = np.nonzero(visited)[0]
        names = ("nodes", "depth", "accepted", "tested", "calls", "run")
        counts = {name: getattr(table, name)[places] for name in names}
        prompts, contexts = self.trace.prompt_of[places], self.trace.contexts[places]
        return Replay(config, prompts, contexts, dropped=self._dropped(places, counts["accepted"]), **counts)

    def _dropped(self, places: NDArray[np.int64], accepted: NDArray[np.int16]) -> NDArray[np.int64]:
        """Return how many tokens each prompt's last step wrote behind the end of its output."""
        prompts = self.trace.prompt_of[places]
        overshoot = places + accepted + 1 - self.route.ends[places]
        dropped = np.zeros(len(self.trace.prompts), dtype=np.int64)
        np.maximum.at(dropped, prompts, np.maximum(overshoot, 0))
        return dropped


def _check_sampling(trace: Trace, asked: SamplingParams) -> None:
    recorded = trace.sampling
    both_greedy = asked.is_greedy and recorded.is_greedy
    if not both_greedy and replace(asked, seed=0) != replace(recorded, seed=0):
        raise ReplayError(f"a trace must be recorded under the sampling asked for, {asked}, but this is of {recorded}")
