"""Ways to launch a forward of fixed shape again: a captured graph, compiled code, or the operations it consists of.

A run reads buffers, writes others, and returns tensors; a launch of it does the same, into the same tensors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import cast

import torch
from torch import Tensor

from autospec.engine.compiling import recorded
from autospec.engine.memory import free_bytes

Run = Callable[[], Sequence[Tensor]]
_WARM_UPS = 2  # libraries choose their kernels and take their memory in the first runs, which must not be captured


class Launching(ABC):
    """How forwards of fixed shape are launched; one at a time, because they share buffers and memory."""

    def __init__(self) -> None:
        self._lock = Lock()

    @abstractmethod
    def make(self, run: Run) -> Run:
        """Make a launch of a run.

        Args:
            run: May be run any number of times.

        Raises:
            RuntimeError: There can be none.
        """

    def has_room(self, num_bytes: int) -> bool:
        """Return whether so much memory is free."""
        return True

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Keep others out, from writing buffers until what came out is copied."""
        with self._lock:
            yield


class Recorded(Launching):
    """Records the operations of a run and goes through these again, on any device.

    What would be wrong in a graph is wrong here too: numbers that the host read, shapes, tensors that were replaced.
    """

    def make(self, run: Run) -> Run:
        """See `Launching`."""
        return cast("Run", recorded(run))


class CudaGraphs(Launching):
    """Captures CUDA graphs, which share the memory of what they compute in between.

    Args:
        device: Where.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device, self._pool = device, torch.cuda.graph_pool_handle()
        self._side, self._copied = torch.cuda.Stream(device), torch.cuda.Event()

    def make(self, run: Run) -> Run:
        """See `Launching`."""
        side = self._side  # one for all, because libraries keep memory for each stream
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                run()
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=side, capture_error_mode="thread_local"):
            outputs = run()
        return _Replay(graph, run, outputs)

    def has_room(self, num_bytes: int) -> bool:
        """See `Launching`."""
        return num_bytes <= free_bytes(self._device)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """See `Launching`; another stream waits for the one that was there before."""
        with self._lock, torch.cuda.device(self._device):
            stream = torch.cuda.current_stream()
            stream.wait_event(self._copied)
            try:
                yield
            finally:
                self._copied.record(stream)


class _Replay:
    """A captured graph.

    Args:
        graph: Captured.
        run: What it was captured from; held, because the graph reads tensors that nobody else may know.
        outputs: Written by every replay.
    """

    def __init__(self, graph: torch.cuda.CUDAGraph, run: Run, outputs: Sequence[Tensor]) -> None:
        self._graph, self._run, self._outputs = graph, run, outputs

    def __call__(self) -> Sequence[Tensor]:
        self._graph.replay()
        return self._outputs


class Compiled(Launching):
    """Compiles by `torch.compile`, once for each shape; torch keeps on disk what it compiled.

    Args:
        then: How compiled code is launched.
    """

    def __init__(self, then: Launching) -> None:
        super().__init__()
        self._then = then

    def make(self, run: Run) -> Run:
        """See `Launching`."""
        compiled = recorded(run)
        compiled.compile(dynamic=False, fullgraph=True)
        compiled()
        return self._then.make(cast("Run", compiled))

    def has_room(self, num_bytes: int) -> bool:
        """See `Launching`."""
        return self._then.has_room(num_bytes)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """See `Launching`."""
        with self._then.turn():
            yield


def usual_launching(device: torch.device, compiles: bool) -> Launching | None:
    """Return how a device launches best; None is to run everything anew."""
    if device.type != "cuda":
        return None
    return Compiled(CudaGraphs(device)) if compiles else CudaGraphs(device)
