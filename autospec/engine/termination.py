"""Stopping rules: when a drafter stops drawing before the cap.

Pure array functions over leading dimensions, so that a simulator can call the same ones; and the small state that a
decoder keeps for a rule that learns. Whether token i + 1 is drawn may depend on tokens already drawn and kept, never
on itself: a sampled token, once drawn, is verified.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autospec.config import SpecConfig


def stops_by_confidence(token_probs: ArrayLike, threshold: float) -> NDArray[np.bool_]:
    """Tell after which drawn tokens drafting ends: those less probable than the threshold.

    The token itself is kept and verified (2405.04304, the unsupervised form).

    Args:
        token_probs: [...] draft probability of each drawn token.
        threshold: In [0, 1].
    """
    return np.asarray(np.asarray(token_probs) < threshold)


def heuristic_length(
    length: ArrayLike, num_drafted: ArrayLike, num_accepted: ArrayLike, cap: int
) -> NDArray[np.int64]:
    """Return the next draft length: 2 more after a draft that was accepted whole, 1 less after any other.

    The schedule of assisted generation in transformers. A step without a draft teaches nothing.

    Args:
        length: [...] current length.
        num_drafted: [...] tokens verified in the step.
        num_accepted: [...] of which accepted.
        cap: Longest draft.
    """
    length, num_drafted = np.asarray(length), np.asarray(num_drafted)
    moved = np.where(np.asarray(num_accepted) == num_drafted, length + 2, length - 1)
    return np.where(num_drafted > 0, np.clip(moved, 1, cap), length).astype(np.int64)


class DraftLength:
    """How long the next draft may be, within one generation."""

    def __init__(self, config: SpecConfig) -> None:
        self._adapts = config.stop_rule == "heuristic"
        self._cap = config.draft_length
        self._length = min(config.draft_length_start, self._cap) if self._adapts else self._cap

    @property
    def limit(self) -> int:
        """Most tokens the next draft may hold."""
        return self._length

    def observe(self, num_drafted: int, num_accepted: int) -> None:
        """Learn from a step; only the heuristic rule does."""
        if self._adapts:
            self._length = int(heuristic_length(self._length, num_drafted, num_accepted, self._cap))
