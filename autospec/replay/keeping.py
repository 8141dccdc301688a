"""Things that are made once and kept, so many of them at most."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")
_MOST = 128


class Kept(Generic[T]):
    """Keeps what was made; the one that was asked for longest ago makes room.

    Args:
        most: How many.
    """

    def __init__(self, most: int = _MOST) -> None:
        self._most, self._things = most, dict[Hashable, T]()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what is kept under a key, made now if it is not."""
        thing = self._things.pop(key) if key in self._things else make()
        self._things[key] = thing
        if len(self._things) > self._most:
            del self._things[next(iter(self._things))]
        return thing
