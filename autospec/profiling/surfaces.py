"""The points of a profile as surfaces to ask; each drafter has its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from autospec.profiling.curves import Surface
from autospec.profiling.parts import DrafterContext, DrafterCosts, DraftPoint, PlainPoint, PrefillPoint, TargetPoint

_STEP = ("batch_size", "context_length", "num_tokens")


@dataclass(frozen=True)
class TargetSurfaces:
    """The target and the host."""

    forwards: Surface
    hosts: Surface
    plain: Surface
    prefills: Surface

    @classmethod
    def of(
        cls, targets: Iterable[TargetPoint], plain: Iterable[PlainPoint], prefills: Iterable[PrefillPoint]
    ) -> TargetSurfaces:
        """Build from points."""
        placed = [((p.batch_size, p.context_length, p.num_tokens), p) for p in targets]
        return cls(
            Surface("target forwards", _STEP, [(place, p.forward.seconds) for place, p in placed]),
            Surface("steps", _STEP, [(place, p.host.seconds) for place, p in placed if p.host is not None]),
            Surface(
                "steps of the plain loop",
                _STEP[:2],
                [((p.batch_size, p.context_length), p.step.seconds) for p in plain],
            ),
            Surface(
                "prompts",
                ("batch_size", "num_tokens"),
                [((p.batch_size, p.num_tokens), p.prefill.seconds) for p in prefills],
            ),
        )


class DrafterSurfaces:
    """One drafter.

    Args:
        name: For messages.
        costs: Its points.
    """

    def __init__(self, name: str, costs: DrafterCosts) -> None:
        self._name, self._costs = name, costs
        axes = ("exit_layer", "batch_size", "width", "context_length", "depth")

        def surface(what: str, value: Callable[[DraftPoint], float]) -> Surface:
            places = [(p.exit_layer, p.batch_size, p.width, p.context_length, p.depth) for p in costs.points]
            return Surface(f"{what} {name!r}", axes, zip(places, map(value, costs.points), strict=True))

        self.drafts = surface("drafts of", lambda p: p.draft.seconds)
        self.steps = surface("steps with", lambda p: p.draft.seconds + p.verify.seconds + p.host.seconds)
        self.prefill = self._around("prompts with", lambda c: c.prefill.seconds)
        self.first_draft = self._around("first drafts of", lambda c: c.first_draft.seconds)
        self.verify_extra = self._around("steps with", lambda c: c.verify_extra.seconds)
        self.host_extra = self._around("steps with", lambda c: c.host_extra.seconds)

    def layer(self, exit_layer: int) -> int:
        """Return how many layers draft under a configuration's `exit_layer`."""
        return exit_layer or self._costs.default_exit_layer

    @property
    def depths(self) -> list[int]:
        """Depths of chains that were measured somewhere."""
        return sorted({point.depth for point in self._costs.points if point.width == 1})

    def tree_seconds(self, widths: Sequence[int], layer: int, batch_size: int, context_length: int) -> float:
        """Return the seconds of a draft whose forwards have different numbers of rows; see `HardwareProfile`."""
        if not widths:
            return 0.0

        def comb(depth: int, width: int) -> float:
            return self.drafts.at(layer, batch_size, width, context_length, depth)

        levels = list(enumerate(widths, start=1))[1:]
        first = comb(1, widths[1] if levels else 1)
        return first + sum(comb(level, width) - comb(level - 1, width) for level, width in levels)

    def _around(self, what: str, value: Callable[[DrafterContext], float]) -> Surface:
        places = [(c.exit_layer, c.batch_size, c.context_length) for c in self._costs.contexts]
        values = zip(places, map(value, self._costs.contexts), strict=True)
        return Surface(f"{what} {self._name!r}", ("exit_layer", "batch_size", "context_length"), values)
