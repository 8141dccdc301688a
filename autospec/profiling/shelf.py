"""Where profiles lie: those measured here by their key, those that ship with autospec by name, others by path.

Beside those measured here lie the numbers of threads that were chosen here.
"""

from __future__ import annotations

from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path

from autospec.errors import ConfigError, ProfileError
from autospec.files import FileKind, line_by_line
from autospec.paths import data_dir
from autospec.profiling.documents import PROFILE_FILE
from autospec.profiling.hardware import HardwareProfile
from autospec.profiling.parts import ThreadChoice
from autospec.profiling.schema import THREADS

FOLDER = "profiles"
_THREADS_FILE = FileKind("a number of threads that was chosen", ProfileError)
_SHIPPED = "profiles"  # below conf/, and not called as the setting: Hydra would take it for a group


def profile_path(root: Path, key: str) -> Path:
    """Return where a profile of this key is kept.

    Args:
        root: The folder of all outputs.
        key: Of device, data type, models and versions; see `key_of`.
    """
    return root / FOLDER / f"{key}.json"


def threads_path(root: Path, key: str) -> Path:
    """Return where the number of threads is kept that was chosen; see `threads_key_of`."""
    return root / FOLDER / "threads" / f"{key}.json"


def save_threads(path: Path, choice: ThreadChoice) -> None:
    """Keep a number of threads, with the numbers by which it was chosen.

    Raises:
        ProfileError: The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ProfileError(f"profiles must go to a folder that can be made, but {path.parent}: {error}") from error
    _THREADS_FILE.write(path, line_by_line(asdict(choice)))


def load_threads(path: Path) -> ThreadChoice:
    """Return what was kept.

    Raises:
        ProfileError: The file cannot be read, or holds something else; all faults are listed.
    """
    document = _THREADS_FILE.read(path)
    if faults := list(THREADS.faults(document, "")):
        raise ProfileError("\n".join(faults))
    return ThreadChoice.from_json(document)


def shipped_profiles() -> dict[str, Path]:
    """Return the measured profiles that ship with autospec, by name."""
    return {path.stem: path for path in sorted((data_dir("conf") / _SHIPPED).glob("*.json"))}


def load_profile(path: str | Path) -> HardwareProfile:
    """Load a profile, of this machine or of another.

    Raises:
        ProfileError: The file cannot be read, is malformed, was changed, cut short or of another schema version; all
            faults are listed.
    """
    try:
        return HardwareProfile.from_json(PROFILE_FILE.read(Path(path)))
    except ProfileError as error:
        raise ProfileError(f"{path} cannot be used as a hardware profile:\n{error}") from error


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
