"""What a study looks for: one small object for each `study.objective`.

It knows by which yardstick a configuration is compared with plain decoding, which values of a trial Optuna is told,
what memory is, and what goes on from the search besides the best. All the rest is the same for each of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from autospec.config import SpecConfig
from autospec.policy import quality_from
from autospec.records import Measurement
from autospec.tuning.pareto import Axes, loss_of, memory_of, pareto_configs
from autospec.yardsticks import DECISIVE, Yardstick

Direction = Literal["maximize", "minimize"]


@dataclass(frozen=True, slots=True)
class Goal:
    """The best by one yardstick; quality and memory are limits.

    Args:
        yardstick: Of what is searched, confirmed and claimed.
        directions: Of the values of a trial, as Optuna names them.
        axes: What the Pareto set is of besides speed.
        memory: How it counts memory.
    """

    yardstick: Yardstick
    directions: tuple[Direction, ...] = ("maximize",)
    axes: Axes = (loss_of,)
    memory: str = "on a CPU the whole process counts"

    @property
    def prunes(self) -> bool:
        """Whether a trial may end before its last prompt; with several values Optuna has no pruning."""
        return len(self.directions) == 1

    @property
    def weighs_memory(self) -> bool:
        """Whether memory is looked at beside speed and quality."""
        return memory_of in self.axes

    def values(self, log_ratio: float, measurements: Sequence[Measurement]) -> tuple[float, ...]:
        """Return what Optuna is told of a complete trial.

        Args:
            log_ratio: Mean over its prompts, of everything known of its configuration.
            measurements: Of the trial.
        """
        return (log_ratio,)

    def memory_bytes(self, measurements: Sequence[Measurement]) -> int:
        """Return what `max_memory_bytes` limits: the most that was seen of the device, or of the whole process."""
        return max((one.peak_memory_bytes for one in measurements), default=0)

    def front(self, configs: Collection[SpecConfig], measurements: Sequence[Measurement]) -> tuple[SpecConfig, ...]:
        """Return which configurations go on besides the best, the fastest first.

        Args:
            configs: Those that are allowed.
            measurements: Of one stage.
        """
        return ()


@dataclass(frozen=True, slots=True)
class Front(Goal):
    """Speed, loss of quality and memory at once: no trial is pruned, and a front of configurations goes on.

    Memory is the footprint, weights and caches of what a configuration itself runs: what a device or a process holds
    is the same for all of them, because every drafter is loaded whichever is measured. The fastest within the limits
    becomes the policy.
    """

    def values(self, log_ratio: float, measurements: Sequence[Measurement]) -> tuple[float, ...]:
        """Return log ratio, size of the loss and bytes."""
        loss = quality_from(measurements).loss
        return (log_ratio, abs(loss.value) if loss else 0.0, float(self.memory_bytes(measurements)))

    def memory_bytes(self, measurements: Sequence[Measurement]) -> int:
        """Return the largest footprint."""
        return max((one.footprint_bytes for one in measurements), default=0)

    def front(self, configs: Collection[SpecConfig], measurements: Sequence[Measurement]) -> tuple[SpecConfig, ...]:
        """Return which configurations nothing beats in all three."""
        return pareto_configs(configs, measurements, self.axes)


GOALS = {
    "tokens_per_second": Goal(DECISIVE["tokens_per_second"]),
    "p95_inter_token_latency": Goal(DECISIVE["p95_inter_token_latency"]),
    "pareto": Front(
        DECISIVE["pareto"],
        directions=("maximize", "minimize", "minimize"),
        axes=(loss_of, memory_of),
        memory="weights and caches of what a configuration runs",
    ),
}
