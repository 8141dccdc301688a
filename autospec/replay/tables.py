"""What one step would do at every position of a trace, under one configuration and one limit of its length.

The arrays that walks and cost models read; chains of recorded drafters are computed here for all positions at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray

from autospec.config import SpecConfig
from autospec.engine.costs import CostCurve
from autospec.engine.termination import (
    next_worths,
    stops_by_confidence,
    stops_by_cost,
    stops_by_entropy,
    stops_by_path,
)
from autospec.engine.tree import TokenTree
from autospec.errors import ReplayError
from autospec.replay.forest import DraftForest, Drawn, Floats, Ints

Counts = NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class StepTable:
    """Counts of a step at every position: [..., positions] each.

    Args:
        nodes: Draft tokens verified.
        depth: Of the draft.
        accepted: Of them kept.
        tested: Positions put to the test, as in `StepStats`.
        calls: Forwards of the draft model, the first behind the text.
        run: Draft nodes that the forwards behind the first ran.
        is_missing: Whether something that was not recorded would decide.
    """

    nodes: Counts
    depth: Counts
    accepted: Counts
    tested: Counts
    calls: Counts
    run: Counts
    is_missing: NDArray[np.bool_]

    @classmethod
    def empty(cls, *shape: int) -> Self:
        """Return the table of a drafter that drafts nothing."""
        counts = {one.name: np.zeros(shape, dtype=np.int16) for one in fields(cls)[:-1]}
        return cls(**counts, is_missing=np.zeros(shape, dtype=np.bool_))

    @property
    def num_bytes(self) -> int:
        """Size of all arrays."""
        return sum(int(getattr(self, one.name).nbytes) for one in fields(self))

    @classmethod
    def stack(cls, tables: list[StepTable]) -> Self:
        """Put tables on top of each other: [tables, ..., positions]."""
        return cls(*(np.stack([getattr(table, one.name) for table in tables]) for one in fields(cls)))

    def or_else(self, other: StepTable) -> StepTable:
        """Take the other's step where nothing is drafted; what was called for nothing still counts."""
        own = (self.nodes > 0) | self.is_missing
        values = {one.name: np.where(own, getattr(self, one.name), getattr(other, one.name)) for one in fields(self)}
        values["calls"] = np.where(own, self.calls, self.calls + other.calls)
        values["run"] = np.where(own, self.run, self.run + other.run)
        return StepTable(**values)

    def cut(self, limits: NDArray[np.int64]) -> StepTable:
        """Return the steps of chains cut to lengths: [..., positions]; of drafters without forwards."""
        nodes = np.minimum(self.nodes, limits).astype(np.int16)
        accepted = np.minimum(self.accepted, nodes)
        tested = (accepted + (accepted < nodes)).astype(np.int16)
        calls, run = (np.broadcast_to(part, nodes.shape) for part in (self.calls, self.run))
        return StepTable(nodes, nodes, accepted, tested, calls, run, np.broadcast_to(self.is_missing, nodes.shape))

    def put(self, position: int, tree: TokenTree, wanted: Sequence[int]) -> tuple[int, int]:
        """Enter a draft; return its depth, and how many of its tokens are accepted.

        Args:
            position: Where.
            tree: The draft.
            wanted: What the target writes from there on, at least as many tokens as the draft is deep.
        """
        parents, node, count = tree.parents, -1, 0
        if not parents:
            return 0, 0
        depths = [0] * (len(parents) + 1)  # that of the root last, which is where its index -1 finds it
        for place, (parent, token) in enumerate(zip(parents, tree.token_ids.tolist(), strict=True)):
            depths[place] = depths[parent] + 1
            # Nodes come behind their parents, so what the target takes next is still to come.
            if parent == node and count < len(wanted) and token == wanted[count]:
                node, count = place, count + 1
        depth = max(depths)
        self.nodes[position], self.depth[position] = len(parents), depth
        self.accepted[position], self.tested[position] = count, count + (node in parents)
        return depth, count


@dataclass(frozen=True, slots=True)
class Chains:
    """The most probable chain behind every position.

    Args:
        tokens: [positions, depth] its tokens.
        probs: [positions, depth] their probabilities.
        entropies: [positions, depth] of the rows they stand in.
        lengths: [positions] recorded tokens.
        matches: [positions] how many of them the target writes too.
        gaps: [positions, depth] how much less the second candidate's log-probability is; None where it is not known.
    """

    tokens: Ints
    probs: Floats
    entropies: Floats
    lengths: Ints
    matches: Ints
    gaps: Floats | None = None

    @classmethod
    def of(cls, forest: DraftForest, next_tokens: Ints, max_depth: int) -> Self:
        """Follow the first candidate from every position."""
        num = len(next_tokens)
        node, alive = np.arange(num, dtype=np.int64), np.ones(num, dtype=np.bool_)
        tokens, lengths = np.full((num, max_depth), -1, dtype=np.int32), np.zeros(num, dtype=np.int32)
        probs, entropies = (np.zeros((num, max_depth), dtype=np.float32) for _ in range(2))
        gaps = np.zeros_like(probs) if forest.width > 1 else None
        for depth in range(max_depth):
            lengths += alive
            tokens[:, depth] = np.where(alive, forest.rows.tokens[node, 0], -1)
            probs[:, depth] = np.exp(forest.rows.logprobs[node, 0])
            entropies[:, depth] = forest.rows.entropies[node]
            if gaps is not None:
                gaps[:, depth] = forest.rows.logprobs[node, 0] - forest.rows.logprobs[node, 1]
            behind = forest.children[node, 0]
            alive &= behind >= 0
            node = np.where(alive, behind, node)
        return cls(tokens, probs, entropies, lengths, matches_of(tokens, lengths, next_tokens), gaps)

    @classmethod
    def drawn(cls, drawn: Drawn, next_tokens: Ints) -> Self:
        """Take those that were drawn under sampling."""
        matches = matches_of(drawn.tokens, drawn.lengths, next_tokens)
        return cls(drawn.tokens, drawn.probs, drawn.entropies, drawn.lengths, matches)

    def stops(self, config: SpecConfig, costs: CostCurve) -> NDArray[np.int64]:
        """Return behind how many tokens a rule without state ends each chain: [positions], beyond all where never."""
        match config.stop_rule:
            case "confidence":
                ends = stops_by_confidence(self.probs, config.stop_threshold)
            case "entropy":
                form, scale = config.entropy_form, config.entropy_scale
                ends = stops_by_entropy(self.entropies, config.stop_threshold, form, scale)
            case "cumulative":
                ends = stops_by_path(self._path_probs, config.stop_threshold)
            case "cost_aware":
                chances = self._worths(costs)
                paths, places = chances.cumprod(axis=1), np.arange(1, chances.shape[1] + 1)
                ends = stops_by_cost(next_worths(paths, chances, costs), places, 1.0 + paths.cumsum(axis=1), costs)
            case _:
                return np.full(len(self.probs), self.probs.shape[1] + 1, dtype=np.int64)
        return first_true(ends)

    def _worths(self, costs: CostCurve) -> NDArray[np.float64]:
        """Return how likely each token of a chain counts, as the cost-aware rule takes it: [positions, depth].

        Raises:
            ReplayError: The rule reads second candidates, and none were recorded.
        """
        calibration = costs.acceptance
        if calibration is None:
            return self.probs.astype(np.float64)
        if self.gaps is None and calibration.gap:
            raise ReplayError("a calibration that reads second candidates needs them recorded, but width is 1")
        gaps = np.nan if self.gaps is None else self.gaps
        with np.errstate(divide="ignore"):
            log_probs = np.log(self.probs.astype(np.float64))
        places = np.arange(1, self.probs.shape[1] + 1)
        return calibration.probs(log_probs, self.entropies, gaps, places)

    @property
    def _path_probs(self) -> NDArray[np.float64]:
        return np.asarray(self.probs.astype(np.float64).cumprod(axis=1))

    def step(self, place: int, length: int) -> StepTable:
        """Return the step at one place whose chain has so many tokens."""
        own = slice(place, place + 1)
        one = Chains(self.tokens, self.probs, self.entropies, self.lengths[own], self.matches[own])
        table = one.table(np.array([length]))
        return StepTable(*(getattr(table, part.name)[0] for part in fields(table)))

    def table(self, lengths: NDArray[np.int64]) -> StepTable:
        """Return the step whose chain has so many tokens: [..., positions] from lengths [..., positions]."""
        count = lengths.astype(np.int16)
        accepted = np.minimum(self.matches, count).astype(np.int16)
        tested = accepted + (accepted < count)
        run = np.maximum(count - 1, 0)
        return StepTable(count, count, accepted, tested.astype(np.int16), count, run, lengths > self.lengths)


def matches_of(tokens: Ints, lengths: Ints, next_tokens: Ints) -> Ints:
    """Return how many tokens of chains [positions, depth] the target writes: [positions]."""
    num, depth = tokens.shape
    wanted = np.concatenate([next_tokens, np.full(depth, -2, dtype=next_tokens.dtype)])
    hits = tokens == wanted[np.arange(num)[:, None] + np.arange(depth)]
    hits &= np.arange(depth) < lengths[:, None]
    return np.asarray(hits.cumprod(axis=1).sum(axis=1), dtype=np.int32)


def first_true(ends: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the place of the first True of rows [..., n], counted from 1; n + 1 where there is none."""
    return np.asarray(np.where(ends.any(axis=-1), ends.argmax(axis=-1) + 1, ends.shape[-1] + 1))
