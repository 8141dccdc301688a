"""Best-first trees of token recycling, grown at all positions side by side."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autospec.replay.listing import Listing
from autospec.replay.trace import Trace


class RecycledTrees:
    """What the target thought behind the last occurrence of every token, as it is known at every position.

    Args:
        trace: The texts, and what the target thought there.
        most: [positions] longest draft that could be used there.
    """

    def __init__(self, trace: Trace, most: NDArray[np.int64]) -> None:
        self._trace, self._most = trace, most
        # Tokens of a text by their number among those in it; -1 for what never stands there.
        self._behind = np.full(trace.top_tokens.shape, -1, dtype=np.int64)
        numbers = np.zeros(len(trace.text), dtype=np.int64)
        for row in range(len(trace.prompts)):
            own = slice(int(trace.text_starts[row]), int(trace.text_starts[row + 1]))
            known, numbers[own] = np.unique(trace.text[own], return_inverse=True)
            found = np.minimum(np.searchsorted(known, trace.top_tokens[own]), len(known) - 1)
            self._behind[own] = np.where(known[found] == trace.top_tokens[own], found, -1)
        starts = trace.text_starts[trace.prompt_of]
        lasts = starts + trace.contexts - 1
        self._last_numbers = numbers[lasts]
        # [positions, numbers] where each token last stood before the last token of the text; -1 where it did not.
        self._places = np.full((trace.num_positions, int(numbers.max(initial=0)) + 1), -1, dtype=np.int64)
        for position, (start, last) in enumerate(zip(starts.tolist(), lasts.tolist(), strict=True)):
            self._places[position, numbers[start:last]] = np.arange(start, last)  # of equals the last one stays

    def listing(self, width: int, depth: int, budget: int) -> Listing:
        """Return the trees of a depth limit, the first `budget` nodes; a smaller budget is their beginning.

        Those of another limit are others: of what it would leave over there may be too few.

        Args:
            width: Most children of a node.
            depth: Limit.
            budget: Most nodes.
        """
        trace, num = self._trace, self._trace.num_positions
        width = min(width, trace.top_tokens.shape[1])
        every, limits = np.arange(num), np.minimum(self._most, depth)
        wanted = np.concatenate([trace.next_tokens, np.full(depth + 1, -2, dtype=np.int32)])
        # One column for the root, and `width` for what stands behind it and behind each node that was taken: the
        # first of the cheapest columns is what a heap with a running number gives.
        shape = num, 1 + width * (budget + 1)
        costs = np.full(shape, np.inf)
        levels, rows = np.zeros(shape, dtype=np.int16), np.zeros(shape, dtype=np.int64)
        aboves, hits = np.zeros(shape, dtype=np.bool_), np.zeros(shape, dtype=np.bool_)
        costs[:, 0], hits[:, 0] = 0.0, True
        rows[:, 0] = self._places[every, self._last_numbers]
        taken = [np.zeros((num, budget), dtype=np.int64), *(np.zeros((num, budget), dtype=np.bool_) for _ in range(2))]
        for turn in range(budget + 1):
            end = 1 + width * turn
            column = costs[:, :end].argmin(axis=1)
            cost, level = costs[every, column], levels[every, column].astype(np.int64)
            is_there, hit = cost < np.inf, hits[every, column]
            if turn:
                for found, part in zip(taken, (level, hit, aboves[every, column]), strict=True):
                    found[:, turn - 1] = np.where(is_there, part, 0)
            if not is_there.any():
                break
            costs[every, column] = np.inf
            row = rows[every, column]
            grows = (is_there & (level < limits) & (row >= 0))[:, None]
            fresh, children = slice(end, end + width), self._behind[row, :width]
            costs[:, fresh] = np.where(grows, cost[:, None] - trace.top_logprobs[row, :width], np.inf)
            levels[:, fresh] = (level + 1)[:, None]
            rows[:, fresh] = np.where(children >= 0, self._places[every[:, None], children], -1)
            aboves[:, fresh] = hit[:, None]
            hits[:, fresh] = hit[:, None] & (trace.top_tokens[row, :width] == wanted[every + level, None])
        return Listing.of(*taken)
