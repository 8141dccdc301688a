"""Reading and writing policy files: strict JSON in, atomic replacement out.

Knows nothing of what is in them.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from autospec.errors import PolicyError


def _refuse_constant(name: str) -> Any:
    raise PolicyError(f"numbers must be finite, but got {name}")


def _refuse_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = [name for name in values if names.count(name) > 1]
        raise PolicyError(f"a name may appear once in an object, but got {repeated} repeated")
    return values


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        PolicyError: It cannot be read, is not JSON or was cut short, holds NaN, or repeats a name in an object.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"a policy must be a readable text file, but: {error}") from error
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_refuse_repeated)
    except json.JSONDecodeError as error:
        is_cut = text.lstrip().startswith("{") and not text.rstrip().endswith("}")
        cause = "it ends in the middle: the file was truncated" if is_cut else f"{error}"
        raise PolicyError(f"a policy must be whole JSON, but {cause}") from error
    except RecursionError as error:
        raise PolicyError("a policy must be JSON of reasonable depth, but it is nested too deeply") from error


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    Raises:
        PolicyError: It cannot be written; what was there before is untouched.
    """
    temporary: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise PolicyError(f"{path.name} must go where files can be written, but: {error}") from error
