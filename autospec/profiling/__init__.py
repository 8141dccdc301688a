"""What a machine is, and what decoding costs on it; knows no search and no policy.

Importing this room loads no torch: that comes in where something is measured.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from autospec.profiling.fingerprint import device_fingerprint, differences, fingerprint_hash, host_fingerprint

if TYPE_CHECKING:
    from autospec.profiling.hardware import HardwareProfile, load_profile
    from autospec.profiling.measure import key_of, profile, profile_text, text_of
    from autospec.profiling.settings import ProfileSettings
from autospec.profiling.shelf import find_profile, profile_path, shipped_profiles

__all__ = [
    "HardwareProfile",
    "ProfileSettings",
    "device_fingerprint",
    "differences",
    "find_profile",
    "fingerprint_hash",
    "host_fingerprint",
    "key_of",
    "load_profile",
    "profile",
    "profile_path",
    "profile_text",
    "shipped_profiles",
    "text_of",
]

_HOMES = {
    "HardwareProfile": "autospec.profiling.hardware",
    "ProfileSettings": "autospec.profiling.settings",
    "find_profile": "autospec.profiling.shelf",
    "key_of": "autospec.profiling.measure",
    "load_profile": "autospec.profiling.hardware",
    "profile": "autospec.profiling.measure",
    "profile_path": "autospec.profiling.shelf",
    "profile_text": "autospec.profiling.measure",
    "shipped_profiles": "autospec.profiling.shelf",
    "text_of": "autospec.profiling.measure",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
