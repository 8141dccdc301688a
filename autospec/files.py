"""Reading and writing checked JSON files: strict JSON in, atomic replacement out.

Knows nothing of what is in them; the caller says what a file is called and which error its faults are.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autospec.errors import AutospecError


@dataclass(frozen=True, slots=True)
class FileKind:
    """What kind of file is read or written.

    Args:
        name: With its article, as in `a policy`.
        error: What a faulty file raises.
    """

    name: str
    error: type[AutospecError]

    def read(self, path: Path) -> Any:
        """Return the content of a JSON file.

        Raises:
            AutospecError: Of this kind: it cannot be read, is not JSON or was cut short, holds NaN, or repeats a name
                in an object.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise self.error(f"{self.name} must be a readable text file, but: {error}") from error
        try:
            return json.loads(text, parse_constant=self._refuse_constant, object_pairs_hook=self._refuse_repeated)
        except json.JSONDecodeError as error:
            is_cut = text.lstrip().startswith("{") and not text.rstrip().endswith("}")
            cause = "it ends in the middle: the file was truncated" if is_cut else f"{error}"
            raise self.error(f"{self.name} must be whole JSON, but {cause}") from error
        except RecursionError as error:
            raise self.error(f"{self.name} must be JSON of reasonable depth, but it is nested too deeply") from error

    def write(self, path: Path, text: str) -> None:
        """Write a file so that a reader sees the old content or the new, never a part.

        Raises:
            AutospecError: Of this kind: it cannot be written; what was there before is untouched.
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
            raise self.error(f"{path.name} must go where files can be written, but: {error}") from error

    def _refuse_constant(self, name: str) -> Any:
        raise self.error(f"numbers must be finite, but got {name}")

    def _refuse_repeated(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            names = [name for name, _ in pairs]
            repeated = [name for name in values if names.count(name) > 1]
            raise self.error(f"a name may appear once in an object, but got {repeated} repeated")
        return values


def line_by_line(document: Mapping[str, Any]) -> str:
    """Return JSON with a line for each item of its lists of objects, so that long files can be read and compared."""
    return _written(dict(document), "") + "\n"


def _written(value: Any, indent: str) -> str:
    deeper = indent + "  "
    if isinstance(value, dict) and any(isinstance(one, dict | list) for one in value.values()):
        items = [f"{deeper}{json.dumps(name)}: {_written(one, deeper)}" for name, one in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(one, dict) for one in value):
        items = [f"{deeper}{json.dumps(one, allow_nan=False)}" for one in value]
        return "[\n" + ",\n".join(items) + f"\n{indent}]"
    return json.dumps(value, allow_nan=False)
