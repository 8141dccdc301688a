"""The files of a trace: arrays in safetensors, the rest in JSON beside them, both whole or not there at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from autospec.errors import ReplayError
from autospec.files import FileKind

TENSORS, HEADER = "trace.safetensors", "trace.json"
_DTYPES = {"I32": np.dtype("<i4"), "F32": np.dtype("<f4")}


@dataclass(frozen=True, slots=True)
class TraceFolder:
    """A folder that holds one trace.

    Args:
        path: Where it is, or shall be.
    """

    path: Path

    def write(self, values: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write a trace; what is there already is left as it is.

        Args:
            values: JSON values.
            arrays: By name.

        Raises:
            ReplayError: It cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not (self.path / HEADER).exists():
                whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
                save_file(whole, self.path / TENSORS)
                # Last, and whole or not at all: a folder with a header is a trace.
                FileKind("a trace", ReplayError).write(self.path / HEADER, json.dumps(values, indent=1) + "\n")
        except OSError as error:
            raise ReplayError(f"a trace must go where files can be written, but: {error}") from error

    def header(self) -> dict[str, Any]:
        """Return the JSON values.

        Raises:
            OSError: There is no such file.
            ValueError: It is not JSON.
        """
        values: dict[str, Any] = json.loads((self.path / HEADER).read_text(encoding="utf-8"))
        return values

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Map the arrays: eight bytes with the length of a JSON header, the header, then the data.

        Raises:
            OSError: There is no such file.
            ValueError: It was cut short.
            KeyError: It is of another kind.
        """
        path = self.path / TENSORS
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        # As plain arrays over the map, whose elements are read several times as fast.
        data = np.asarray(np.memmap(path, dtype=np.uint8, mode="r", offset=8 + length))
        arrays = {}
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                if end > data.size:
                    raise ValueError(f"`{path.name}` was cut short")
                arrays[name] = data[start:end].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
        return arrays
