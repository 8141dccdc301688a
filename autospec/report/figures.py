"""Figures of a run, drawn from the files of its output folder alone.

Drawn on `Figure` objects, so that no global state of matplotlib is touched and no window is ever opened.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
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
from autospec.report.run import RunFiles, Trial, counts, estimate, read_run

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


def draw_figures(output_dir: Path) -> list[Path]:
    """Draw every figure that the measurements allow and return the PNG files, in `figures/` of the output folder.

    Raises:
        MeasurementError: The measurements of the run cannot be read.
    """
    run = read_run(output_dir)
    folder = output_dir / "figures"
    folder.mkdir(exist_ok=True)
    files = []
    for name, draw in FIGURES.items():
        figure = draw(run)
        if figure is not None:
            path = folder / f"{name}.png"
            figure.savefig(path, dpi=DPI)
            files.append(path)
    return files


def _styled(draw: Callable[[RunFiles], Figure | None]) -> Callable[[RunFiles], Figure | None]:
    """Draw in our style, whatever the user's matplotlib settings are."""

    @functools.wraps(draw)
    def styled(run: RunFiles) -> Figure | None:
        with rc_context():
            rcdefaults()
            with rc_context(STYLE):
                return draw(run)

    return styled


@_styled
def optimisation_history(run: RunFiles) -> Figure | None:
    """Draw the speedup of each trial with its interval, the best so far and the noise floor; None without trials."""
    measured = [
        (trial, trial.speedup) for trial in run.trials if trial.speedup is not None and trial.state != "failed"
    ]
    if not measured:
        return None
    subtitle = _best_trial(run) + _conditions(run)
    figure, (axes,) = _panels(("",), "Speedup of each trial of the search", subtitle, (9.0, 4.6))
    colours = _colours(run)
    if run.noise_floor is not None:
        label = f"noise of one timing ({100 * run.noise_floor:.1f} %)"
        axes.axhspan(1 / (1 + run.noise_floor), 1 + run.noise_floor, color=BAND, zorder=0.5, label=label)
    for trial, speed in measured:
        colour = colours[trial.config.drafter]
        _interval(axes, trial.number, speed, colour)
        fill = colour if trial.state == "complete" else "white"
        axes.plot(trial.number, speed.value, "o", ms=6, mfc=fill, mec=colour, mew=1.4, zorder=3)
    failed = [trial.number for trial in run.trials if trial.state == "failed"]
    bottom = [0.03] * len(failed)
    axes.plot(failed, bottom, "x", color=PALETTE[4], ms=7, mew=1.8, transform=axes.get_xaxis_transform())
    _best_so_far(axes, run.trials)
    _speed_axis(axes, [speed for _, speed in measured])
    axes.set_xlabel("trial")
    axes.set_ylabel("speedup over plain decoding")
    _history_legend(axes, colours, run.trials)
    return figure


@_styled
def speed_by_draft_length(run: RunFiles) -> Figure | None:
    """Draw, over all prompts and for each category, the best speedup of each drafter at each length."""
    search = [one for one in run.measurements if one.stage == "search" and not one.config.is_off]
    if not search:
        return None
    panels = {"all categories": search, **_by_category(run, search)}
    subtitle = "lines join the best configuration of each length, dots are all of them; " + _conditions(run)
    figure, grid = _panels(tuple(panels), "Speed by draft length", subtitle)
    colours = _colours(run)
    speeds: list[Estimate] = []
    for axes, group in zip(grid, panels.values(), strict=True):
        for index, (drafter, colour) in enumerate(colours.items()):
            shift = 0.16 * (index - (len(colours) - 1) / 2)  # so that intervals of drafters stand side by side
            speeds += _length_line(axes, shift, colour, [one for one in group if one.config.drafter == drafter])
        axes.set_xlabel("draft_length")
    for axes in grid:
        _speed_axis(axes, speeds)
    grid[0].set_ylabel("speedup over plain decoding")
    _drafter_legend(figure, colours)
    return figure


@_styled
def acceptance_by_position(run: RunFiles) -> Figure | None:
    """Draw P(position accepted given all before it were), for each category and drafter."""
    drafted = [one for one in run.measurements if not one.config.is_off]
    panels = _by_category(run, drafted)
    if not panels:
        return None
    subtitle = (
        f"P(accepted, given that all before it were); all configurations, positions tested {MIN_TESTED} times or more"
    )
    figure, grid = _panels(tuple(panels), "Acceptance by position in the draft", subtitle)
    colours = _colours(run)
    for axes, group in zip(grid, panels.values(), strict=True):
        for drafter, colour in colours.items():
            stats = counts(one for one in group if one.config.drafter == drafter)
            tested = [number for number in stats.position_tested if number >= MIN_TESTED]
            rates = [hits / number for hits, number in zip(stats.position_accepted, tested, strict=False)]
            axes.plot(range(1, len(rates) + 1), rates, "o-", color=colour, ms=4.5, lw=1.6)
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{100 * rate:.0f} %"))
        axes.set_xlabel("position in the draft")
    grid[0].set_ylabel("position_acceptance")
    _drafter_legend(figure, colours)
    return figure


FIGURES: dict[str, Callable[[RunFiles], Figure | None]] = {
    "optimisation_history": optimisation_history,
    "speed_by_draft_length": speed_by_draft_length,
    "acceptance_by_position": acceptance_by_position,
}


def _panels(
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


def _conditions(run: RunFiles) -> str:
    prompts = len({one.prompt_id for one in run.measurements if one.stage == "search"})
    return f"95 % intervals, at most {prompts} prompts" + (f"; {run.device}" if run.device else "")


def _best_trial(run: RunFiles) -> str:
    complete = [(trial.speedup.value, trial) for trial in run.trials if trial.speedup and trial.state == "complete"]
    if not complete:
        return ""
    value, trial = max(complete, key=lambda pair: pair[0])
    return f"best: trial {trial.number}, {trial.config.short()}, {value:.2f}x; "


def _colours(run: RunFiles) -> dict[str, str]:
    names = sorted(
        {trial.config.drafter for trial in run.trials} | {one.config.drafter for one in run.measurements} - {""}
    )
    return {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(names)}


def _by_category(run: RunFiles, measurements: Sequence[Measurement]) -> dict[str, list[Measurement]]:
    found: defaultdict[str, list[Measurement]] = defaultdict(list)
    for one in measurements:
        found[one.category].append(one)
    return {name: found[name] for name in run.categories if name in found}


def _interval(axes: Axes, place: float, speed: Estimate, colour: str) -> None:
    """Draw an interval; where an end is not known it leaves the panel."""
    ends = [max(speed.low, speed.value / 100), min(speed.high, speed.value * 100)]
    axes.plot([place, place], ends, color=colour, lw=1.1, alpha=0.45)


def _best_so_far(axes: Axes, trials: Sequence[Trial]) -> None:
    best, numbers, values = 1.0, [], []
    for trial in trials:
        if trial.state == "complete" and trial.speedup is not None:
            best = max(best, trial.speedup.value)
        numbers.append(trial.number)
        values.append(best)
    axes.step(numbers, values, where="post", color=INK, lw=1.6, zorder=2, label="best so far")


def _speed_axis(axes: Axes, speeds: Sequence[Estimate]) -> None:
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


def _length_line(axes: Axes, shift: float, colour: str, group: Sequence[Measurement]) -> list[Estimate]:
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
        _interval(axes, length + shift, best[length], colour)
    places = [length + shift for length in lengths]
    axes.plot(places, [best[length].value for length in lengths], "o-", color=colour, ms=5, lw=1.6)
    return list(best.values())


def _drafter_legend(figure: Figure, colours: dict[str, str]) -> None:
    handles = [Line2D([], [], color=colour, marker="o", ms=5, lw=1.6, label=name) for name, colour in colours.items()]
    _legend(figure, handles)


def _legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """Put a legend below, in as many rows as the figure's width asks for."""
    ncols = min(len(handles), max(1, int(figure.get_figwidth() / LEGEND_INCHES)))
    figure.legend(handles=handles, loc="outside lower left", ncols=ncols)


def _history_legend(axes: Axes, colours: dict[str, str], trials: Sequence[Trial]) -> None:
    handles, _ = axes.get_legend_handles_labels()
    handles += [Line2D([], [], color=colour, marker="o", ls="", ms=6, label=name) for name, colour in colours.items()]
    states = {trial.state for trial in trials}
    if "pruned" in states:
        handles.append(Line2D([], [], mfc="white", mec=MUTED, mew=1.4, marker="o", ls="", ms=6, label="pruned"))
    if "failed" in states:
        handles.append(Line2D([], [], color=PALETTE[4], marker="x", mew=1.8, ls="", ms=7, label="failed"))
    figure = axes.get_figure(root=True)
    assert figure is not None
    _legend(figure, handles)
