"""Caches whose memory is handed from prompt to prompt: fresh pages cost more than what is written to them.

A captured graph, too, reads and writes at addresses; a cache that is made anew for every prompt has others each time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Lock
from weakref import ReferenceType, ref

import torch

from autospec.engine.cache import KVCache, States

SLACK = 64  # slots behind the text, for tokens that fill a forward up to its size
_UNIT = 256  # capacities are multiples of it, so that one memory serves many prompts


@dataclass(eq=False)
class Store:
    """The memory of one cache at a time.

    Args:
        capacity: Slots of each row.
        num_rows: Rows.
        keys: Empty until a forward has written there.
        values: Likewise.
    """

    capacity: int
    num_rows: int = 1
    keys: States = field(default_factory=dict)
    values: States = field(default_factory=dict)

    @torch.inference_mode()
    def clear(self) -> None:
        """Make it what a new one is; what an earlier text left behind could be no number."""
        for states in (*self.keys.values(), *self.values.values()):
            states.zero_()


class PooledCache(KVCache):
    """A cache in a memory that outlives it.

    Args:
        store: The memory.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store.capacity, store.num_rows)
        self.store: Store | None = store
        self.keys, self.values = store.keys, store.values

    def reserve(self, capacity: int) -> None:
        """Make room for at least so many tokens; see `KVCache`."""
        if capacity <= self.capacity:
            return
        if not any(self.lengths):  # nothing to be taken along
            self.keys.clear()
            self.values.clear()
        super().reserve(rounded(capacity))
        if self.store is not None:
            self.store.capacity = self.capacity

    def release(self) -> None:
        """Let go of the memory, whoever else still knows this cache; whoever goes on with it writes elsewhere."""
        self.store, self.keys, self.values = None, {}, {}


def rounded(capacity: int) -> int:
    """Return how many slots a memory gets that must hold so many tokens."""
    return -(-(capacity + SLACK) // _UNIT) * _UNIT


class CachePool:
    """Memory for as many caches as are in use at the same time; a cache that nobody knows any more is not.

    Attributes:
        clears: Whether it hands out memory as empty as new: for forwards that look at slots nobody has written yet.
    """

    def __init__(self) -> None:
        self.clears = False
        self._stores: list[tuple[Store, ReferenceType[PooledCache]]] = []
        self._lock = Lock()

    def holds(self, capacity: int, num_rows: int = 1) -> bool:
        """Return whether a cache of so many tokens would be given memory that is there already."""
        with self._lock:
            store = self._choice(capacity, num_rows)
            return store is not None and bool(store.keys)

    def cache(self, capacity: int, num_rows: int = 1) -> PooledCache:
        """Return an empty cache with room for at least so many tokens in each row."""
        with self._lock:
            store = self._choice(capacity, num_rows)
            if store is None:
                # They are too small, and would only be in the way.
                self._drop([store for store in self._free() if store.num_rows == num_rows])
                store = Store(rounded(capacity), num_rows)
            elif self.clears:
                store.clear()
            made = PooledCache(store)
            self._drop([store])
            self._stores.append((store, ref(made)))
            return made

    def give_up(self) -> bool:
        """Let go of all memory that is not in use; return whether there was any."""
        with self._lock:
            free = self._free()
            self._drop(free)
            return bool(free)

    def _choice(self, capacity: int, num_rows: int) -> Store | None:
        """Return the free memory that a cache would be given: the largest, so that one serves short and long texts."""
        fitting = [one for one in self._free() if one.num_rows == num_rows and one.capacity >= capacity + SLACK]
        return max(fitting, key=lambda store: (bool(store.keys), store.capacity), default=None)

    def _free(self) -> list[Store]:
        caches = ((store, known()) for store, known in self._stores)
        return [store for store, cache in caches if cache is None or cache.store is None]

    def _drop(self, dropped: list[Store]) -> None:
        self._stores = [pair for pair in self._stores if pair[0] not in dropped]
