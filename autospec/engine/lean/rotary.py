"""Rotary positions from a table that grows with the text (RoFormer, 2104.09864)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_LEAST_ROWS = 256


class RotaryTable:
    """Angles of every position, as the model's own module computes them.

    Args:
        module: Of transformers: (tensor whose device and format are meant, positions [1, n]) -> cosines and sines
            [1, n, head_dim], which must not depend on how long the text is.
        like: A weight of the model.
    """

    def __init__(self, module: Any, like: Tensor) -> None:
        self._module, self._like = module, like
        self._cosines = self._sines = like.new_empty(0, 0)

    def at(self, start: int, num_new: int) -> tuple[Tensor, Tensor]:
        """Return cosines and signed sines [n, 1, head_dim] of n positions in a row."""
        end = start + num_new
        self._reach(end)
        return self._cosines[start:end], self._sines[start:end]

    def at_each(self, positions: Tensor, longest: int) -> tuple[Tensor, Tensor]:
        """Return them of positions [rows, n] on the CPU, none beyond `longest`: [rows, n, 1, head_dim]."""
        self._reach(longest + 1)
        places = positions.to(self._cosines.device)
        return self._cosines[places], self._sines[places]

    def up_to(self, num_positions: int) -> tuple[Tensor, Tensor]:
        """Return the table of at least so many positions, [m, 1, head_dim] each; it never changes any more."""
        self._reach(num_positions)
        return self._cosines, self._sines

    def _reach(self, num_positions: int) -> None:
        if num_positions <= len(self._cosines):
            return
        num_rows = max(_LEAST_ROWS, 1 << (num_positions - 1).bit_length())
        cosines, sines = self._module(self._like, torch.arange(num_rows, device=self._like.device)[None])
        first, second = sines[0].chunk(2, dim=-1)
        self._cosines, self._sines = cosines[0][:, None], torch.cat([-first, second], dim=-1)[:, None]


def rotate(states: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Turn queries or keys [rows, n, heads, head_dim]; the sign of the halves that change places is in the sines."""
    cosines, sines = rope
    return torch.addcmul(states * cosines, states.roll(states.shape[-1] // 2, -1), sines)
