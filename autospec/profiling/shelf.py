"""Where profiles lie: those measured here by their key, those that ship with autospec by name, others by path."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from autospec.errors import ConfigError
from autospec.paths import data_dir
from autospec.profiling.hardware import HardwareProfile, load_profile

FOLDER = "profiles"
_SHIPPED = "profiles"  # below conf/, and not called as the setting: Hydra would take it for a group


def profile_path(root: Path, key: str) -> Path:
    """Return where a profile of this key is kept.

    Args:
        root: The folder of all outputs.
        key: Of device, data type, models and versions; see `key_of`.
    """
    return root / FOLDER / f"{key}.json"


def shipped_profiles() -> dict[str, Path]:
    """Return the measured profiles that ship with autospec, by name."""
    return {path.stem: path for path in sorted((data_dir("conf") / _SHIPPED).glob("*.json"))}


def find_profile(hardware: str | Path) -> HardwareProfile:
    """Load a profile by its path, or one that ships with autospec by its name.

    Raises:
        ConfigError: There is no such file, and no such name.
        ProfileError: The file cannot be trusted; see `load_profile`.
    """
    path, shipped = Path(hardware).expanduser(), shipped_profiles()
    if path.is_file():
        return load_profile(path)
    if str(hardware) in shipped:
        return load_profile(shipped[str(hardware)])
    near = get_close_matches(str(hardware), shipped, n=1)
    hint = f"; did you mean `{near[0]}`?" if near else ""
    raise ConfigError(f"a hardware profile must be a file or one of {list(shipped)}, but got {str(hardware)!r}{hint}")
