"""Drafters that are functions of the text: they are run again over what was recorded, not recorded themselves.

The drafters of the engine do it, so there is nothing here to differ from them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.cache import KVCache
from autospec.engine.drafters import (
    DatastoreDrafter,
    Drafter,
    DraftPlan,
    NgramDrafter,
    RecyclingDrafter,
    SuffixDrafter,
)
from autospec.engine.termination import Stopping
from autospec.errors import ReplayError
from autospec.replay.tables import StepTable
from autospec.replay.trace import Trace

TEXT_DRAFTERS = (NgramDrafter, SuffixDrafter, DatastoreDrafter, RecyclingDrafter)
# Fields of a configuration that such a drafter reads; the others make no other draft.
_KNOBS = {
    NgramDrafter: ("ngram_min", "ngram_max"),
    SuffixDrafter: ("suffix_factor", "suffix_min_prob", "suffix_depth"),
    DatastoreDrafter: (),
    RecyclingDrafter: (),
}
_SHAPE_KNOBS = ("tree_shape", "tree_width", "tree_nodes", "tree_paths")


def made_of(source: str) -> Drafter | None:
    """Make a drafter that needs nothing but its source; None where it needs more."""
    kinds: dict[str, type[NgramDrafter | SuffixDrafter | RecyclingDrafter]] = {
        "ngram": NgramDrafter,
        "suffix": SuffixDrafter,
        "recycling": RecyclingDrafter,
    }
    return kinds[source]() if source in kinds else None


class TextTables:
    """What one such drafter does at every position, for any of its knobs; kept, because knobs come back.

    Args:
        trace: The texts.
        drafter: It begins every prompt in its declared state.
        name: Its name in configurations.

    Raises:
        ReplayError: It is none of these drafters.
    """

    def __init__(self, trace: Trace, drafter: Drafter, name: str) -> None:
        if not isinstance(drafter, TEXT_DRAFTERS):
            raise ReplayError(f"a drafter must be recorded or look text up, but {name!r} is neither")
        self._trace, self._drafter, self._name = trace, drafter, name
        self._knobs = (*_SHAPE_KNOBS, *next(knobs for kind, knobs in _KNOBS.items() if isinstance(drafter, kind)))
        self._kept: dict[tuple[object, ...], StepTable] = {}

    def table(self, config: SpecConfig, limits: np.ndarray) -> StepTable:
        """Return its steps.

        Args:
            config: The knobs.
            limits: [positions] the longest draft that is asked for.
        """
        if config.tree_shape == "chain" and not isinstance(self._drafter, SuffixDrafter):
            # A shorter draft is the beginning of a longer one.
            longest = self._known(config, np.maximum(self._trace.left() - 1, 0))
            return longest.cut(limits)
        return self._known(config, limits)

    def longest_chains(self, depth: int) -> StepTable:
        """Return its chains of at most so many tokens, under the knobs that a configuration has by default."""
        return self.table(SpecConfig(self._name, depth), np.clip(self._trace.left() - 1, 0, depth))

    def _known(self, config: SpecConfig, limits: np.ndarray) -> StepTable:
        key = (limits.tobytes(), *(getattr(config, knob) for knob in self._knobs))
        if key not in self._kept:
            self._kept[key] = self._filled(config, limits)
        return self._kept[key]

    def _filled(self, config: SpecConfig, limits: np.ndarray) -> StepTable:
        trace, table = self._trace, StepTable.empty(self._trace.num_positions)
        for row in range(len(trace.prompts)):
            prompt, output = trace.prompt_ids(row), trace.output_ids(row)
            text, start = [*prompt, *output], int(trace.position_starts[row])
            plan = DraftPlan(config, SamplingParams(), 0, 2 * len(text), Stopping(config), KVCache(1))
            self._drafter.start(prompt, plan)
            for place in range(len(output) - 1):
                self._commit(row, output[place : place + 1], place, len(prompt))
                limit = int(limits[start + place])
                tree = self._drafter.propose(limit)
                table.put(start + place, tree, output[place + 1 : place + 1 + limit])
        return table

    def _commit(self, row: int, tokens: Sequence[int], place: int, num_prompt: int) -> None:
        """Tell the drafter of a token, and of what the target thought before it."""
        if isinstance(self._drafter, RecyclingDrafter):
            known = num_prompt + place
            first = 0 if place == 0 else known - 1
            start = int(self._trace.text_starts[row])
            rows = slice(start + first, start + known)
            self._drafter.extend(tokens)
            self._drafter.learn(first, self._trace.top_tokens[rows].tolist(), self._trace.top_logprobs[rows].tolist())
        else:
            self._drafter.commit(tokens)
