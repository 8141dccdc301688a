"""Figures of what speed costs: how long a reader waits for the next tokens, and memory."""

from __future__ import annotations

from collections import defaultdict

from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator, FuncFormatter

from autospec.comparison import Estimate
from autospec.config import SpecConfig
from autospec.records import Measurement
from autospec.report.drawing import (
    INK,
    MUTED,
    colours_of,
    conditions,
    drafter_legend,
    draw_interval,
    make_panels,
    speed_axis,
    styled,
)
from autospec.report.run import FrontRow, RunFiles
from autospec.yardsticks import LATENCY, SPEED


@styled
def speed_and_latency(run: RunFiles) -> Figure | None:
    """Draw the p95 latency ratio of each configuration over its speedup; None where latencies were not kept."""
    pairs = _pairs(run)
    if not pairs:
        return None
    subtitle = "above 1 the next tokens come sooner, nearly at worst; " + conditions(run)
    figure, (axes,) = make_panels(("",), "Latency and speed of what was searched", subtitle, (6.8, 5.2))
    colours = colours_of(run)
    for config, speed, latency in pairs:
        colour = colours[config.drafter]
        draw_interval(axes, speed.value, latency, colour)
        axes.plot(speed.value, latency.value, "o", ms=6, mfc=colour, mec="white", mew=0.8, zorder=3)
    speed_axis(axes, [latency for _, _, latency in pairs])
    axes.axvline(1.0, color=MUTED, lw=1.1, ls=(0, (4, 3)), zorder=1)
    axes.xaxis.set_major_locator(AutoLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.set_xlabel("speedup over plain decoding")
    axes.set_ylabel("p95 latency ratio, plain decoding's over this")
    shown = {config.drafter for config, _, _ in pairs}
    drafter_legend(figure, {name: colour for name, colour in colours.items() if name in shown})
    return figure


def _pairs(run: RunFiles) -> list[tuple[SpecConfig, Estimate, Estimate]]:
    """Return each configuration of the search with its speedup and its latency ratio."""
    by_config: defaultdict[SpecConfig, list[Measurement]] = defaultdict(list)
    for one in run.measurements:
        if one.stage == "search" and not one.config.is_off and one.has_gaps:
            by_config[one.config].append(one)
    found = [(config, SPEED.estimate(own), LATENCY.estimate(own)) for config, own in by_config.items()]
    return [(config, speed, latency) for config, speed, latency in found if speed and latency]


@styled
def front(run: RunFiles) -> Figure | None:
    """Draw the Pareto set of speed, quality and memory, a panel for each set of prompts; None where there is none."""
    names = [name for name in ("tune", "held-out") if any(row.stage == name for row in run.front)]
    if not names:
        return None
    subtitle = "what nothing else beats in all three, hollow where it is lossy; 95 % intervals"
    subtitle += f"; {run.device}" if run.device else ""
    titles = tuple(f"{name} prompts" for name in names)
    figure, grid = make_panels(titles, "Speed, quality and memory", subtitle, (max(7.0, 4.2 * len(names)), 4.8))
    colours = {**colours_of(run), "": MUTED}
    for axes, name in zip(grid, names, strict=True):
        rows = sorted((row for row in run.front if row.stage == name), key=lambda row: row.memory_bytes)
        axes.step(
            [_megabytes(row) for row in rows], [_best(rows, row) for row in rows], where="post", color=INK, lw=1.2
        )
        for row in rows:
            colour = colours[row.config.drafter]
            draw_interval(axes, _megabytes(row), row.speedup, colour)
            fill = colour if row.loss == 0.0 else "white"
            axes.plot(_megabytes(row), row.speedup.value, "o", ms=7, mfc=fill, mec=colour, mew=1.4, zorder=3)
        speed_axis(axes, [row.speedup for row in run.front])
        axes.xaxis.set_major_locator(AutoLocator())
        axes.set_xlabel("weights and caches, MB")
    grid[0].set_ylabel("speedup over plain decoding")
    drafters = {row.config.drafter for row in run.front}
    drafter_legend(figure, {name or "off": colour for name, colour in colours.items() if name in drafters})
    return figure


def _megabytes(row: FrontRow) -> float:
    return row.memory_bytes / 1e6


def _best(rows: list[FrontRow], row: FrontRow) -> float:
    """Return the best speedup that so much memory buys, whatever it loses."""
    return max(one.speedup.value for one in rows if one.memory_bytes <= row.memory_bytes)
