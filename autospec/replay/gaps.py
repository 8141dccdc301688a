"""What configurations read that a trace does not hold, and a recorder can add."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autospec.config import SpecConfig
from autospec.errors import ReplayMiss
from autospec.replay.casting import Cast
from autospec.replay.recorder import Recorder
from autospec.replay.tables import StepTable
from autospec.replay.trace import Trace
from autospec.replay.windowing import RecordedLookahead


@dataclass(frozen=True, slots=True)
class Gaps:
    """Finds and fills them.

    Args:
        trace: Added to.
        cast: Its drafters.
        recorder: What adds; None leaves gaps as they are.
    """

    trace: Trace
    cast: Cast
    recorder: Recorder | None

    def parts(self, config: SpecConfig) -> tuple[str, ...]:
        """Return the parts of the trace that a configuration reads and a recorder can add to."""
        found = []
        for name in config.drafter_names:
            if isinstance(lookup := self.cast.lookup(name), RecordedLookahead):
                found.append(f"windows/{config.lookahead_window}")
            elif lookup is None:
                found.append(self.cast.key_of(config, name) or name)
        return tuple(found)

    def seconds(self, configs: Sequence[SpecConfig]) -> float:
        """Return about how long recording takes; see `Simulator.seconds_to_record`."""
        seconds, recorder = 0.0, self.recorder
        assert recorder is not None
        for part in self.parts(configs[0]):
            kind, _, size = part.partition("/")
            if kind == "windows":
                depth = max(config.lookahead_ngram for config in configs) - 1
                seconds += recorder.seconds_to_look_ahead(self.trace, int(size), depth)
            else:
                seconds += recorder.seconds_to_extend(self.trace, part, configs)
        return seconds

    def look_ahead(self, configs: Sequence[SpecConfig]) -> None:
        """Record the windows of lookahead decoding that configurations read, if there is a recorder."""
        depths: dict[int, int] = {}
        for config in configs:
            if any(isinstance(self.cast.lookup(name), RecordedLookahead) for name in config.drafter_names):
                size = config.lookahead_window
                depths[size] = max(depths.get(size, 0), config.lookahead_ngram - 1)
        for size, depth in depths.items():
            known = self.trace.windows.get(size)
            if (known is None or known.shape[2] < depth) and self.recorder is not None:
                self.recorder.add_windows(self.trace, size, depth)

    def fill(self, lacking: Sequence[tuple[SpecConfig, StepTable]]) -> None:
        """Record what configurations draft where something is missing; they are batched by drafter.

        What cannot be recorded must not be tried for ever.
        """
        first = lacking[0][0].short()
        recorder = self.recorder
        if recorder is None:
            raise ReplayMiss(
                f"every draft that is reached must be recorded, but those of {first} at "
                f"{int(lacking[0][1].is_missing.sum())} positions are not"
            )
        by_key: dict[str, dict[SpecConfig, NDArray[np.bool_]]] = {}
        for config, table in lacking:
            keys = [key for name in config.drafter_names if (key := self.cast.key_of(config, name)) is not None]
            for key in keys:
                by_key.setdefault(key, {})[config] = table.is_missing
        before = [(self.trace.forests[key].num_nodes, id(self.trace.drawn.get(key))) for key in by_key]
        for key, missing in by_key.items():
            positions = np.nonzero(np.any(list(missing.values()), axis=0))[0]
            recorder.extend(self.trace, key, list(missing), positions, max(one.draft_length for one in missing))
        if before == [(self.trace.forests[key].num_nodes, id(self.trace.drawn.get(key))) for key in by_key]:
            raise ReplayMiss(f"every draft that is reached must be recorded, but those of {first} cannot be")
