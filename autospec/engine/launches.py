"""The launches of one model: made when they first come, kept as long as the memory they read."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from autospec.engine.cache_pool import Store
from autospec.engine.launching import Launching, Run
from autospec.engine.lean import LeanForward
from autospec.engine.plans import Plan, Shape


@dataclass(slots=True)
class _Launch:
    """A launch, and the buffers that it reads."""

    inputs: Any
    run: Run


@dataclass(slots=True)
class _Table:
    """The launches of one memory, which hold its tensors: no other gets their addresses as long as they are here."""

    first: Tensor
    launches: dict[Shape, _Launch | None] = field(default_factory=dict)


class Launches:
    """Launches plans.

    Args:
        lean: What runs.
        launching: How launches are made.

    Attributes:
        is_refused: Whether none are taken any more.
    """

    def __init__(self, lean: LeanForward, launching: Launching) -> None:
        self._lean, self.launching, self.is_refused = lean, launching, False
        self._tables: WeakKeyDictionary[Store, _Table] = WeakKeyDictionary()

    @property
    def num_made(self) -> int:
        """How many shapes can be launched now."""
        tables = list(self._tables.values())
        return sum(launch is not None for table in tables for launch in table.launches.values())

    def outputs(self, store: Store, plan: Plan) -> list[Tensor] | None:
        """Launch; return copies of what comes out, or None where that cannot be."""
        if self.is_refused or plan.num_slots > store.capacity:
            return None
        with self.launching.turn():
            table = self._table(store)
            if table is None:
                return None
            if plan.shape not in table.launches:
                table.launches[plan.shape] = self._made(store, plan)
            launch = table.launches[plan.shape]
            if launch is None:
                return None
            plan.write(launch.inputs)
            return [output.clone() for output in launch.run()]

    def refuse(self, why: str) -> None:
        """Take none any more, and say why."""
        self.is_refused = True
        self._tables.clear()
        warnings.warn(f"forwards run one operation at a time, because {why}", stacklevel=2)

    def _table(self, store: Store) -> _Table | None:
        """Return the launches of a memory as it is now; None where its layers have no tensors yet."""
        layers = self._lean.layer_numbers
        if any(layer not in store.keys for layer in layers):
            return None
        first = store.keys[layers[0]]
        if store not in self._tables or self._tables[store].first is not first:
            self._tables[store] = _Table(first)  # whatever was made for smaller tensors is let go of
        return self._tables[store]

    def _made(self, store: Store, plan: Plan) -> _Launch | None:
        """Make a launch, behind buffers that hold tokens already; None where there can be none."""
        if not self.launching.has_room(plan.shape.num_bytes(self._lean)):
            return None
        try:
            inputs = plan.inputs(self._lean, store)
            plan.write(inputs)
            return _Launch(inputs, self.launching.make(plan.run(self._lean, store, inputs)))
        except torch.OutOfMemoryError:
            return None
        except RuntimeError as error:  # of drivers and compilers, which raise what they like; running anew is right
            self.refuse(f"none can be launched whole: {error}")
            return None
