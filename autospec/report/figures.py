"""Figures of a run, drawn from the files of its output folder alone.

Drawn on `Figure` objects, so that no global state of matplotlib is touched and no window is ever opened.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator, FuncFormatter

from autospec.comparison import Estimate
from autospec.config import SpecConfig
from autospec.report.drawing import (
    BAND,
    DPI,
    MIN_TESTED,
    MUTED,
    PALETTE,
    best_so_far,
    best_trial,
    by_category,
    colours_of,
    conditions,
    drafter_legend,
    draw_interval,
    history_legend,
    length_line,
    make_panels,
    speed_axis,
    styled,
)
from autospec.report.run import RunFiles, counts, estimate, read_run
from autospec.report.tradeoffs import front, speed_and_latency


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


@styled
def optimisation_history(run: RunFiles) -> Figure | None:
    """Draw what decides of each trial with its interval, the best so far and the noise floor; None without trials."""
    measured = [(trial, trial.ratio) for trial in run.trials if trial.ratio is not None and trial.state != "failed"]
    if not measured:
        return None
    subtitle = f"looked for: {run.objective}; {best_trial(run)}{conditions(run)}"
    figure, (axes,) = make_panels(("",), f"{_capital(run)} of each trial of the search", subtitle, (9.0, 4.6))
    colours = colours_of(run)
    if run.noise_floor is not None:
        label = f"noise of one timing ({100 * run.noise_floor:.1f} %)"
        axes.axhspan(1 / (1 + run.noise_floor), 1 + run.noise_floor, color=BAND, zorder=0.5, label=label)
    for trial, speed in measured:
        colour = colours[trial.config.drafter]
        draw_interval(axes, trial.number, speed, colour)
        fill = colour if trial.state == "complete" else "white"
        axes.plot(trial.number, speed.value, "o", ms=6, mfc=fill, mec=colour, mew=1.4, zorder=3)
    failed = [trial.number for trial in run.trials if trial.state == "failed"]
    bottom = [0.03] * len(failed)
    axes.plot(failed, bottom, "x", color=PALETTE[4], ms=7, mew=1.8, transform=axes.get_xaxis_transform())
    best_so_far(axes, run.trials)
    speed_axis(axes, [speed for _, speed in measured])
    axes.set_xlabel("trial")
    axes.set_ylabel(f"{run.yardstick.title} over plain decoding")
    history_legend(axes, colours, run.trials)
    return figure


@styled
def speed_by_draft_length(run: RunFiles) -> Figure | None:
    """Draw, over all prompts and for each category, the best speedup of each drafter at each length."""
    search = [one for one in run.measurements if one.stage == "search" and not one.config.is_off]
    if not search:
        return None
    panels = {"all categories": search, **by_category(run, search)}
    subtitle = "lines join the best configuration of each length, dots are all of them; " + conditions(run)
    figure, grid = make_panels(tuple(panels), "Speed by draft length", subtitle)
    colours = colours_of(run)
    speeds: list[Estimate] = []
    for axes, group in zip(grid, panels.values(), strict=True):
        for index, (drafter, colour) in enumerate(colours.items()):
            shift = 0.16 * (index - (len(colours) - 1) / 2)  # so that intervals of drafters stand side by side
            speeds += length_line(axes, shift, colour, [one for one in group if one.config.drafter == drafter])
        axes.set_xlabel("draft_length")
    for axes in grid:
        speed_axis(axes, speeds)
    grid[0].set_ylabel("speedup over plain decoding")
    drafter_legend(figure, colours)
    return figure


@styled
def acceptance_by_position(run: RunFiles) -> Figure | None:
    """Draw P(position accepted given all before it were), for each category and drafter."""
    drafted = [one for one in run.measurements if not one.config.is_off]
    panels = by_category(run, drafted)
    if not panels:
        return None
    subtitle = (
        f"P(accepted, given that all before it were); all configurations, positions tested {MIN_TESTED} times or more"
    )
    figure, grid = make_panels(tuple(panels), "Acceptance by position in the draft", subtitle)
    colours = colours_of(run)
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
    drafter_legend(figure, colours)
    return figure


@styled
def predicted_and_measured(run: RunFiles) -> Figure | None:
    """Draw what each configuration of the search measured over what was predicted; None without predictions."""
    pairs = _predicted(run)
    if not pairs:
        return None
    errors = [abs(math.expm1(math.log(predicted / speed.value))) for _, predicted, speed in pairs]
    subtitle = f"{len(pairs)} configurations, off by {100 * sum(errors) / len(errors):.1f} % on average, "
    subtitle += "each on the prompts it was measured on; " + conditions(run)
    if any(config in run.expected for config, _, _ in pairs):
        subtitle += "; hollow: of expected steps"
    figure, (axes,) = make_panels(("",), "Speedup, measured over predicted", subtitle, (6.4, 5.2))
    colours = colours_of(run)
    values = [value for _, predicted, speed in pairs for value in (predicted, speed.value)]
    ends = [0.95 * min(values), 1.05 * max(values)]
    axes.plot(ends, ends, color=MUTED, lw=1.0, ls="--", zorder=1)
    for config, predicted, speed in pairs:
        colour = colours[config.drafter]
        axes.vlines(predicted, speed.low, min(speed.high, 100.0), color=colour, lw=1.2, alpha=0.6)
        face, edge = ("white", colour) if config in run.expected else (colour, "white")
        axes.plot(predicted, speed.value, "o", ms=6, mfc=face, mec=edge, mew=0.8, zorder=3)
    speed_axis(axes, [speed for _, _, speed in pairs])
    axes.xaxis.set_major_locator(AutoLocator())
    axes.set_xlabel("predicted, before anything was measured")
    axes.set_ylabel("measured")
    shown = {config.drafter for config, _, _ in pairs}
    drafter_legend(figure, {name: colour for name, colour in colours.items() if name in shown})
    return figure


def _predicted(run: RunFiles) -> list[tuple[SpecConfig, float, Estimate]]:
    """Return configurations of the search with what was predicted and measured on the same prompts."""
    found = []
    for config, known in run.predictions.items():
        own = [
            one
            for one in run.measurements
            if one.stage == "search" and one.config == config and one.prompt_id in known
        ]
        speed = estimate(own)
        if speed is not None:
            prompts = {one.prompt_id for one in own}
            found.append((config, math.exp(sum(known[one] for one in prompts) / len(prompts)), speed))
    return found


def _capital(run: RunFiles) -> str:
    title = run.yardstick.title
    return title[0].upper() + title[1:]


FIGURES: dict[str, Callable[[RunFiles], Figure | None]] = {
    "optimisation_history": optimisation_history,
    "speed_by_draft_length": speed_by_draft_length,
    "acceptance_by_position": acceptance_by_position,
    "predicted_and_measured": predicted_and_measured,
    "speed_and_latency": speed_and_latency,
    "front": front,
}
