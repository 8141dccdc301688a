"""Tuning: searches for the fastest policy and confirms it. The only room that knows Optuna."""

from __future__ import annotations

from autospec.tuning.entry import tune
from autospec.tuning.events import NullTracker, StudyPlan, Tracker, TrialReport
from autospec.tuning.log import read_measurements
from autospec.tuning.result import TuningResult
from autospec.tuning.settings import StudySettings
from autospec.tuning.space import SearchSpace

__all__ = [
    "NullTracker",
    "SearchSpace",
    "StudyPlan",
    "StudySettings",
    "Tracker",
    "TrialReport",
    "TuningResult",
    "read_measurements",
    "tune",
]
