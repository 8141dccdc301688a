"""What a person sees: tables, progress on a terminal, plain lines elsewhere. Formats; decides and measures nothing."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from autospec.comparison import Estimate

_WIDE = 100  # an upper end beyond this says only that nothing is known


class Terminal:
    """Prints lines, and below them a progress bar where standard output is a terminal.

    Args:
        console: Where to print; standard output where not given.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def line(self, text: str = "") -> None:
        """Print one line; a pipe or file gets it at once."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._console.file.flush()

    def lines(self, texts: Iterable[str]) -> None:
        """Print several lines."""
        for text in texts:
            self.line(text)

    def begin(self, description: str, total: int) -> None:
        """Start a new progress bar in place of the last; none where there is nothing to do."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(description, total=total) if total else None

    def advance(self) -> None:
        """Move the progress bar by one."""
        if self._task is not None:
            self._progress.advance(self._task)


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Align columns with two spaces between them; the first row is the head and gets a rule below.

    Args:
        rows: Cells.
        right: Columns aligned to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def ratio(estimate: Estimate | None) -> str:
    """Return a speedup with its interval, such as ``1.52x [1.44, 1.61]``."""
    if estimate is None:
        return "-"
    high = f"{estimate.high:.2f}" if estimate.high < _WIDE else "inf" if math.isinf(estimate.high) else f">{_WIDE}"
    return f"{estimate.value:.2f}x [{estimate.low:.2f}, {high}]"


def minutes(seconds: float) -> str:
    """Return a length of time in the unit a person would choose."""
    if math.isinf(seconds):
        return "no limit"
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.1f} min"
