"""A lean forward in size buckets: one launch for each number of tokens, slots attended over, and what is wanted.

Prompts, batches, and whatever has no room or no bucket run as they always do. Knows how launches are kept and filled,
not how they are made.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from autospec.engine.cache import KVCache
from autospec.engine.cache_pool import PooledCache, Store
from autospec.engine.launching import Launching, Run
from autospec.engine.lean import LeanForward
from autospec.engine.lean.fixed import FixedChain, FixedForward, FixedInputs
from autospec.engine.masks import NewTokens
from autospec.engine.probing import differ
from autospec.engine.rows import FlatRows

MOST_TOKENS = 128  # of a forward; more are a prompt's, whose products are large enough to hide launches
_MOST_FRESH = 4  # tokens of a text that a draft loop may begin with
_LEAST_REACH = 128
_WIDTHS_BETWEEN = 32  # hidden states of one token that the largest part of a layer takes, and more


@dataclass(frozen=True, slots=True)
class Shape:
    """What is fixed of a launch.

    Args:
        num_tokens: Tokens it runs; of a loop, those of the text.
        reach: Slots it attends over.
        num_wanted: Tokens of which it returns logits.
        wants_hidden: Whether it returns hidden states.
        num_drafted: Tokens that a loop drafts; 0 is none.
        vocab_size: Tokens that a loop may draft lie below.
    """

    num_tokens: int
    reach: int
    num_wanted: int
    wants_hidden: bool = False
    num_drafted: int = 0
    vocab_size: int = 0


@dataclass(slots=True)
class _Launch:
    """A launch, and the buffers that it reads."""

    inputs: FixedInputs
    run: Run


@dataclass(slots=True)
class _Table:
    """The launches of one memory, which hold its tensors: no other gets their addresses as long as they are here."""

    first: Tensor
    launches: dict[Shape, _Launch | None] = field(default_factory=dict)


class Graphs:
    """Runs a lean forward by launches where it can; see `autospec.engine.forwards.Forward`.

    Args:
        lean: What runs.
        launching: How launches are made.
    """

    def __init__(self, lean: LeanForward, launching: Launching) -> None:
        self.lean, self._launching = lean, launching
        self._tables: WeakKeyDictionary[Store, _Table] = WeakKeyDictionary()
        self._is_checked = self._is_loop_checked = self._is_refused = False

    def run(
        self, input_ids: Tensor, new: NewTokens, cache: KVCache, num_logits: int, wants_hidden: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run tokens; see `Forward`."""
        num_new = new.num_new
        wants_all = num_logits in (0, num_new)
        if num_new <= MOST_TOKENS and (wants_all or num_logits == 1):
            size = bucket(num_new)
            outputs = self._launched(
                cache, input_ids, new, lambda reach: Shape(size, reach, size if wants_all else 1, wants_hidden), size
            )
            if outputs is not None:
                logits, *hidden = outputs
                return logits[:, : num_new if wants_all else 1], tuple(hidden[0][:, :, :num_new]) if hidden else ()
        return self.lean.run(input_ids, new, cache, num_logits, wants_hidden)

    def chain(self, token_ids: Sequence[int], cache: KVCache, length: int, vocab_size: int) -> list[int] | None:
        """Draft the most probable tokens behind a text, one after the other, in one launch.

        Args:
            token_ids: Of the text, behind those cached.
            cache: Written to, but for the last of the tokens drafted; not advanced.
            length: Tokens to draft.
            vocab_size: Tokens to draft lie below.

        Returns:
            The tokens; None where they must be drafted one by one.
        """
        num_fresh = len(token_ids)
        if not self._launching.loops or num_fresh > _MOST_FRESH:
            return None
        size = max(2, bucket(num_fresh))  # a text has one or two tokens that were not run
        outputs = self._launched(
            cache,
            torch.tensor([token_ids]),
            NewTokens(cache.lengths, num_fresh),
            lambda reach: Shape(size, reach, 1, num_drafted=length, vocab_size=vocab_size),
            max(size, num_fresh + length - 1),
        )
        if outputs is None:
            return None
        tokens = [int(token) for token in outputs[0].tolist()]
        if not self._is_loop_checked:
            self._check_loop(tokens[0], token_ids, cache, vocab_size)
        return None if self._is_refused else tokens

    def run_rows(self, flat: FlatRows, cache: KVCache, wants_hidden: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run tokens of several rows; see `Forward`."""
        return self.lean.run_rows(flat, cache, wants_hidden)

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits; see `Forward`."""
        return self.lean.head(hidden)

    def keep(self, layers: Sequence[int]) -> Graphs:
        """Return one of some of its layers; see `LeanForward`."""
        return Graphs(self.lean.keep(layers), self._launching)

    @property
    def num_launches(self) -> int:
        """How many shapes can be launched now."""
        tables = list(self._tables.values())
        return sum(launch is not None for table in tables for launch in table.launches.values())

    def _launched(
        self,
        cache: KVCache,
        input_ids: Tensor,
        new: NewTokens,
        shape_of: Callable[[int], Shape],
        num_slots: int,
    ) -> list[Tensor] | None:
        """Launch; return copies of what comes out, or None where that cannot be.

        Args:
            cache: Where.
            input_ids: [1, n].
            new: The tokens.
            shape_of: The shape, by the slots it attends over.
            num_slots: It writes behind those cached.
        """
        store = cache.store if isinstance(cache, PooledCache) else None
        end = cache.length + num_slots
        is_prompt = cache.length == 0  # runs alike whether or not its memory was another's before
        if self._is_refused or store is None or is_prompt or end > cache.capacity:
            return None
        shape = shape_of(min(reach_of(end), cache.capacity))
        with self._launching.turn():
            table = self._table(store)
            if table is None:
                return None
            if shape not in table.launches:
                table.launches[shape] = self._made(store, shape, input_ids, new)
            launch = table.launches[shape]
            if launch is None:
                return None
            launch.inputs.write(input_ids, new)
            outputs = [output.clone() for output in launch.run()]
        if not self._is_checked and not shape.num_drafted:
            self._check(outputs[0], shape, input_ids, new, cache)
        return None if self._is_refused else outputs

    def _table(self, store: Store) -> _Table | None:
        """Return the launches of a memory as it is now; None where its layers have no tensors yet."""
        layers = self.lean.layer_numbers
        if any(layer not in store.keys for layer in layers):
            return None
        first = store.keys[layers[0]]
        if store not in self._tables or self._tables[store].first is not first:
            self._tables[store] = _Table(first)  # whatever was made for smaller tensors is let go of
        return self._tables[store]

    def _made(self, store: Store, shape: Shape, input_ids: Tensor, new: NewTokens) -> _Launch | None:
        """Make a launch, behind buffers that hold tokens already; None where there can be none."""
        lean = self.lean
        if not self._launching.has_room(self._needed_bytes(shape)):
            return None
        try:
            inputs = FixedInputs(shape.num_tokens, shape.reach, shape.num_wanted, lean.windows, lean.like)
            inputs.write(input_ids, new)
            run: Run
            if shape.num_drafted:
                run = FixedChain(lean, store.keys, store.values, inputs, shape.num_drafted, shape.vocab_size)
            else:
                run = FixedForward(lean, store.keys, store.values, inputs, shape.wants_hidden)
            return _Launch(inputs, self._launching.make(run))
        except torch.OutOfMemoryError:
            return None
        except RuntimeError as error:  # of drivers and compilers, which raise what they like; running anew is right
            self._refuse(f"none can be launched whole: {error}")
            return None

    def _check(self, logits: Tensor, shape: Shape, input_ids: Tensor, new: NewTokens, cache: KVCache) -> None:
        """Refuse all launches if the first has other logits [1, wanted, vocab] than what it stands for."""
        num_logits = min(shape.num_wanted, new.num_new)
        expected, _ = self.lean.run(input_ids, new, cache, num_logits, wants_hidden=False)
        self._is_checked = True
        if differ(logits[:, :num_logits].float(), expected.float(), expected.dtype):
            self._refuse("launched whole they compute something else")

    def _check_loop(self, token: int, token_ids: Sequence[int], cache: KVCache, vocab_size: int) -> None:
        """Refuse all launches if the first loop begins with a token that is far from the most probable."""
        new = NewTokens(cache.lengths, len(token_ids))
        logits, _ = self.lean.run(torch.tensor([token_ids]), new, cache, 1, wants_hidden=False)
        scores = logits[0, -1, :vocab_size].float()
        self._is_loop_checked = True
        limit = 0.01 if logits.dtype == torch.float32 else 0.5  # standard deviations: those of a tie are less
        if scores.max() - scores[token] > limit * scores.std():
            self._refuse("drafts launched whole begin with another token")

    def _refuse(self, why: str) -> None:
        self._is_refused = True
        self._tables.clear()
        warnings.warn(f"forwards run one operation at a time, because {why}", stacklevel=2)

    def _needed_bytes(self, shape: Shape) -> int:
        """Return a bound of what a launch holds: buffers, what comes out, and what stands between layers."""
        vocab_size, width = self.lean.like.shape
        states = (len(self.lean.layer_numbers) + 1) * shape.wants_hidden + _WIDTHS_BETWEEN
        numbers = shape.num_tokens * (states * width + 2 * len(self.lean.windows) * shape.reach)
        numbers += max(shape.num_wanted, shape.num_drafted) * (3 * vocab_size + 2 * shape.reach)
        return int(numbers * self.lean.like.dtype.itemsize)


def bucket(num_tokens: int) -> int:
    """Return the size of the forward that so many tokens are run in: the next power of two."""
    return 1 << (num_tokens - 1).bit_length()


def reach_of(num_slots: int) -> int:
    """Return over how many slots a forward attends that must see so many: a power of two, or three quarters of it."""
    power = max(_LEAST_REACH, bucket(num_slots))
    return power * 3 // 4 if num_slots <= power * 3 // 4 and power > _LEAST_REACH else power
