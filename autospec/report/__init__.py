"""Figures of a run, read from the files of its output folder alone; knows neither the study nor the engine."""

from __future__ import annotations

from autospec.report.figures import draw_figures

__all__ = ["draw_figures"]
