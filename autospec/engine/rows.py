"""New tokens of several rows of a batch, of any number each, laid one behind the other.

Knows lengths and places, neither models nor texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from autospec.engine.masks import NewTokens, visible


@dataclass(frozen=True, slots=True)
class RowTokens:
    """What is to be run behind one row of a cache.

    Args:
        row: Which row.
        token_ids: At least one.
        tree_mask: [n, m] as for `CausalLM.forward`; None is causal.
        depths: As there; None counts up.
        num_logits: Logits of the last so many of them are wanted; 0 is all.
    """

    row: int
    token_ids: Sequence[int]
    tree_mask: Tensor | None = None
    depths: Sequence[int] | None = None
    num_logits: int = 0

    @property
    def num_wanted(self) -> int:
        """For how many of them logits are wanted."""
        return self.num_logits or len(self.token_ids)


class FlatRows:
    """Tokens of rows, and where each of them stands.

    Args:
        lengths: Cached tokens of every row of the cache.
        asked: At most one for each row; rows that ask nothing are left as they are.
    """

    def __init__(self, lengths: Sequence[int], asked: Sequence[RowTokens]) -> None:
        rows = [one.row for one in asked]
        assert asked, "some row must ask"
        assert len(set(rows)) == len(rows), rows
        self.asked = tuple(asked)
        self.lengths = tuple(lengths)
        self.num_rows = max(rows) + 1  # those behind are not looked at
        self.most_new = max(len(one.token_ids) for one in asked)
        self.ends = [lengths[one.row] + len(one.token_ids) for one in asked]  # slots up to the last one written
        self.longest = max(self.ends)
        self.token_ids = torch.tensor([token for one in asked for token in one.token_ids])
        self.rows = torch.tensor([one.row for one in asked for _ in one.token_ids])
        self.places = torch.tensor([place for one in asked for place in range(len(one.token_ids))])
        self.slots = torch.tensor([lengths[one.row] + place for one in asked for place in range(len(one.token_ids))])

    def by_row(self) -> list[NewTokens]:
        """Return in the order asked where the tokens of each row stand."""
        return [
            NewTokens([self.lengths[one.row]], len(one.token_ids), one.tree_mask, one.depths) for one in self.asked
        ]

    @cached_property
    def positions(self) -> Tensor:
        """Return the position of every token: [tokens]."""
        if all(one.depths is None for one in self.asked):
            return self.slots
        depths = [one.depths or range(len(one.token_ids)) for one in self.asked]
        pairs = zip(self.asked, depths, strict=True)
        return torch.tensor([self.lengths[one.row] + depth for one, own in pairs for depth in own])

    @cached_property
    def with_logits(self) -> slice | Tensor:
        """Return which tokens logits are wanted of."""
        if all(one.num_wanted == len(one.token_ids) for one in self.asked):
            return slice(None)
        wanted, end = list[int](), 0
        for one in self.asked:
            end += len(one.token_ids)
            wanted += range(end - one.num_wanted, end)
        return torch.tensor(wanted)

    def split(self, logits: Tensor) -> list[Tensor]:
        """Return by row, in the order asked, the logits [wanted tokens, vocab] of all."""
        return list(logits.split([one.num_wanted for one in self.asked]))

    def split_tokens(self, states: Tensor) -> list[Tensor]:
        """Return by row, in the order asked, what [tokens, ...] holds of every token."""
        return list(states.split([len(one.token_ids) for one in self.asked]))

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Return [rows, 1, most_new, longest] with 0 where a token may look and the lowest number elsewhere.

        Places that stand for no token may look at everything: what comes of them is dropped.

        Args:
            window: Over how many tokens the layer looks; None is all of them.
            dtype: Of the mask.
        """
        if window is not None and self.longest <= window:
            window = None
        lowest = torch.finfo(dtype).min
        mask = torch.zeros(self.num_rows, 1, self.most_new, self.longest, dtype=dtype)
        columns = torch.arange(self.longest)
        ends = torch.full((self.num_rows, self.most_new), self.longest)
        ends[self.rows, self.places] = self.slots
        mask.masked_fill_((columns > ends[..., None])[:, None], lowest)
        for one, new in zip(self.asked, self.by_row(), strict=True):
            if one.tree_mask is not None or window is not None:
                seen = visible(new, window)[0]
                own = mask[one.row, 0, : seen.shape[0], : seen.shape[1]]
                own.zero_().masked_fill_(~seen, lowest)
        return mask
