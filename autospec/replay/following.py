"""Walks a configuration along the recorded texts step by step, as a live run would, the target left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autospec.config import SpecConfig
from autospec.engine.cache import KVCache
from autospec.engine.costs import CostCurve, costs_of
from autospec.engine.drafters import Drafter, DraftPlan
from autospec.engine.termination import Stopping
from autospec.replay.drafts import FollowsRows, RecordedDrafter, parts_of
from autospec.replay.tables import StepTable
from autospec.replay.trace import Trace
from autospec.replay.walking import Route


@dataclass(frozen=True, slots=True)
class Follower:
    """Follows texts.

    Args:
        trace: The texts.
        route: How far each is followed.
        costs: By drafter, for the cost-aware stopping rule.
    """

    trace: Trace
    route: Route
    costs: Mapping[str, CostCurve]

    def follow(self, drafter: Drafter, config: SpecConfig) -> StepTable:
        """Return the steps at the positions that are visited; the others stay empty."""
        table = StepTable.empty(self.trace.num_positions)
        for row in range(len(self.trace.prompts)):
            self._follow(drafter, config, row, table)
        return table

    def _follow(self, drafter: Drafter, config: SpecConfig, row: int, table: StepTable) -> None:
        trace, prompt, output = self.trace, self.trace.prompt_ids(row), self.trace.output_ids(row)
        first, stopping = int(trace.position_starts[row]), Stopping(config, costs_of(self.costs, config.drafter))
        parts = parts_of(drafter)
        for part in parts:
            if isinstance(part, FollowsRows):
                part.begin(row)
        recorded = [part for part in parts if isinstance(part, RecordedDrafter)]
        sampling = config.draft_sampling(trace.sampling)
        capacity = len(prompt) + len(output)
        drafter.start(
            prompt, DraftPlan(config, sampling, trace.prompts[row].seed, capacity, stopping, KVCache(capacity))
        )
        drafter.commit(output[:1])
        place = 0 if self.route.begins(first) else -1
        while place >= 0:
            position = first + place
            limit = min(stopping.limit, int(self.route.left[position]) - 1)
            before = _spent(recorded)
            tree = drafter.propose(limit)
            depth, accepted = table.put(position, tree, output[place + 1 : place + 1 + limit])
            if recorded:
                calls, run = _spent(recorded)
                table.calls[position], table.run[position] = calls - before[0], run - before[1]
            stopping.observe(depth, accepted)
            drafter.commit(output[place + 1 : place + accepted + 2])
            place = self.route.after(position, accepted) - first


def _spent(parts: Sequence[RecordedDrafter]) -> tuple[int, int]:
    return sum(part.calls for part in parts), sum(part.run for part in parts)
