"""Arrays that are made once and kept, so many bytes of them at most."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar


class HasSize(Protocol):
    """Something that knows how much memory it takes."""

    @property
    def num_bytes(self) -> int:
        """Size of all its arrays."""
        ...


T = TypeVar("T", bound=HasSize)


class Kept(Generic[T]):
    """Keeps what was made; what was asked for longest ago makes room, the newest stays whatever its size.

    Args:
        most_bytes: How much.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most, self._num_bytes, self._things = most_bytes, 0, dict[Hashable, T]()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what is kept under a key, made now if it is not."""
        if key in self._things:
            thing = self._things.pop(key)
        else:
            thing = make()
            self._num_bytes += thing.num_bytes
        self._things[key] = thing
        while self._num_bytes > self._most and len(self._things) > 1:
            self._num_bytes -= self._things.pop(next(iter(self._things))).num_bytes
        return thing
