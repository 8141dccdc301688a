"""What a trace tells of acceptance itself: by rank, for choosing trees, and token by token, for learning from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from autospec.config import SpecConfig
from autospec.errors import ReplayError
from autospec.replay.forest import DraftForest
from autospec.replay.textual import drafts_everywhere, made_of
from autospec.replay.trace import Trace

# Longest ending of the text whose earlier occurrence is looked for.
MAX_MATCH = 24
_MAX_LOOKED_UP = 16


@dataclass(frozen=True, slots=True)
class AcceptanceRows:
    """One row for every draft token of the chain at every position: arrays [rows].

    A drafter that looks text up has no probabilities: its `log_prob`, `entropy` and `gap` are NaN. The others look
    nothing up: their `match_length` is NaN.

    Args:
        log_prob: Log-probability that the drafter gave its token.
        entropy: Of the drafter's row there, in nats.
        gap: How much less the second candidate's log-probability is.
        position: Place in the draft, from 1.
        match_length: Tokens of the longest ending of the text that had occurred before, at most 24.
        is_reached: Whether the target writes every token of the draft before it.
        is_accepted: Whether it writes this one too. Of the rows that are reached, those that are accepted are what a
            classifier of single tokens learns; of all rows, what one of whole drafts does.
        prompts: Row of the prompt in the trace.
    """

    log_prob: NDArray[np.float64]
    entropy: NDArray[np.float64]
    gap: NDArray[np.float64]
    position: NDArray[np.int64]
    match_length: NDArray[np.float64]
    is_reached: NDArray[np.bool_]
    is_accepted: NDArray[np.bool_]
    prompts: NDArray[np.int64]

    @classmethod
    def join(cls, parts: Sequence[AcceptanceRows]) -> AcceptanceRows:
        """Return all rows of several, of one trace."""
        return cls(*(np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(cls)))

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(self.position)


def rank_acceptance(trace: Trace, drafter: str) -> NDArray[np.float64]:
    """Return how often the target's token was the drafter's candidate of each rank: [recorded ranks].

    At every position, given the true text before it; what `OptimalTrees` chooses trees by.

    Args:
        trace: With the drafter.
        drafter: Its name; `name@layers` is an exit other than the default.

    Raises:
        ReplayError: It was not recorded.
    """
    key = trace.key_of(drafter)
    if key is None:
        raise ReplayError(f"a drafter must be recorded to have ranks, {sorted(trace.forests)}, but got {drafter!r}")
    seen = trace.forests[key].caps > 0
    tokens = trace.forests[key].rows.tokens[: trace.num_positions]
    hits = (tokens == trace.next_tokens[:, None])[seen]
    return np.asarray(hits.sum(axis=0) / max(len(hits), 1))


def acceptance_rows(trace: Trace, drafter: str) -> AcceptanceRows:
    """Return what a drafter's chains show at every position, and what the target made of them.

    Args:
        trace: With the drafter, or with its source where it looks text up.
        drafter: As for `rank_acceptance`.

    Raises:
        ReplayError: It was not recorded, and cannot be run again from its source.
    """
    key = trace.key_of(drafter)
    return _looked_up(trace, drafter) if key is None else _recorded(trace, key)


def _recorded(trace: Trace, key: str) -> AcceptanceRows:
    forest = trace.forests[key]
    places = np.nonzero(forest.caps > 0)[0]
    # The last token of an output always comes from the target itself.
    left = np.minimum(trace.left() - 1, forest.caps)[places]
    node, reached = places.copy(), np.ones(len(places), dtype=np.bool_)
    start, depth, parts = places, 0, list[tuple[NDArray[np.generic], ...]]()
    while True:
        alive = (node >= 0) & (depth < left)
        start, node, left, reached = start[alive], node[alive], left[alive], reached[alive]
        if not len(node):
            break
        accepted = reached & (forest.rows.tokens[node, 0] == trace.next_tokens[start + depth])
        depth += 1
        position = np.full(len(node), depth, dtype=np.int64)
        features = (forest.rows.logprobs[node, 0], forest.rows.entropies[node], _gaps(forest, node))
        parts.append((*features, position, np.full(len(node), np.nan), reached, accepted, trace.prompt_of[start]))
        node, reached = forest.children[node, 0].astype(np.int64), accepted
    return _joined(parts)


def _gaps(forest: DraftForest, node: NDArray[np.int64]) -> NDArray[np.float64]:
    if forest.width < 2:
        return np.full(len(node), np.nan)
    return np.asarray(forest.rows.logprobs[node, 0].astype(np.float64) - forest.rows.logprobs[node, 1])


def _looked_up(trace: Trace, name: str) -> AcceptanceRows:
    source = trace.sources.get(name)
    drafter = made_of(source, trace) if source else None
    if drafter is None:
        raise ReplayError(f"a drafter must be recorded, or a lookup that its source makes, but got {name!r}")
    limits = np.clip(trace.left() - 1, 0, _MAX_LOOKED_UP)
    table = drafts_everywhere(trace, drafter, SpecConfig(name, _MAX_LOOKED_UP), limits)
    matches = match_lengths(trace)
    lengths, accepted = table.nodes.astype(np.int64), table.accepted.astype(np.int64)
    start = np.repeat(np.arange(trace.num_positions), lengths)
    position = np.arange(len(start)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + 1
    nothing = np.full(len(start), np.nan)
    reached, kept = position <= accepted[start] + 1, position <= accepted[start]
    match = matches[start].astype(np.float64)
    return AcceptanceRows(nothing, nothing, nothing, position, match, reached, kept, trace.prompt_of[start])


def _joined(parts: list[tuple[NDArray[np.generic], ...]]) -> AcceptanceRows:
    kinds = (np.float64, np.float64, np.float64, np.int64, np.float64, np.bool_, np.bool_, np.int64)
    columns = zip(*parts, strict=True) if parts else [()] * len(kinds)
    joined = [np.concatenate([np.zeros(0, kind), *column]) for kind, column in zip(kinds, columns, strict=True)]
    return AcceptanceRows(*(column.astype(kind) for kind, column in zip(kinds, joined, strict=True)))


def match_lengths(trace: Trace) -> NDArray[np.int64]:
    """Return the length of the longest ending of the text before each position that had occurred before: [positions].

    Endings of at most 24 tokens are looked at.
    """
    lengths = np.zeros(trace.num_positions, dtype=np.int64)
    for row, start in enumerate(trace.position_starts[:-1].tolist()):
        text, num_prompt = [*trace.prompt_ids(row), *trace.output_ids(row)], trace.prompts[row].num_prompt
        seen = set[tuple[int, ...]]()
        for end in range(1, len(text)):
            ending = tuple(text[max(0, end - MAX_MATCH) : end])
            if end > num_prompt:
                lengths[start + end - num_prompt - 1] = _longest(ending, seen)
            seen.update(ending[size:] for size in range(len(ending)))
    return lengths


def _longest(ending: tuple[int, ...], seen: set[tuple[int, ...]]) -> int:
    """Return how many last tokens of an ending are among those seen; shorter ones of a seen one are seen too."""
    for size in range(1, len(ending) + 1):
        if ending[-size:] not in seen:
            return size - 1
    return len(ending)
