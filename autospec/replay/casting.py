"""The drafters of a trace by name: recorded, made again, or given."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from autospec.config import SpecConfig
from autospec.engine.drafters import CombinedDrafter, Drafter
from autospec.errors import ReplayError
from autospec.replay.drafts import Extender, RecordedDrafter, StoredDrafter
from autospec.replay.recorder import Recorder
from autospec.replay.shelf import Shelf
from autospec.replay.textual import TEXT_DRAFTERS, lookup_of, made_of
from autospec.replay.trace import Trace


class Cast:
    """Finds them.

    Args:
        trace: What was recorded.
        given: By name, those that the trace alone cannot make.
    """

    def __init__(self, trace: Trace, given: Mapping[str, Drafter]) -> None:
        self._trace, self.given = trace, given
        self._made: dict[tuple[str, str], Drafter | None] = {}

    def lookup(self, name: str) -> Drafter | None:
        """Return a drafter that only looks text up; None for others."""
        source = self._trace.sources.get(name, "")
        known = (name, source)
        if known not in self._made:
            given = self.given.get(name)
            if given is None:
                self._made[known] = made_of(source, self._trace)
            else:
                is_text = isinstance(given, TEXT_DRAFTERS)
                self._made[known] = lookup_of(given, self._trace, name) if is_text else None
        return self._made[known]

    def key_of(self, config: SpecConfig, name: str) -> str | None:
        """Return under which name a drafter was recorded; None where its rows were not."""
        return self._trace.key_of(name, config.exit_layer, config.draft_temperature)

    def followed(self, config: SpecConfig, shelf: Shelf, recorder: Recorder | None) -> Drafter:
        """Return the drafter of a configuration as it is walked along the texts.

        Args:
            config: What is drafted.
            shelf: Tables of the trace.
            recorder: Records what is missed; None raises `ReplayMiss`.

        Raises:
            ReplayError: A drafter is neither recorded nor given, or does not draft that shape.
        """
        parts = {name: self._part(config, name, shelf, recorder) for name in config.drafter_names}
        for name, part in parts.items():
            if len(parts) == 1 and config.tree_shape not in part.shapes:
                raise ReplayError(f"{name!r} drafts the shapes {list(part.shapes)}, but got {config.tree_shape!r}")
        return CombinedDrafter(parts, config.combine) if len(parts) > 1 else next(iter(parts.values()))

    def _part(self, config: SpecConfig, name: str, shelf: Shelf, recorder: Recorder | None) -> Drafter:
        extend: Extender | None = None
        if recorder is not None:

            def extend(key: str, wanted: SpecConfig, limit: int) -> None:
                recorder.extend(self._trace, key, [wanted], np.arange(self._trace.num_positions), limit)

        if (key := self.key_of(config, name)) is not None:
            return RecordedDrafter(shelf, key, extend)
        if (lookup := self.lookup(name)) is not None:
            return lookup
        given = self.given.get(name)
        stored = {one.config.tree_shape for key, one in self._trace.drafts.items() if key.partition("#")[0] == name}
        if given is None and not stored:
            raise ReplayError(f"a drafter must be recorded or given, but {name!r} is neither")
        of = (False, tuple(sorted(stored))) if given is None else (given.has_probs, given.shapes)
        return StoredDrafter(self._trace, name, extend, of)
