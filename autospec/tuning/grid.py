"""Every combination of the values of knobs, in order. Knows constraints, and nothing of configurations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from autospec.tuning.knobs import Constraint, Knob, Params, Range, Value


def values_of(knob: Knob) -> tuple[Value, ...]:
    """Return all values of a knob, of a continuum its lower end."""
    values = knob.domain.grid()
    if values is None:
        assert isinstance(knob.domain, Range)
        return (knob.domain.low,)
    return values


def combinations(knobs: Sequence[Knob], constraints: Sequence[Constraint]) -> Iterator[Params]:
    """Yield the values of every combination of knobs that breaks no constraint, as soon as it can be told.

    Args:
        knobs: In the order in which they are chosen; one that does not apply has no value.
        constraints: What must hold.
    """
    ending = {knob.name: [one for one in constraints if knob.name in one.knobs] for knob in knobs}

    def extend(index: int, params: Params) -> Iterator[Params]:
        if index == len(knobs):
            yield params
            return
        knob = knobs[index]
        if not knob.applies(params):
            yield from extend(index + 1, params)
            return
        for value in values_of(knob):
            longer = {**params, knob.name: value}
            if all(one.holds(longer) for one in ending[knob.name]):
                yield from extend(index + 1, longer)

    return extend(0, {})
