"""The front door: commands, their settings and all the wiring. The only room that knows Hydra."""

from __future__ import annotations

from autospec.cli.main import main

__all__ = ["main"]
