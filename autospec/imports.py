"""Python of the user's own, named in text: imported only from modules that whoever runs a command has allowed."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Collection
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from autospec.errors import ConfigError


def import_callable(path: str, allow_import: Collection[str]) -> Callable[..., Any]:
    """Import a function or class by its path.

    Args:
        path: `MODULE:NAME`.
        allow_import: Modules whose code may run, each by its full name; a package does not stand for what is in it.

    Raises:
        ConfigError: The path is no such pair, the module is not allowed, in which case nothing of it was run, it
            cannot be imported, or has no such callable.
    """
    module_name, _, name = path.partition(":")
    if not (name.isidentifier() and all(part.isidentifier() for part in module_name.split("."))):
        raise ConfigError(
            f"code of one's own must be named `MODULE:NAME`, as in my_package.my_module:my_function, but got `{path}`"
        )
    if module_name not in allow_import:
        raise ConfigError(
            f"code must be allowed by whoever runs it, with `allow_import=[{module_name}]` on the command line or in "
            f"Python, but `{path}` is to run and allowed are {sorted(allow_import)}"
        )
    try:
        module = import_module(module_name)
    except (Exception, SystemExit) as error:  # importing runs the user's code: it raises what it likes
        raise ConfigError(f"`{module_name}` must be a module that can be imported, but: {told(error)}") from error
    if not hasattr(module, name):
        near = get_close_matches(name, dir(module), n=1)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        raise ConfigError(f"`{path}` must name something in its module, but `{name}` is not there{hint}")
    found = getattr(module, name)
    if not callable(found):
        raise ConfigError(f"`{path}` must name a function or a class, but it is {found!r:.60}")
    return found  # type: ignore[no-any-return]  # `callable` says no more than that


def code_digest(path: str) -> str | None:
    """Return what identifies the file of a module that was imported, or None: sixteen hexadecimal digits.

    Args:
        path: `MODULE:NAME`.
    """
    file = getattr(sys.modules.get(path.partition(":")[0]), "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] if file else None


def told(error: BaseException) -> str:
    """Return the kind of an error and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return ": ".join([type(error).__name__, *lines[:1]])
