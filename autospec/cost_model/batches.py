"""What batches take: recorded prompts in groups, which take their steps together until the last of each is done.

A row whose drafts are accepted leaves early, and the others go on with fewer beside them: that is why speculation pays
less in a batch than the mean of its rows would say.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autospec.config import SpecConfig
from autospec.cost_model.recorded import RecordedSteps
from autospec.cost_model.steps import Floats, StepCosts
from autospec.engine.drafters.base import drafts_together
from autospec.errors import MeasurementError, ReplayError
from autospec.replay import Expectation

_NUM_GROUPS = 16  # drawn from the recorded prompts


class BatchPrices:
    """Prices configurations in batches.

    Args:
        recorded: Steps of one prompt at a time.
        costs: Of these.
        batch_size: Prompts side by side.

    Raises:
        MeasurementError: The profile has no target forwards of so many rows, or there are fewer prompts.
    """

    def __init__(self, recorded: RecordedSteps, costs: StepCosts, batch_size: int) -> None:
        lengths = recorded.lengths
        if batch_size > len(lengths):
            raise MeasurementError(f"a batch needs as many recorded prompts, {batch_size}, but got {len(lengths)}")
        self._recorded, self._costs, self._size = recorded, costs, batch_size
        self._together = {name for name, one in recorded.simulator.drafters.items() if drafts_together(one)}
        rng = np.random.default_rng(0)
        self._groups = [rng.permutation(len(lengths))[:batch_size] for _ in range(_NUM_GROUPS)]
        self._context = int(recorded.contexts.mean()) - 1
        self._forwards = self._measured()
        self._plain = self._seconds(recorded.of(SpecConfig()))

    def log_speedups(self, configs: Sequence[SpecConfig]) -> list[float | None]:
        """Return means over groups; None for what trace or profile cannot tell of."""
        return [self._log_speedup(config) for config in configs]

    def _log_speedup(self, config: SpecConfig) -> float | None:
        try:
            steps = self._recorded.of(config)
            if not steps.is_exact:  # which row is done when has chances
                return None
            return float(np.log(self._plain / self._seconds(steps)).mean())
        except (ReplayError, MeasurementError):
            return None

    def _measured(self) -> Floats:
        """Return target forwards by rows and tokens of each: [batch_size + 1, most tokens + 1], infinite unknown."""
        profile = self._costs.profile
        profile.target_seconds(1, self._context, self._size)
        known = sorted({point.num_tokens for point in profile.target_points if point.batch_size == self._size})
        most = known[-1]
        table = np.full((self._size + 1, most + 1), np.inf)
        for rows in range(1, self._size + 1):
            for num_tokens in range(1, most + 1):
                table[rows, num_tokens] = profile.target_seconds(num_tokens, self._context, rows)
        return table

    def _seconds(self, steps: Expectation) -> Floats:
        """Return what each group takes, prompts and all: [groups]."""
        config, num_prompts = steps.config, steps.num_prompts
        counts = np.bincount(steps.prompts, minlength=num_prompts)
        order = np.lexsort((steps.contexts, steps.prompts))
        places = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        shape = (num_prompts, int(counts.max(initial=0)))
        own, apart = self._costs.around(steps), np.zeros(len(order))
        shared = np.zeros(len(order))
        for name in config.drafter_names:
            drafts = self._costs.drafts(name, steps)
            if config.drafter_names == (name,) and name in self._together:  # combined ones draft row by row
                shared = shared + drafts
            else:
                apart = apart + drafts
        firsts = self._costs.starts(steps) + self._costs.first_drafts(steps)
        prompts = self._costs.prefills(self._recorded.lengths, config) + firsts
        rows, filled = steps.prompts[order], {}
        for name, values in (("tokens", steps.nodes + 1.0), ("own", own + apart), ("shared", shared)):
            filled[name] = np.zeros(shape)
            filled[name][rows, places] = values[order]
        depth = int(steps.calls.max(initial=0))
        return np.array([self._group(group, filled, depth, config) + prompts[group].sum() for group in self._groups])

    def _group(self, group: NDArray[np.int64], filled: dict[str, Floats], depth: int, config: SpecConfig) -> float:
        """Return what the steps of one group take."""
        tokens = filled["tokens"][group]
        active = (tokens > 0).sum(axis=0)
        active = active[active > 0]
        num = len(active)
        each = tokens[:, :num].sum(axis=0) / active
        low = np.floor(each).astype(np.int64)
        high = np.minimum(low + 1, self._forwards.shape[1] - 1)
        if (np.ceil(each) >= self._forwards.shape[1]).any():
            raise MeasurementError(f"{self._forwards.shape[1] - 1} tokens of each row were measured at most")
        first, second = self._forwards[active, low], self._forwards[active, high]
        total = (first + (second - first) * (each - low)).sum() + filled["own"][group].sum()
        if filled["shared"].any():
            total += (filled["shared"][group][:, :num].max(axis=0) * self._growth(config, depth)[active]).sum()
        return float(total)

    def _growth(self, config: SpecConfig, depth: int) -> Floats:
        """Return by how much a draft takes longer, by the rows that share its forwards: [batch_size + 1]."""
        profile, factors = self._costs.profile, np.ones(self._size + 1)
        (name,) = config.drafter_names
        where = {"exit_layer": config.exit_layer}
        alone = profile.draft_seconds(name, depth, self._context, **where)
        for rows in range(2, self._size + 1):
            factors[rows] = profile.draft_seconds(name, depth, self._context, width=rows, **where) / alone
        return factors
