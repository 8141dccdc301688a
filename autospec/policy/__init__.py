"""Policies: which configuration to use when, loaded from JSON and made from measurements.

Importing this room loads no heavy library; `Policy.decoder` is where torch comes in.
"""

from __future__ import annotations

from autospec.policy.build import Choice, build_policy, evidence_from, quality_from, reproduction
from autospec.policy.policy import (
    Evidence,
    Policy,
    Quality,
    Reproduction,
    Row,
    TunedWorkload,
    load_policy,
)
from autospec.sources import ModelSource, portable_source, resolve_source

__all__ = [
    "Choice",
    "Evidence",
    "ModelSource",
    "Policy",
    "Quality",
    "Reproduction",
    "Row",
    "TunedWorkload",
    "build_policy",
    "evidence_from",
    "load_policy",
    "portable_source",
    "quality_from",
    "reproduction",
    "resolve_source",
]
