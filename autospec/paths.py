"""Finds the folders that ship with autospec and makes the folders it writes to.

`conf/` and `search_spaces/` lie beside the package in a checkout and inside it in an installed wheel. Knows nothing of
what is in a folder; never writes into the package.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from autospec.errors import ConfigError

PACKAGE_DIR = Path(__file__).resolve().parent


def data_dir(name: str) -> Path:
    """Return the folder `conf` or `search_spaces` that belongs to this installation.

    Args:
        name: Name of the folder.

    Raises:
        ConfigError: Neither the wheel's place nor the checkout's holds it; both are named.
    """
    candidates = (PACKAGE_DIR / "_data" / name, PACKAGE_DIR.parent / name)
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise ConfigError(f"the folder `{name}` must be at {candidates[0]} (wheel) or {candidates[1]} (checkout)")


def is_checkout() -> bool:
    """Return whether this package lies in a checkout of its repository rather than in an installed wheel."""
    return (PACKAGE_DIR.parent / "pyproject.toml").is_file()


def new_output_dir(root: Path, command: str) -> Path:
    """Make and return a new folder ``<root>/<command>/<YYYY-MM-DD_HH-MM-SS>``.

    A second folder within one second gets the suffix `_2`, and so on; making the folder is what claims its name, so
    two processes never share one.

    Args:
        root: The folder of all outputs; made where it is missing.
        command: Name of the command that writes.

    Raises:
        ConfigError: The folder cannot be made.
    """
    stamp = datetime.now().astimezone().strftime("%Y-%m-%d_%H-%M-%S")
    parent = Path(root).absolute() / command
    try:
        parent.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            folder = parent / (stamp if number == 1 else f"{stamp}_{number}")
            try:
                folder.mkdir()
            except FileExistsError:
                number += 1
            else:
                return folder
    except OSError as error:
        raise ConfigError(f"an output folder must be possible at {parent}, but got: {error.strerror}") from error
