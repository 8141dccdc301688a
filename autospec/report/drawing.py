"""What figures share: colours, panels, intervals, axes of speed, legends. Knows runs, and no single figure."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib import rc_context, rcdefaults
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from autospec.comparison import Estimate
from autospec.config import SpecConfig
from autospec.records import Measurement
from autospec.report.run import RunFiles, Trial, estimate

PALETTE = ("#0b6fb8", "#d9730d", "#2e8b57", "#8a4fbf", "#b8336a", "#4c6a78")
INK, MUTED, GRID, BAND = "#1f2933", "#66727f", "#e3e8ee", "#dfe6ee"
DPI = 160
LEGEND_INCHES = 1.8  # room for one entry of a legend
RATIOS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0)
MIN_TESTED = 20  # a position reached less often says too little to be drawn
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
}


def styled(draw: Callable[[RunFiles], Figure | None]) -> Callable[[RunFiles], Figure | None]:
    """Draw in our style, whatever the user's matplotlib settings are."""

    @functools.wraps(draw)
    def drawn(run: RunFiles) -> Figure | None:
        with rc_context():
            rcdefaults()
            with rc_context(STYLE):
                return draw(run)

    return drawn


def make_panels(
    names: Sequence[str], title: str, subtitle: str, size: tuple[float, float] | None = None
) -> tuple[Figure, list[Axes]]:
    """Return a figure with a title and a row of named panels that share both scales."""
    width, height = size or (max(7.0, 1.4 + 2.7 * len(names)), 4.2)
    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("constrained", rect=(0.01, 0.0, 0.98, 1 - 0.62 / height), w_pad=0.08)
    figure.text(0.16 / width, 1 - 0.14 / height, title, fontsize=13, fontweight="bold", va="top")
    figure.text(0.16 / width, 1 - 0.42 / height, subtitle, fontsize=8.5, color=MUTED, va="top")
    grid = list(figure.subplots(1, len(names), sharex=True, sharey=True, squeeze=False)[0])
    for axes, name in zip(grid, names, strict=True):
        axes.set_title(name, loc="left", fontsize=10, color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, grid


def conditions(run: RunFiles) -> str:
    """Return under which conditions a figure's values hold."""
    prompts = len({one.prompt_id for one in run.measurements if one.stage == "search"})
    return f"95 % intervals, at most {prompts} prompts" + (f"; {run.device}" if run.device else "")


def best_trial(run: RunFiles) -> str:
    """Return the best complete trial in words, for a subtitle; empty without one."""
    complete = [(trial.ratio.value, trial) for trial in run.trials if trial.ratio and trial.state == "complete"]
    if not complete:
        return ""
    value, trial = max(complete, key=lambda pair: pair[0])
    return f"best: trial {trial.number}, {trial.config.short()}, {value:.2f}x; "


def colours_of(run: RunFiles) -> dict[str, str]:
    """Return the colour of every drafter, the same in all figures of a run."""
    names = sorted(
        {trial.config.drafter for trial in run.trials} | {one.config.drafter for one in run.measurements} - {""}
    )
    return {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(names)}


def by_category(run: RunFiles, measurements: Sequence[Measurement]) -> dict[str, list[Measurement]]:
    """Return the measurements of each category that has some."""
    found: defaultdict[str, list[Measurement]] = defaultdict(list)
    for one in measurements:
        found[one.category].append(one)
    return {name: found[name] for name in run.categories if name in found}


def draw_interval(axes: Axes, place: float, speed: Estimate, colour: str) -> None:
    """Draw an interval; where an end is not known it leaves the panel."""
    ends = [max(speed.low, speed.value / 100), min(speed.high, speed.value * 100)]
    axes.plot([place, place], ends, color=colour, lw=1.1, alpha=0.45)


def best_so_far(axes: Axes, trials: Sequence[Trial]) -> None:
    """Draw the best complete trial so far as steps."""
    best, numbers, values = 1.0, [], []
    for trial in trials:
        if trial.state == "complete" and trial.ratio is not None:
            best = max(best, trial.ratio.value)
        numbers.append(trial.number)
        values.append(best)
    axes.step(numbers, values, where="post", color=INK, lw=1.6, zorder=2, label="best so far")


def speed_axis(axes: Axes, speeds: Sequence[Estimate]) -> None:
    """Show ratios on a logarithmic scale, on which 2 times faster and 2 times slower are equally far from 1.

    Intervals of few prompts may be endless: they are shown to a third beyond the outermost value.
    """
    lowest, highest = min(1.0, *(one.value for one in speeds)), max(1.0, *(one.value for one in speeds))
    low = max(lowest / 1.33, min(lowest, *(one.low for one in speeds)))
    high = min(highest * 1.33, max(highest, *(one.high for one in speeds)))
    margin = max(0.06 * math.log(high / low), 0.05)
    axes.axhline(1.0, color=MUTED, lw=1.1, ls=(0, (4, 3)), zorder=1)
    axes.set_yscale("log")
    axes.set_ylim(low * math.exp(-margin), high * math.exp(margin))
    wide = high / low > 2.5
    axes.yaxis.set_major_locator(FixedLocator(RATIOS) if wide else MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.yaxis.set_minor_locator(NullLocator())


def length_line(axes: Axes, shift: float, colour: str, group: Sequence[Measurement]) -> list[Estimate]:
    """Draw one drafter and return what is shown; of each length the best of the most thoroughly measured."""
    by_config: defaultdict[SpecConfig, list[Measurement]] = defaultdict(list)
    for one in group:
        by_config[one.config].append(one)
    points = [
        (config.draft_length, speed) for config, own in by_config.items() if (speed := estimate(own)) is not None
    ]
    best: dict[int, Estimate] = {}
    for length, speed in sorted(points, key=lambda point: (point[1].num_prompts, point[1].value)):
        best[length] = speed
        axes.plot(length + shift, speed.value, "o", ms=3.5, color=colour, alpha=0.4, mew=0)
    lengths = sorted(best)
    for length in lengths:
        draw_interval(axes, length + shift, best[length], colour)
    places = [length + shift for length in lengths]
    axes.plot(places, [best[length].value for length in lengths], "o-", color=colour, ms=5, lw=1.6)
    return list(best.values())


def drafter_legend(figure: Figure, colours: dict[str, str]) -> None:
    """Add a legend of drafters."""
    handles = [Line2D([], [], color=colour, marker="o", ms=5, lw=1.6, label=name) for name, colour in colours.items()]
    add_legend(figure, handles)


def add_legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """Put a legend below, in as many rows as the figure's width asks for."""
    ncols = min(len(handles), max(1, int(figure.get_figwidth() / LEGEND_INCHES)))
    figure.legend(handles=handles, loc="outside lower left", ncols=ncols)


def history_legend(axes: Axes, colours: dict[str, str], trials: Sequence[Trial]) -> None:
    """Add the legend of the optimisation history."""
    handles, _ = axes.get_legend_handles_labels()
    handles += [Line2D([], [], color=colour, marker="o", ls="", ms=6, label=name) for name, colour in colours.items()]
    states = {trial.state for trial in trials}
    if "pruned" in states:
        handles.append(Line2D([], [], mfc="white", mec=MUTED, mew=1.4, marker="o", ls="", ms=6, label="pruned"))
    if "failed" in states:
        handles.append(Line2D([], [], color=PALETTE[4], marker="x", mew=1.8, ls="", ms=7, label="failed"))
    figure = axes.get_figure(root=True)
    assert figure is not None
    add_legend(figure, handles)
