"""What a profile measures and how long it may take. Plain numbers; knows no models."""

from __future__ import annotations

from dataclasses import dataclass

from autospec.config import MAX_DRAFT_LENGTH
from autospec.errors import ConfigError

EVERY_SIZE_TO = 16
LARGER_SIZES = (24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
OTHER_SIZES = (1, 2, 3, 4, 6, 8, 12, 16)  # where not every size is measured
REFERENCE_CONTEXT = 256
STEP_ROOM = 4  # tokens besides a forward's that a step needs behind its context
_RATIO_OF_CONTEXTS, _APART = 4, 0.8  # 256, 1024, 4096, ..., but none close to the last
_END_ROOM = 36  # tokens left behind the longest context, for short drafts


@dataclass(frozen=True, slots=True)
class ProfileSettings:
    """What to measure.

    Args:
        budget_seconds: About how long it may take, models already loaded. Nearer points are measured first; further
            contexts that do not fit are left out, and the profile says so. Time that is left goes into repeats.
        contexts: Lengths of the text behind which steps are measured; empty takes several up to `max_context`.
        max_context: Longest of those that are chosen.
        max_tokens: Most tokens of one target forward.
        draft_lengths: Depths of drafts, from 1.
        widths: Rows of one draft forward, for trees, beside the 1 of chains; empty leaves trees out.
        exit_layers: Of a target that drafts for itself, how many first layers, beside the half that drafts by
            default; empty takes one, and three quarters of them.
        batch_sizes: Rows of a target forward beside the 1 of steps, which serve one prompt at a time.
        max_rounds: How often anything is measured, at most.
        seed: Of the order of measurement.

    Raises:
        ConfigError: A value is out of range; all faults are listed.
    """

    budget_seconds: float = 60.0
    contexts: tuple[int, ...] = ()
    max_context: int = 4096
    max_tokens: int = 128
    draft_lengths: tuple[int, ...] = (*OTHER_SIZES, 24)
    widths: tuple[int, ...] = (2, 4, 8, 16)
    exit_layers: tuple[int, ...] = ()
    batch_sizes: tuple[int, ...] = (2, 4, 8)
    max_rounds: int = 21
    seed: int = 0

    def __post_init__(self) -> None:
        faults = [
            f"`{name} >= {low}` must hold, but got {value}"
            for name, low, value in (
                ("max_context", 1, self.max_context),
                ("max_tokens", EVERY_SIZE_TO, self.max_tokens),
                ("max_rounds", 1, self.max_rounds),
                ("seed", 0, self.seed),
            )
            if value < low
        ]
        if not 0.0 < self.budget_seconds < float("inf"):
            faults.append(f"`budget_seconds > 0` must hold, but got {self.budget_seconds}")
        faults += _ascending("contexts", self.contexts, 1)
        faults += _ascending("draft_lengths", self.draft_lengths, 1, MAX_DRAFT_LENGTH)
        if self.draft_lengths[:1] != (1,):
            faults.append(f"`draft_lengths` must begin with 1, but got {list(self.draft_lengths)}")
        faults += _ascending("widths", self.widths, 2)
        faults += _ascending("exit_layers", self.exit_layers, 1)
        faults += _ascending("batch_sizes", self.batch_sizes, 2)
        if self.max_tokens > LARGER_SIZES[-1]:
            faults.append(f"`max_tokens <= {LARGER_SIZES[-1]}` must hold, but got {self.max_tokens}")
        if faults:
            raise ConfigError(faults)

    @property
    def num_tokens(self) -> tuple[int, ...]:
        """Sizes of target forwards at the reference context: every one to 16, then buckets."""
        return (*range(1, EVERY_SIZE_TO + 1), *(size for size in LARGER_SIZES if size <= self.max_tokens))

    @property
    def fewer_tokens(self) -> tuple[int, ...]:
        """Sizes of target forwards elsewhere."""
        return tuple(size for size in self.num_tokens if size in (*OTHER_SIZES, *LARGER_SIZES))

    def contexts_of(self, usable_length: int, num_text_tokens: int) -> tuple[int, ...]:
        """Return the contexts to measure, the most telling first: the reference, the ends, what lies between.

        Args:
            usable_length: Most tokens that the target may see.
            num_text_tokens: Length of the text at hand; no text is measured twice over in one context.
        """
        longest = min(usable_length - _END_ROOM, num_text_tokens)
        if self.contexts:
            chosen = [one for one in self.contexts if one <= longest]
        else:
            end = min(longest, self.max_context)
            wide = min(end, usable_length - self.max_tokens - STEP_ROOM)  # where forwards of every size fit last
            between = [REFERENCE_CONTEXT * _RATIO_OF_CONTEXTS**power for power in range(16)]
            chosen = sorted({1, wide, end, *(one for one in between if one < _APART * wide)} & set(range(1, end + 1)))
        reference = min(chosen, key=lambda one: abs(one - REFERENCE_CONTEXT), default=0)
        rest = [one for one in chosen if one != reference]
        ends = [one for one in (max(rest, default=0), min(rest, default=0)) if one]
        return tuple(dict.fromkeys([*([reference] if chosen else []), *ends, *rest]))


def _ascending(name: str, values: tuple[int, ...], low: int, high: int = 1 << 30) -> list[str]:
    if list(values) == sorted(set(values)) and all(type(one) is int and low <= one <= high for one in values):
        return []
    upper = f" and at most {high}" if high < 1 << 30 else ""
    return [f"`{name}` must be ascending whole numbers of at least {low}{upper}, but got {list(values)}"]
