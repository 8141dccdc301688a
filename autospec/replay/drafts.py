"""Drafters that read what was recorded instead of running a model, for walks along a text.

They follow the protocol of `autospec.engine.drafters`, so that drafts are combined by the engine's own code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Protocol, runtime_checkable

import torch

from autospec.config import MAX_DRAFT_LENGTH, SpecConfig
from autospec.engine.drafters import (
    CombinedDrafter,
    DraftPlan,
    Needs,
    NgramDrafter,
    RecyclingDrafter,
    SuffixDrafter,
    Trail,
)
from autospec.engine.drafters.automaton import SuffixAutomaton
from autospec.engine.drafters.recycling import Candidates
from autospec.engine.drafters.suffix import SuffixStore
from autospec.engine.growth import MODEL_SHAPES
from autospec.engine.tree import TokenTree, empty_tree
from autospec.errors import ReplayError, ReplayMiss
from autospec.replay.cutting import Layers
from autospec.replay.shelf import Shelf
from autospec.replay.tables import StepTable
from autospec.replay.trace import Trace

_FIELDS = tuple(one.name for one in fields(StepTable))
_Ends, _Earlier = dict[tuple[int, ...], int], dict[tuple[int, int], int]  # of the n-gram drafter
# Records drafts of a configuration at all positions: (key, configuration, longest path).
Extender = Callable[[str, SpecConfig, int], None]


@runtime_checkable
class FollowsRows(Protocol):
    """A drafter that must be told which recorded text begins."""

    def begin(self, row: int) -> None:
        """Take the row of the prompt in the trace; `start` follows."""
        ...


class RecordedDrafter:
    """Drafts what a forest holds: chains, beams and best-first trees.

    Args:
        shelf: Tables of the trace.
        key: Under which the drafter was recorded.
        extend: Records what is missing; None raises `ReplayMiss`.
    """

    has_probs = True
    shapes = MODEL_SHAPES
    needs = Needs()

    def __init__(self, shelf: Shelf, key: str, extend: Extender | None) -> None:
        self.source, self._shelf, self._key, self._extend = key, shelf, key, extend
        self.calls = self.run = 0  # forwards of the drafter in all drafts since it was made
        self._caps = shelf.trace.forests[key].caps
        self._layers: Layers | None = None

    def begin(self, row: int) -> None:
        """See `FollowsRows`."""
        self._first = int(self._shelf.trace.position_starts[row])

    def start(self, prompt_ids: Sequence[int], plan: DraftPlan) -> None:
        if plan.config.stop_rule == "adaptive":
            raise ReplayError("stop_rule 'adaptive' is replayed for one recorded drafter alone, but got several")
        self._config, self._place, self._layers = plan.config, self._first - 1, None

    def commit(self, token_ids: Sequence[int], trail: Trail | None = None) -> None:
        self._place += len(token_ids)

    def propose(self, max_length: int) -> TokenTree:
        place, limit = self._place, min(max_length, int(self._caps[self._place]))
        if limit < 1:
            return empty_tree()
        step, tokens, parents = self._draft(place, limit)
        if step.is_missing:
            if self._extend is None:
                raise ReplayMiss(f"every draft that is reached must be recorded, but one of {self._key!r} is not")
            self._extend(self._key, self._config, max_length)
            self._layers = None
            return self.propose(max_length)
        self.calls += int(step.calls)
        self.run += int(step.run)
        return TokenTree(torch.tensor(tokens, dtype=torch.int64), tuple(parents))

    def _draft(self, place: int, limit: int) -> tuple[StepTable, list[int], Sequence[int]]:
        """Return counts, tokens and parents of the draft at a place."""
        config, shelf = self._config, self._shelf
        if config.tree_shape == "chain":
            chains = shelf.chain(self._key, config, config.draft_length)
            length = min(limit, int(shelf.stops(self._key, config, config.draft_length)[place]))
            step = chains.step(place, length)
            return step, chains.tokens[place, :length].tolist(), range(-1, length - 1)
        if self._layers is None:
            self._layers = shelf.layers(self._key, config)
        layers, table = self._layers, self._layers.table
        counts = (getattr(table, name)[limit, place] for name in _FIELDS)
        step = StepTable(*counts)
        if step.is_missing:
            return step, [], []
        return step, *layers.tree(shelf.trace.forests[self._key], place, limit)


class RecordedRecycling(RecyclingDrafter):
    """Token recycling that learns what the target thought from the trace.

    Args:
        trace: Holds it.
    """

    needs = Needs()

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self._trace = trace
        self._thoughts = trace.top_tokens.tolist(), trace.top_logprobs.tolist()
        self._prompts: dict[int, dict[int, Candidates]] = {}

    def begin(self, row: int) -> None:
        """See `FollowsRows`."""
        self._row = row
        self._first, self._num_prompt = int(self._trace.text_starts[row]), self._trace.prompts[row].num_prompt

    def start(self, prompt_ids: Sequence[int], plan: DraftPlan) -> None:
        super().start(prompt_ids, plan)
        if self._row not in self._prompts:
            self._know(0, len(self._context))
            self._prompts[self._row] = self._table
        self._table = self._prompts[self._row].copy()

    def commit(self, token_ids: Sequence[int], trail: Trail | None = None) -> None:
        known = len(self._context) - 1
        self.extend(token_ids)
        self._know(max(known, self._num_prompt), len(self._context) - 1)

    def _know(self, start: int, end: int) -> None:
        """Learn what the target thought behind some tokens of the text."""
        rows, (tokens, logprobs) = slice(self._first + start, self._first + end), self._thoughts
        self.learn(start, tokens[rows], logprobs[rows])


class WarmSuffix(SuffixDrafter):
    """Suffix decoding that reads every prompt once for all configurations.

    Args:
        store: Of earlier texts; it does not learn.
    """

    def __init__(self, store: SuffixStore) -> None:
        super().__init__()
        self.store = store
        self._prompts: dict[tuple[int, int], tuple[SuffixAutomaton, tuple[int, int]]] = {}

    def begin(self, row: int) -> None:
        """See `FollowsRows`."""
        self._row = row

    def start(self, prompt_ids: Sequence[int], plan: DraftPlan) -> None:
        known = self._row, plan.config.suffix_depth
        if known not in self._prompts:
            # Counts of the longest substrings serve every shorter draft.
            deepest = replace(plan.config, draft_length=MAX_DRAFT_LENGTH)
            super().start(prompt_ids, replace(plan, config=deepest))
            self._prompts[known] = self._text, self._match
        text, self._match = self._prompts[known]
        self._text, self._context, self._config = text.copy(), list(prompt_ids), plan.config


class WarmNgram(NgramDrafter):
    """Prompt lookup that reads every prompt once for all configurations."""

    def __init__(self) -> None:
        super().__init__()
        self._prompts: dict[
            tuple[int, range, bool], tuple[dict[tuple[int, ...], int], dict[tuple[int, int], int]]
        ] = {}

    def begin(self, row: int) -> None:
        """See `FollowsRows`."""
        self._row = row

    def start(self, prompt_ids: Sequence[int], plan: DraftPlan) -> None:
        config = plan.config
        sizes = range(config.ngram_max, config.ngram_min - 1, -1)
        known = self._row, sizes, config.tree_shape == "trie"
        if known not in self._prompts:
            super().start(prompt_ids, plan)
            self._prompts[known] = self._ends, self._earlier
        ends, earlier = self._prompts[known]
        self._ends, self._earlier = ends.copy(), earlier.copy()
        self._context, self._sizes, self._config = list(prompt_ids), sizes, config


class StoredDrafter:
    """Drafts what was stored draft by draft, for drafters that show no probabilities.

    Args:
        trace: Holds the drafts.
        name: Of the drafter.
        extend: As of `RecordedDrafter`.
        of: `has_probs` and `shapes` of the drafter itself.
    """

    needs = Needs()

    def __init__(self, trace: Trace, name: str, extend: Extender | None, of: tuple[bool, tuple[str, ...]]) -> None:
        self.source, self._trace, self._name, self._extend = name, trace, name, extend
        self.has_probs, self.shapes = of

    def begin(self, row: int) -> None:
        """See `FollowsRows`."""
        self._first = int(self._trace.position_starts[row])

    def start(self, prompt_ids: Sequence[int], plan: DraftPlan) -> None:
        if plan.config.stop_rule == "adaptive":
            raise ReplayError("stop_rule 'adaptive' is replayed for one recorded drafter alone, but got another")
        self._config, self._place = plan.config, self._first - 1

    def commit(self, token_ids: Sequence[int], trail: Trail | None = None) -> None:
        self._place += len(token_ids)

    def propose(self, max_length: int) -> TokenTree:
        if max_length < 1:
            return empty_tree()
        config = replace(self._config, drafter=self._name)
        found = self._trace.stored(config).get((self._place, max_length))
        if found is not None:
            return TokenTree(torch.tensor(found[0], dtype=torch.int64), tuple(found[1]))
        if self._extend is None:
            raise ReplayMiss(f"every draft that is reached must be recorded, but one of {self._name!r} is not")
        self._extend(self._name, config, max_length)
        assert (self._place, max_length) in self._trace.stored(config)
        return self.propose(max_length)


def parts_of(drafter: object) -> list[object]:
    """Return the drafters that a combined one asks, or the one alone."""
    return list(drafter.parts.values()) if isinstance(drafter, CombinedDrafter) else [drafter]
