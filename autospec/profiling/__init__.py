"""What a machine is, and what decoding costs on it; knows no search and no policy.

Importing this room loads no torch: that comes in where something is measured.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from autospec.profiling.fingerprint import (
    device_fingerprint,
    differences,
    fingerprint_hash,
    host_fingerprint,
)

if TYPE_CHECKING:
    from autospec.profiling.hardware import HardwareProfile
    from autospec.profiling.measure import key_of, profile, profile_text, text_of, threads_key_of
    from autospec.profiling.parts import ThreadChoice
    from autospec.profiling.settings import ProfileSettings
    from autospec.profiling.shelf import (
        find_profile,
        load_profile,
        load_threads,
        profile_path,
        save_threads,
        shipped_profiles,
        threads_path,
    )
    from autospec.profiling.threads import measure_threads, thread_counts

__all__ = [
    "HardwareProfile",
    "ProfileSettings",
    "ThreadChoice",
    "device_fingerprint",
    "differences",
    "find_profile",
    "fingerprint_hash",
    "host_fingerprint",
    "key_of",
    "load_profile",
    "load_threads",
    "measure_threads",
    "profile",
    "profile_path",
    "profile_text",
    "save_threads",
    "shipped_profiles",
    "text_of",
    "thread_counts",
    "threads_key_of",
    "threads_path",
]

_HOMES = {
    "HardwareProfile": "autospec.profiling.hardware",
    "ProfileSettings": "autospec.profiling.settings",
    "ThreadChoice": "autospec.profiling.parts",
    "find_profile": "autospec.profiling.shelf",
    "key_of": "autospec.profiling.measure",
    "load_profile": "autospec.profiling.shelf",
    "load_threads": "autospec.profiling.shelf",
    "measure_threads": "autospec.profiling.threads",
    "profile": "autospec.profiling.measure",
    "profile_path": "autospec.profiling.shelf",
    "profile_text": "autospec.profiling.measure",
    "save_threads": "autospec.profiling.shelf",
    "shipped_profiles": "autospec.profiling.shelf",
    "text_of": "autospec.profiling.measure",
    "thread_counts": "autospec.profiling.threads",
    "threads_key_of": "autospec.profiling.measure",
    "threads_path": "autospec.profiling.shelf",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
