"""Where forwards of fixed shape read their tokens: buffers that stay where they are, and what is copied to them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from autospec.engine.cache import States
from autospec.engine.lean.fixed_attention import FixedAttention
from autospec.engine.masks import NewTokens, Windows, visible
from autospec.engine.rows import FlatRows


class Buffers:
    """Numbers and masks on the device, each with a twin that the host writes.

    Args:
        numbers: Shape of the whole numbers.
        masks: Shape of the masks.
        like: A weight, whose device and format the masks get.
    """

    def __init__(self, numbers: Sequence[int], masks: Sequence[int], like: Tensor) -> None:
        is_cuda = like.is_cuda
        self._numbers = torch.zeros(*numbers, dtype=torch.int64, pin_memory=is_cuda)
        self._masks = torch.zeros(*masks, dtype=like.dtype, pin_memory=is_cuda)
        self.numbers = torch.zeros_like(self._numbers, device=like.device)
        self.masks = torch.zeros_like(self._masks, device=like.device)
        self._copied = torch.cuda.Event() if is_cuda else None

    def staged(self) -> tuple[Tensor, Tensor]:
        """Return what the host may write now: numbers and masks, as they were sent last."""
        if self._copied is not None:
            self._copied.synchronize()  # the last copy has read what is now written over
        return self._numbers, self._masks

    def send(self) -> None:
        """Copy both to the device."""
        self.numbers.copy_(self._numbers, non_blocking=True)
        self.masks.copy_(self._masks, non_blocking=True)
        if self._copied is not None:
            self._copied.record()


def places_of(windows: Windows) -> dict[int | None, int]:
    """Return under which number each window has its mask: one for all kinds of layers that look as far."""
    return {window: place for place, window in enumerate(dict.fromkeys(windows.values()))}


class FixedInputs:
    """Where a forward of fixed shape reads its tokens: buffers on the device, and what is copied to them.

    Tokens that only fill it up stand behind the others, where nothing sees them and the next forward writes over them.

    Args:
        num_tokens: Tokens of every forward.
        reach: Slots of the cache that it attends over.
        num_wanted: Tokens of which logits are wanted.
        windows: Of the model's kinds of layers.
        like: A weight, whose device and format the buffers get.
        num_draws: Numbers that tokens are drawn by.
    """

    def __init__(
        self, num_tokens: int, reach: int, num_wanted: int, windows: Windows, like: Tensor, num_draws: int = 0
    ) -> None:
        self.num_tokens, self.reach, self.num_wanted = num_tokens, reach, num_wanted
        self._windows = windows
        self._by_kind = places_of(windows)
        self._buffers = Buffers(
            (3 * num_tokens + num_wanted + num_draws,), (len(self._by_kind), num_tokens, reach), like
        )

    @property
    def token_ids(self) -> Tensor:
        """Of every token: [1, n]."""
        return self._buffers.numbers[None, : self.num_tokens]

    @property
    def positions(self) -> Tensor:
        """Of every token: [n]."""
        return self._buffers.numbers[self.num_tokens : 2 * self.num_tokens]

    @property
    def slots(self) -> Tensor:
        """Where every token's keys and values go: [n]."""
        return self._buffers.numbers[2 * self.num_tokens : 3 * self.num_tokens]

    @property
    def wanted(self) -> Tensor:
        """Which tokens logits are wanted of: [wanted]."""
        return self._buffers.numbers[3 * self.num_tokens :][: self.num_wanted]

    @property
    def draws(self) -> Tensor:
        """By which tokens are drawn, whole numbers below 2**53: [draws]."""
        return self._buffers.numbers[3 * self.num_tokens + self.num_wanted :]

    @property
    def masks(self) -> dict[str, Tensor]:
        """By kind of layer [1, 1, n, reach]: 0 where a token may look, the lowest number elsewhere."""
        return {kind: self._buffers.masks[None, None, self._by_kind[window]] for kind, window in self._windows.items()}

    def attending(self, keys: States, values: States) -> FixedAttention:
        """Return how the tokens attend to what a cache holds."""
        return FixedAttention(keys, values, self.slots, self.masks)

    @torch.inference_mode()
    def write(self, input_ids: Tensor, new: NewTokens, draws: Sequence[int] = ()) -> None:
        """Fill the buffers for new tokens behind those cached.

        Args:
            input_ids: [1, n] at most `num_tokens`.
            new: Where they stand.
            draws: The numbers.
        """
        numbers, masks = self._buffers.staged()
        length, num_new, most = new.lengths[0], new.num_new, self.num_tokens
        numbers[:num_new] = input_ids[0]
        numbers[num_new:most] = 0
        torch.arange(length, length + most, out=numbers[2 * most : 3 * most])
        numbers[most : 2 * most] = numbers[2 * most : 3 * most]
        if new.depths is not None:
            numbers[most : most + num_new] = new.positions[0]
        first = max(0, num_new - self.num_wanted)  # where all are wanted, those that fill up stand behind the others
        torch.arange(first, first + self.num_wanted, out=numbers[3 * most :][: self.num_wanted])
        if draws:
            numbers[3 * most + self.num_wanted :] = torch.tensor(draws)
        for window, place in self._by_kind.items():
            _write_mask(masks[place], new, window)
        self._buffers.send()


class FixedRows:
    """The same for several rows of a cache, each with as many tokens.

    Tokens that only fill rows up are written to the last slot, which no text reaches, and see one slot.

    Args:
        num_rows: The first so many of the cache.
        num_tokens: Of each row.
        reach: Slots that each attends over.
        trash: The last slot of a row.
        windows: Of the model's kinds of layers.
        like: A weight.
    """

    wanted = slice(None)

    def __init__(self, num_rows: int, num_tokens: int, reach: int, trash: int, windows: Windows, like: Tensor) -> None:
        self.num_rows, self.num_tokens, self.reach, self._trash = num_rows, num_tokens, reach, trash
        self._windows, self._by_kind = windows, places_of(windows)
        masks = (len(self._by_kind), num_rows, 1, num_tokens, reach)
        self._buffers = Buffers((3, num_rows, num_tokens), masks, like)
        self._rows = torch.arange(num_rows, device=like.device)[:, None].expand(num_rows, num_tokens)

    @property
    def token_ids(self) -> Tensor:
        """Of every token: [rows, n]."""
        return self._buffers.numbers[0]

    @property
    def positions(self) -> Tensor:
        """Of every token: [rows, n]."""
        return self._buffers.numbers[1]

    @property
    def slots(self) -> Tensor:
        """Where every token's keys and values go: [rows, n]."""
        return self._buffers.numbers[2]

    @property
    def masks(self) -> dict[str, Tensor]:
        """By kind of layer [rows, 1, n, reach]: 0 where a token may look, the lowest number elsewhere."""
        return {kind: self._buffers.masks[self._by_kind[window]] for kind, window in self._windows.items()}

    def attending(self, keys: States, values: States) -> FixedAttention:
        """Return how the tokens attend to what a cache holds."""
        return FixedAttention(keys, values, self.slots, self.masks, self._rows)

    @torch.inference_mode()
    def write(self, flat: FlatRows) -> None:
        """Fill the buffers.

        Args:
            flat: Tokens of some of these rows, at most `num_tokens` of each, none of them beyond `reach`.
        """
        numbers, masks = self._buffers.staged()
        numbers[:2] = 0
        numbers[2] = self._trash
        for place, values in enumerate((flat.token_ids, flat.positions, flat.slots)):
            numbers[place, flat.rows, flat.places] = values
        masks.fill_(torch.finfo(masks.dtype).min)
        masks[..., 0] = 0
        for window, place in self._by_kind.items():
            seen = flat.mask(window, masks.dtype)[flat.rows, 0, flat.places]
            masks[place, flat.rows, 0, flat.places, : flat.longest] = seen
        self._buffers.send()


def _write_mask(mask: Tensor, new: NewTokens, window: int | None) -> None:
    """Write what new tokens see into [n, reach]; those that fill it up see the first token, and nobody asks."""
    length, num_new = new.lengths[0], new.num_new
    end = length + num_new
    mask.fill_(torch.finfo(mask.dtype).min)
    mask[num_new:, 0] = 0
    if window is not None and end > window:
        mask[:num_new, :end].masked_fill_(visible(new, window)[0], 0)
        return
    seen = torch.ones(num_new, num_new, dtype=torch.bool).tril() if new.tree_mask is None else new.tree_mask
    start = end - seen.shape[1]
    mask[:num_new, :start] = 0
    mask[:num_new, start:end].masked_fill_(seen, 0)
