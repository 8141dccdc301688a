"""What a lean forward can be asked to do in one launch: tokens of a text, of several rows, a whole draft.

Each says what is fixed of it, how to fill its buffers, and what is to be run on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from autospec.engine.cache_pool import Store
from autospec.engine.launching import Run
from autospec.engine.lean import LeanForward
from autospec.engine.lean.buffers import FixedInputs, FixedRows
from autospec.engine.lean.fixed import ChainForm, FixedChain, FixedForward
from autospec.engine.masks import NewTokens
from autospec.engine.rows import FlatRows

_LEAST_REACH = 128
_WIDTHS_BETWEEN = 32  # hidden states of one token that the largest part of a layer takes, and more


@dataclass(frozen=True, slots=True)
class Shape:
    """What is fixed of a launch.

    Args:
        num_tokens: Tokens it runs of each row; of a loop, those of the text.
        reach: Slots it attends over.
        num_wanted: Tokens of each row of which it returns logits.
        wants_hidden: Whether it returns hidden states.
        form: Of a draft; None is none.
        num_rows: Rows side by side; 0 is the only row of a cache of one.
    """

    num_tokens: int
    reach: int
    num_wanted: int
    wants_hidden: bool = False
    form: ChainForm | None = None
    num_rows: int = 0

    def num_bytes(self, lean: LeanForward) -> int:
        """Return a bound of what a launch holds: buffers, what comes out, and what stands between layers."""
        vocab_size, width = lean.like.shape
        states = (len(lean.layer_numbers) + 1) * self.wants_hidden + _WIDTHS_BETWEEN
        numbers = self.num_tokens * (states * width + 2 * len(lean.windows) * self.reach)
        numbers += max(self.num_wanted, self.form.length if self.form else 0) * (6 * vocab_size + 2 * self.reach)
        return int(max(self.num_rows, 1) * numbers * lean.like.dtype.itemsize)


class Plan(Protocol):
    """One launch.

    Attributes:
        shape: What is fixed of it.
        num_slots: That a row of the memory must have.
    """

    shape: Shape
    num_slots: int

    def inputs(self, lean: LeanForward, store: Store) -> Any:
        """Make buffers."""
        ...

    def write(self, inputs: Any) -> None:
        """Fill them."""
        ...

    def run(self, lean: LeanForward, store: Store, inputs: Any) -> Run:
        """Return what runs on them."""
        ...


class TextPlan:
    """Tokens of a text.

    Args:
        input_ids: [1, n].
        new: Where they stand.
        shape: What is fixed.
        num_slots: See `Plan`.
        draws: Numbers by which a draft is drawn.
    """

    def __init__(
        self, input_ids: Tensor, new: NewTokens, shape: Shape, num_slots: int, draws: Sequence[int] = ()
    ) -> None:
        self._input_ids, self._new, self.shape, self.num_slots = input_ids, new, shape, num_slots
        self._draws = draws

    def inputs(self, lean: LeanForward, store: Store) -> FixedInputs:
        """See `Plan`."""
        shape = self.shape
        num_draws = shape.form.length if shape.form and not shape.form.sampling.is_greedy else 0
        return FixedInputs(shape.num_tokens, shape.reach, shape.num_wanted, lean.windows, lean.like, num_draws)

    def write(self, inputs: FixedInputs) -> None:
        """See `Plan`."""
        inputs.write(self._input_ids, self._new, self._draws)

    def run(self, lean: LeanForward, store: Store, inputs: FixedInputs) -> Run:
        """See `Plan`."""
        shape = self.shape
        if shape.form:
            return FixedChain(lean, store.keys, store.values, inputs, shape.form)
        return FixedForward(lean, store.keys, store.values, inputs, shape.wants_hidden)


class RowsPlan:
    """Tokens of several rows.

    Args:
        flat: Which.
        shape: What is fixed.
    """

    def __init__(self, flat: FlatRows, shape: Shape) -> None:
        self._flat, self.shape = flat, shape
        # The last slot is for what only fills rows up, in rows that ask nothing too.
        self.num_slots = max(flat.longest, *flat.lengths[: shape.num_rows]) + 1

    def inputs(self, lean: LeanForward, store: Store) -> FixedRows:
        """See `Plan`."""
        shape = self.shape
        return FixedRows(shape.num_rows, shape.num_tokens, shape.reach, store.capacity - 1, lean.windows, lean.like)

    def write(self, inputs: FixedRows) -> None:
        """See `Plan`."""
        inputs.write(self._flat)

    def run(self, lean: LeanForward, store: Store, inputs: FixedRows) -> Run:
        """See `Plan`."""
        return FixedForward(lean, store.keys, store.values, inputs, self.shape.wants_hidden)

    def flattened(self, outputs: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return logits [1, wanted tokens, vocab] and hidden states [1, tokens, width] of what came out for rows."""
        flat, (logits, *hidden) = self._flat, outputs
        rows, places = flat.rows.to(logits.device), flat.places.to(logits.device)
        states = tuple(one[None] for one in hidden[0][:, rows, places]) if hidden else ()
        return logits[rows, places][flat.with_logits][None], states


def bucket(num_tokens: int) -> int:
    """Return the size of the forward that so many tokens are run in: the next power of two."""
    return 1 << (num_tokens - 1).bit_length()


def reach_of(num_slots: int) -> int:
    """Return over how many slots a forward attends that must see so many: a power of two, or three quarters of it."""
    power = max(_LEAST_REACH, bucket(num_slots))
    return power * 3 // 4 if num_slots <= power * 3 // 4 and power > _LEAST_REACH else power
