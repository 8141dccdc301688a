"""Which earlier tokens each new one sees: causal, along the paths of a tree, within a sliding window.

One mask for each kind of attention layer of a model, over a cache that keeps every token. Knows lengths and places,
neither models nor tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from autospec.errors import ModelError

# Kind of layer -> over how many tokens it looks, the token itself included; None is all of them.
Windows = Mapping[str, int | None]

_MOST_KEPT = 1 << 17  # numbers of a chain's mask that is kept for the next step
_LEAST_ROOM = 256


@dataclass(frozen=True, slots=True)
class NewTokens:
    """The tokens of one forward and where they stand.

    Args:
        lengths: Cached tokens of every row.
        num_new: Tokens of this forward.
        tree_mask: [num_new, m] bool, m >= num_new: which of the last m tokens, the new ones last, each new one sees
            besides all that came before those; None is causal. What one sees there is a path that ends with itself.
        depths: Position of each new token behind the cached ones; None counts up.
    """

    lengths: Sequence[int]
    num_new: int
    tree_mask: Tensor | None = None
    depths: Sequence[int] | None = None

    @property
    def is_level(self) -> bool:
        """Whether all rows have the same length."""
        return min(self.lengths) == max(self.lengths)

    @property
    def is_plain(self) -> bool:
        """Whether a model's own causal mask says the same: one token, or an empty cache."""
        return self.is_level and self.tree_mask is None and (self.num_new == 1 or max(self.lengths) == 0)

    @property
    def positions(self) -> Tensor:
        """Return the position of every new token: [rows, num_new]."""
        offsets = torch.arange(self.num_new) if self.depths is None else torch.tensor(self.depths)
        return torch.tensor(self.lengths)[:, None] + offsets


def visible(new: NewTokens, window: int | None = None) -> Tensor:
    """Return what every new token sees.

    A token at position p sees positions in (p - window, p], as transformers' masks have it. In a tree the window is
    measured along the path, not in slots of the cache.

    Args:
        new: The tokens.
        window: Over how many tokens the layer looks.

    Returns:
        [rows, num_new, max(lengths) + num_new] bool over the slots of the cache.
    """
    num_new, longest = new.num_new, max(new.lengths)
    seen = torch.ones(num_new, num_new, dtype=torch.bool).tril() if new.tree_mask is None else new.tree_mask
    if window is not None:
        # Steps up the path from each token to those it sees: itself 0, its parent 1.
        steps = seen.flip(-1).cumsum(dim=-1).flip(-1) - 1
        seen = seen & (steps < window)
    mask = torch.zeros(len(new.lengths), num_new, longest + num_new, dtype=torch.bool)
    for row, (length, positions) in enumerate(zip(new.lengths, new.positions, strict=True)):
        end = length + num_new
        start = end - seen.shape[1]
        mask[row, :, start:end] = seen
        mask[row, :, :start] = True if window is None else torch.arange(start) > positions[:, None] - window
    return mask


def attention_mask(
    new: NewTokens, windows: Windows, dtype: torch.dtype, device: torch.device | None = None
) -> Tensor | dict[str, Tensor] | None:
    """Build what a forward takes as its attention mask.

    Args:
        new: The tokens.
        windows: Of the model's kinds of layers.
        dtype: Of the masks.
        device: Of the masks; None is the CPU.

    Returns:
        [rows, 1, num_new, max(lengths) + num_new] with 0 where a token may look and the lowest number elsewhere; by
        kind of layer where those differ; None where the model's own causal mask says the same.
    """
    if new.is_plain:
        return None
    end = max(new.lengths) + new.num_new
    reaches = {kind: None if window is None or end <= window else window for kind, window in windows.items()}
    masks = {window: _additive(visible(new, window), dtype).to(device) for window in set(reaches.values())}
    if len(masks) == 1:
        return next(iter(masks.values()))
    return {kind: masks[window] for kind, window in reaches.items()}


@dataclass(frozen=True, slots=True)
class Sight:
    """What the new tokens of one forward see in one kind of layer.

    Args:
        mask: [rows or 1, 1, num_new, max(lengths) + num_new] with 0 where a token may look and the lowest number
            elsewhere; None where it may look everywhere, or everywhere before it.
        is_causal: Without a mask: each sees only itself and those before it.
    """

    mask: Tensor | None
    is_causal: bool = False


def sights(new: NewTokens, windows: Windows, dtype: torch.dtype, device: torch.device) -> dict[str, Sight]:
    """Return by kind of layer what scaled dot-product attention needs to be told.

    Args:
        new: The tokens.
        windows: Of the model's kinds of layers.
        dtype: Of the masks.
        device: Of the masks.
    """
    end = max(new.lengths) + new.num_new
    by_reach: dict[int | None, Sight] = {}
    found = {}
    for kind, window in windows.items():
        reach = None if window is None or end <= window else window
        if reach not in by_reach:
            by_reach[reach] = _sight(new, reach, dtype, device)
        found[kind] = by_reach[reach]
    return found


def _sight(new: NewTokens, window: int | None, dtype: torch.dtype, device: torch.device) -> Sight:
    if window is None and new.is_plain:
        return Sight(None, is_causal=new.num_new > 1)
    if window is None and new.is_level:
        length = new.lengths[0]
        # Parts of a kept mask begin anywhere, which only a CPU reads as well as one of its own.
        if new.tree_mask is None and new.num_new * length <= _MOST_KEPT and device.type == "cpu":
            room = max(_LEAST_ROOM, 1 << (length - 1).bit_length()) if length else 0
            return Sight(_chain(new.num_new, room, dtype)[:, :, :, room - length :])
        return Sight(_behind_a_text(new, dtype).to(device))
    return Sight(_additive(visible(new, window), dtype).to(device))


@lru_cache(maxsize=32)
def _chain(num_new: int, room: int, dtype: torch.dtype) -> Tensor:
    """Return the mask of a chain behind a text of `room` tokens; that behind a shorter text is its right part."""
    return _behind_a_text(NewTokens([room], num_new), dtype)


def _behind_a_text(new: NewTokens, dtype: torch.dtype) -> Tensor:
    """Return the mask of rows of one length, whose tokens all see what lies before the draft."""
    end = new.lengths[0] + new.num_new
    seen = torch.ones(new.num_new, new.num_new, dtype=torch.bool).tril() if new.tree_mask is None else new.tree_mask
    mask = torch.zeros(new.num_new, end, dtype=dtype)
    mask[:, end - seen.shape[1] :].masked_fill_(~seen, torch.finfo(dtype).min)
    return mask[None, None]


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def layer_windows(config: Any, name: str) -> Windows:
    """Read from a text configuration of transformers over how many tokens each kind of its layers looks.

    Args:
        config: With `layer_types`, or a `sliding_window` of all layers, or neither.
        name: Of the model, for the message.

    Raises:
        ModelError: Layers of another kind than full or sliding attention.
    """
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    if "local" in (getattr(config, "attention_layers", None) or ()):
        kinds.add("local")  # GPT-Neo counts its window in slots of the cache, out of a mask's reach
    if not kinds:  # all layers are alike
        is_chunked = getattr(config, "attention_chunk_size", None) is not None
        kinds = {"chunked_attention" if is_chunked else "sliding_attention" if window else "full_attention"}
    others = sorted(kinds - {"full_attention", "sliding_attention"})
    if others:
        raise ModelError(f"layers must have full or sliding attention, but those of `{name}` have {others}")
    return {kind: int(window) if kind == "sliding_attention" and window else None for kind in kinds}
