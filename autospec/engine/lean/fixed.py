"""The lean forward in fixed shapes: all that depends on the text is read from buffers which stay where they are.

What one call launched can therefore be launched again for another text: by a captured graph, or by compiled code.
Knows buffers, layers and caches; not when it pays, nor who fills it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from autospec.engine.cache import States
from autospec.engine.lean.attention import Heads
from autospec.engine.lean.forward import LeanForward
from autospec.engine.masks import NewTokens, Windows, visible


class FixedInputs:
    """Where a forward of fixed shape reads its tokens: buffers on the device, and what is copied to them.

    Tokens that only fill it up stand behind the others, where nothing sees them and the next forward writes over them.

    Args:
        num_tokens: Tokens of every forward.
        reach: Slots of the cache that it attends over.
        num_wanted: Tokens of which logits are wanted.
        windows: Of the model's kinds of layers.
        like: A weight, whose device and format the buffers get.
    """

    def __init__(self, num_tokens: int, reach: int, num_wanted: int, windows: Windows, like: Tensor) -> None:
        self.num_tokens, self.reach, self.num_wanted = num_tokens, reach, num_wanted
        self._windows, self._like = windows, like
        self._by_kind = {window: place for place, window in enumerate(dict.fromkeys(windows.values()))}
        self._staged_numbers = self._made(3 * num_tokens + num_wanted, dtype=torch.int64)
        self._staged_masks = self._made(len(self._by_kind), num_tokens, reach, dtype=like.dtype)
        self._numbers = torch.zeros_like(self._staged_numbers, device=like.device)
        self._masks = torch.zeros_like(self._staged_masks, device=like.device)
        self._copied = torch.cuda.Event() if like.is_cuda else None

    def _made(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(*shape, dtype=dtype, pin_memory=self._like.is_cuda)

    @property
    def token_ids(self) -> Tensor:
        """Of every token: [1, n]."""
        return self._numbers[None, : self.num_tokens]

    @property
    def positions(self) -> Tensor:
        """Of every token: [n]."""
        return self._numbers[self.num_tokens : 2 * self.num_tokens]

    @property
    def slots(self) -> Tensor:
        """Where every token's keys and values go: [n]."""
        return self._numbers[2 * self.num_tokens : 3 * self.num_tokens]

    @property
    def wanted(self) -> Tensor:
        """Which tokens logits are wanted of: [wanted]."""
        return self._numbers[3 * self.num_tokens :]

    @property
    def masks(self) -> dict[str, Tensor]:
        """By kind of layer [1, 1, n, reach]: 0 where a token may look, the lowest number elsewhere."""
        return {kind: self._masks[None, None, self._by_kind[window]] for kind, window in self._windows.items()}

    @torch.inference_mode()
    def write(self, input_ids: Tensor, new: NewTokens) -> None:
        """Fill the buffers for new tokens behind those cached.

        Args:
            input_ids: [1, n] at most `num_tokens`.
            new: Where they stand.
        """
        if self._copied is not None:
            self._copied.synchronize()  # the last copy has read what is now written over
        length, num_new, most = new.lengths[0], new.num_new, self.num_tokens
        numbers = self._staged_numbers
        numbers[:num_new] = input_ids[0]
        numbers[num_new:most] = 0
        torch.arange(length, length + most, out=numbers[2 * most : 3 * most])
        numbers[most : 2 * most] = numbers[2 * most : 3 * most]
        if new.depths is not None:
            numbers[most : most + num_new] = new.positions[0]
        first = max(0, num_new - self.num_wanted)  # where all are wanted, those that fill up stand behind the others
        torch.arange(first, first + self.num_wanted, out=numbers[3 * most :])
        for window, place in self._by_kind.items():
            _write_mask(self._staged_masks[place], new, window)
        self._numbers.copy_(numbers, non_blocking=True)
        self._masks.copy_(self._staged_masks, non_blocking=True)
        if self._copied is not None:
            self._copied.record()


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


class FixedAttention:
    """Writes keys and values at slots named by a tensor, and looks at so many slots whatever the text's length.

    Queries that share keys stand behind one another as if they were tokens of one head: fused attention that takes
    both a mask and fewer heads of keys than of queries is not to be had on every device.

    Args:
        keys: Of the cache.
        values: Of the cache.
        slots: [n] where new tokens go.
        masks: By kind of layer [1, 1, n, reach].
    """

    def __init__(self, keys: States, values: States, slots: Tensor, masks: Mapping[str, Tensor]) -> None:
        self._keys, self._values, self._slots, self._masks = keys, values, slots, masks
        self._folded: dict[tuple[str, int], Tensor] = {}

    def mix(self, number: int, heads: Heads, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `Attending`."""
        all_keys, all_values = self._keys[number], self._values[number]
        all_keys.index_copy_(2, self._slots, keys.transpose(1, 2))
        all_values.index_copy_(2, self._slots, values.transpose(1, 2))
        num_new, num_shared = queries.shape[1], heads.num_queries // heads.num_keys
        mask = self._mask(heads.kind, num_shared)
        reach = mask.shape[-1]
        by_keys = queries.view(num_new, heads.num_keys, num_shared, heads.size).transpose(0, 1)
        mixed = scaled_dot_product_attention(
            by_keys.reshape(1, heads.num_keys, num_new * num_shared, heads.size),
            all_keys[:, :, :reach],
            all_values[:, :, :reach],
            mask,
            scale=heads.scale,
        )
        apart = mixed.view(heads.num_keys, num_new, num_shared, heads.size).transpose(0, 1)
        return apart.reshape(1, num_new, heads.num_queries, heads.size)

    def _mask(self, kind: str, num_shared: int) -> Tensor:
        """Return a mask with one row for each query that shares keys: [1, 1, n * shared, reach]."""
        if num_shared == 1:
            return self._masks[kind]
        if (kind, num_shared) not in self._folded:
            self._folded[kind, num_shared] = self._masks[kind].repeat_interleave(num_shared, dim=2)
        return self._folded[kind, num_shared]


class FixedForward:
    """Runs a lean forward on buffers.

    Args:
        lean: What runs.
        keys: Of the cache.
        values: Of the cache.
        inputs: The buffers.
        wants_hidden: Return hidden states too.
    """

    def __init__(
        self, lean: LeanForward, keys: States, values: States, inputs: FixedInputs, wants_hidden: bool = False
    ) -> None:
        self.inputs, self._lean, self._wants_hidden = inputs, lean, wants_hidden
        self._keys, self._values = dict(keys), dict(values)
        # Held here, because a longer text elsewhere makes the model another table.
        self._angles = lean.rotary.up_to(inputs.reach)

    def __call__(self) -> tuple[Tensor, ...]:
        """Run what the buffers say.

        Returns:
            Logits [1, wanted, vocab], and hidden states [layers + 1, 1, n, width] where they are wanted.
        """
        inputs = self.inputs
        attention = FixedAttention(self._keys, self._values, inputs.slots, inputs.masks)
        rope = _turns(self._angles, inputs.positions)
        logits, hidden = self._lean.through(inputs.token_ids, rope, attention, inputs.wanted, self._wants_hidden)
        return (logits, torch.stack(hidden)) if self._wants_hidden else (logits,)


class FixedChain:
    """Drafts the most probable tokens one after the other; the host is asked for nothing in between.

    Args:
        lean: What runs.
        keys: Of the cache.
        values: Of the cache.
        inputs: Buffers of the tokens that were not run yet, with one logit row wanted.
        length: Tokens to draft.
        vocab_size: Only tokens below may be drafted.
    """

    def __init__(
        self,
        lean: LeanForward,
        keys: States,
        values: States,
        inputs: FixedInputs,
        length: int,
        vocab_size: int,
    ) -> None:
        self.inputs, self._lean, self._length, self._vocab_size = inputs, lean, length, vocab_size
        self._keys, self._values = dict(keys), dict(values)
        self._first = FixedForward(lean, keys, values, inputs)
        self._angles = lean.rotary.up_to(inputs.reach)
        self._columns = torch.arange(inputs.reach, device=inputs.slots.device)
        self._steps = torch.arange(1, length, device=inputs.slots.device)

    def __call__(self) -> tuple[Tensor, ...]:
        """Run what the buffers say; return the tokens [length]."""
        (logits,) = self._first()
        tokens = [self._best(logits)]
        if self._length > 1:
            slots = self.inputs.slots[self.inputs.wanted] + self._steps
            cosines, sines = _turns(self._angles, slots)
            masks = {kind: self._masks(slots, window) for kind, window in self._lean.windows.items()}
            for step in range(self._length - 1):
                here = slice(step, step + 1)
                own = {kind: mask[:, :, here] for kind, mask in masks.items()}
                attention = FixedAttention(self._keys, self._values, slots[here], own)
                rope = cosines[here], sines[here]
                logits, _ = self._lean.through(tokens[-1], rope, attention, slice(None), wants_hidden=False)
                tokens.append(self._best(logits))
        return (torch.cat(tokens, dim=1)[0],)

    def _best(self, logits: Tensor) -> Tensor:
        """Return [1, 1] the token with the highest of logits [1, 1, vocab]."""
        return logits[..., : self._vocab_size].float().argmax(dim=-1)

    def _masks(self, slots: Tensor, window: int | None) -> Tensor:
        """Return [1, 1, tokens, reach]: each token sees all slots up to its own, within the window."""
        seen = self._columns <= slots[:, None]
        if window is not None:
            seen &= self._columns > slots[:, None] - window
        lowest = torch.finfo(self._like.dtype).min
        return torch.zeros(seen.shape, dtype=self._like.dtype, device=seen.device).masked_fill_(~seen, lowest)[
            None, None
        ]

    @property
    def _like(self) -> Tensor:
        return next(iter(self._keys.values()))


def _turns(angles: tuple[Tensor, Tensor], positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines and signed sines [n, 1, head_dim] of positions [n]."""
    cosines, sines = angles
    return cosines[positions], sines[positions]
