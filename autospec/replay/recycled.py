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
        self._places = np.full((trace.num_positions, int(numbers.max(initial=0)) + 1), -1, dtype=np.int32)
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
        costs = np.full((num, 1 + width * (budget + 1)), np.inf)
        # Of the root and of what was taken, turn by turn: where its token stood, its depth, whether it is written.
        rows, levels = (np.zeros((budget + 1, num), dtype=np.int64) for _ in range(2))
        hits, aboves = (np.zeros((budget + 1, num), dtype=np.bool_) for _ in range(2))
        rows[0], hits[0] = self._places[every, self._last_numbers], True
        cost, is_there = np.zeros(num), np.ones(num, dtype=np.bool_)
        for turn in range(budget + 1):
            if turn:
                column = costs[:, : 1 + width * turn].argmin(axis=1)
                cost = costs[every, column]
                is_there = cost < np.inf
                if not is_there.any():
                    break
                costs[every, column] = np.inf
                above, rank = np.divmod(column - 1, width)
                parent, aboves[turn] = rows[above, every], hits[above, every] & is_there
                levels[turn] = (levels[above, every] + 1) * is_there
                written = wanted[every + levels[turn] - is_there]
                hits[turn] = aboves[turn] & (trace.top_tokens[parent, rank] == written)
                number = self._behind[parent, rank]
                rows[turn] = np.where(number >= 0, self._places[every, number], -1)
            grows = is_there & (levels[turn] < limits) & (rows[turn] >= 0)
            own = np.nonzero(grows)[0]
            fresh = slice(1 + width * turn, 1 + width * (turn + 1))
            costs[own, fresh] = cost[own, None] - trace.top_logprobs[rows[turn, own], :width]
        return Listing.of(levels[1:].T, hits[1:].T, aboves[1:].T)
