"""What a configuration may lose and take: quality and memory, as Optuna wants them and in words."""

from __future__ import annotations

from collections.abc import Sequence

from autospec.config import SpecConfig
from autospec.records import Measurement
from autospec.tuning.events import OVER_MEMORY
from autospec.tuning.goals import Goal
from autospec.tuning.quality import LossLimit
from autospec.tuning.settings import StudySettings

Constraints = tuple[tuple[str, float], ...]


class Limits:
    """The limits of a study.

    Args:
        settings: Name them.
        goal: Says what memory is.
    """

    def __init__(self, settings: StudySettings, goal: Goal) -> None:
        self.loss, self._goal = LossLimit(settings.quality.max_loss), goal
        self.max_memory_bytes = settings.max_memory_bytes

    def constraints(self, config: SpecConfig, measurements: Sequence[Measurement]) -> Constraints:
        """Return quality and memory as Optuna wants them: above 0 is broken.

        Quality is the upper bound of a lossy rule's loss less what may be lost. A mismatch of a lossless rule in
        float32 fails the trial before it comes here. In half precision its tokens may differ, which is counted and
        reported and breaks nothing.
        """
        over = self.memory_excess(measurements)
        return (("failed", 0.0), ("quality", self.loss.excess(config, measurements)), ("memory", float(over)))

    def excess(self, config: SpecConfig, measurements: Sequence[Measurement]) -> float:
        """Return by how much a configuration is over the limit that it breaks most; 0 or below keeps all."""
        return max(value for _, value in self.constraints(config, measurements))

    def memory_excess(self, measurements: Sequence[Measurement]) -> int:
        """Return how many bytes measurements are over the limit; 0 where there is none."""
        limit = self.max_memory_bytes
        return self._goal.memory_bytes(measurements) - limit if limit else 0

    def reasons(self, config: SpecConfig, measurements: Sequence[Measurement]) -> list[str]:
        """Return a sentence for each limit that a configuration breaks."""
        taken, limit = self._goal.memory_bytes(measurements), self.max_memory_bytes
        over_memory = f"{OVER_MEMORY} ({gigabytes(taken)}, limit {gigabytes(limit)})" if 0 < limit < taken else ""
        return [reason for reason in (over_memory, self.loss.reason(config, measurements)) if reason]


def gigabytes(num_bytes: int) -> str:
    """Return a size for people."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e7 else f"{num_bytes:,} bytes"
