"""autospec: measures, learns and searches the fastest speculative-decoding policy that does not hurt quality.

The public names are imported when they are first used, so that `import autospec` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autospec.config import SamplingParams, SpecConfig
    from autospec.engine.decoder import SpeculativeDecoder
    from autospec.errors import AutospecError
    from autospec.policy import Policy, load_policy
    from autospec.profiling import HardwareProfile, ProfileSettings, load_profile, profile
    from autospec.records import Workload
    from autospec.tuning import SearchSpace, StudySettings, tune
    from autospec.workloads import WorkloadSource, load_workload

__version__ = "0.1.0"

_HOMES = {
    "AutospecError": "autospec.errors",
    "HardwareProfile": "autospec.profiling",
    "Policy": "autospec.policy",
    "ProfileSettings": "autospec.profiling",
    "SamplingParams": "autospec.config",
    "SearchSpace": "autospec.tuning",
    "SpecConfig": "autospec.config",
    "SpeculativeDecoder": "autospec.engine.decoder",
    "StudySettings": "autospec.tuning",
    "Workload": "autospec.records",
    "WorkloadSource": "autospec.workloads",
    "load_policy": "autospec.policy",
    "load_profile": "autospec.profiling",
    "load_workload": "autospec.workloads",
    "profile": "autospec.profiling",
    "tune": "autospec.tuning",
}

__all__ = [
    "AutospecError",
    "HardwareProfile",
    "Policy",
    "ProfileSettings",
    "SamplingParams",
    "SearchSpace",
    "SpecConfig",
    "SpeculativeDecoder",
    "StudySettings",
    "Workload",
    "WorkloadSource",
    "load_policy",
    "load_profile",
    "load_workload",
    "profile",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
