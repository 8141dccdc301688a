"""Runners: what turns a configuration and a prompt into a measurement. `LiveRunner` is imported when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autospec.runners.base import Runner
from autospec.runners.prompts import check_prompts
from autospec.runners.scoring import Scorer, check_references, make_scorer

if TYPE_CHECKING:
    from autospec.runners.live import LiveRunner

__all__ = ["LiveRunner", "Runner", "Scorer", "check_prompts", "check_references", "make_scorer"]


def __getattr__(name: str) -> Any:
    if name != "LiveRunner":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from autospec.runners.live import LiveRunner

    return LiveRunner
