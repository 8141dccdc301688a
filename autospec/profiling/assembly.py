"""From timings to the points of a profile. Measures nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median, median_low

from autospec.comparison import NOISE_REPEATS, NOISE_WARNING
from autospec.profiling.curves import Timing
from autospec.profiling.parts import (
    DrafterContext,
    DrafterCosts,
    DraftPoint,
    Noise,
    PlainPoint,
    PrefillPoint,
    TargetPoint,
)
from autospec.profiling.probe import StepTimes
from autospec.profiling.samples import Samples, StepKey, Subject
from autospec.profiling.surfaces import TargetSurfaces
from autospec.profiling.visits import default_exit_layer
from autospec.sources import drafter_source

_FEWEST = 3  # timings that say something of their spread


@dataclass(frozen=True, slots=True)
class TargetParts:
    """The points of the target and the host."""

    targets: tuple[TargetPoint, ...]
    plain: tuple[PlainPoint, ...]
    prefills: tuple[PrefillPoint, ...]

    @classmethod
    def of(cls, samples: Samples) -> TargetParts:
        """Build them, in ascending order of their places."""
        plain, targets = [], []
        for key, steps in samples.steps.items():
            if key.drafter:
                continue
            if key.width == 0:
                plain.append(PlainPoint(1, key.context_length, Timing.of([one.verify + one.host for one in steps])))
            else:
                forward, host = Timing.of([one.verify for one in steps]), Timing.of([one.host for one in steps])
                targets.append(TargetPoint(1, key.context_length, key.depth + 1, forward, host, "step"))
        targets += [
            TargetPoint(*place, forward=Timing.of(seconds), host=None, how="forward")
            for place, seconds in samples.forwards.items()
        ]
        prefills = [
            PrefillPoint(rows, num_tokens, Timing.of(seconds))
            for (drafter, rows, num_tokens), seconds in samples.prefills.items()
            if not drafter
        ]
        return cls(
            tuple(sorted(targets, key=lambda one: (one.batch_size, one.context_length, one.num_tokens))),
            tuple(sorted(plain, key=lambda one: one.context_length)),
            tuple(sorted(prefills, key=lambda one: (one.batch_size, one.num_tokens))),
        )

    @property
    def noise(self) -> Noise:
        """What the spread of the forwards says."""
        spreads = [one.forward.spread for one in self.targets if one.forward.num_samples >= _FEWEST]
        if 2 * len(spreads) < len(self.targets):
            return Noise(median(spreads) if spreads else 0.0, "unknown")
        spread = median(spreads)
        verdict = "too noisy" if spread > NOISE_REPEATS else "noisy" if spread > NOISE_WARNING else "quiet"
        return Noise(spread, verdict)


def drafter_costs(name: str, subject: Subject, weights: int, samples: Samples, target: TargetParts) -> DrafterCosts:
    """Return what one drafter costs.

    Args:
        name: Under which it was measured.
        subject: Has the drafter.
        weights: Bytes of its own weights.
        samples: All timings.
        target: What they say of the target.
    """
    drafter = subject.drafters[name]
    steps = {key: times for key, times in samples.steps.items() if key.drafter == name}
    points = [_draft_point(key, times) for key, times in steps.items()]
    return DrafterCosts(
        source=drafter_source(drafter),
        has_probs=drafter.has_probs,
        default_exit_layer=default_exit_layer(drafter),
        weight_bytes=weights,
        points=tuple(sorted(points, key=lambda p: (p.exit_layer, p.width, p.context_length, p.depth))),
        contexts=tuple(sorted(_contexts(name, samples, target), key=lambda c: (c.exit_layer, c.context_length))),
    )


def _draft_point(key: StepKey, steps: list[StepTimes]) -> DraftPoint:
    return DraftPoint(
        exit_layer=key.exit_layer,
        batch_size=1,
        width=key.width,
        context_length=key.context_length,
        depth=key.depth,
        num_tokens=1 + median_low(one.num_nodes for one in steps),
        draft=Timing.of([one.draft for one in steps]),
        verify=Timing.of([one.verify for one in steps]),
        host=Timing.of([one.host for one in steps]),
    )


def _contexts(name: str, samples: Samples, target: TargetParts) -> Iterator[DrafterContext]:
    surfaces = TargetSurfaces.of(target.targets, target.plain, target.prefills)
    for (drafter, exit_layer, context), firsts in samples.first_drafts.items():
        if drafter != name:
            continue
        verify, host = [], []
        for key, steps in samples.steps.items():
            if (key.drafter, key.exit_layer, key.width, key.context_length) != (name, exit_layer, 1, context):
                continue
            for one in steps:
                place = (1, context, one.num_nodes + 1)
                if surfaces.forwards.knows(*place):
                    verify.append(one.verify - surfaces.forwards.at(*place))
                    host.append(one.host - surfaces.hosts.at(*place))
        if verify:
            prefills = samples.prefills.get((name, 1, context)) or samples.prefills["", 1, context]
            yield DrafterContext(
                exit_layer=exit_layer,
                batch_size=1,
                context_length=context,
                prefill=Timing.of(prefills),
                first_draft=Timing.of(firsts),
                verify_extra=Timing.of(verify, is_difference=True),
                host_extra=Timing.of(host, is_difference=True),
            )
