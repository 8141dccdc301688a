"""The files of trained heads: a configuration and weights, in a folder or on a hub. Runs no code that lies in them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file
from torch import Tensor

from autospec.engine.location import locate
from autospec.errors import ModelError


@dataclass(frozen=True, slots=True)
class HeadCheckpoint:
    """What was read.

    Args:
        source: Folder or hub id.
        config: Of `config.json`.
        weights: By name.
    """

    source: str
    config: dict[str, Any]
    weights: dict[str, Tensor]

    def number(self, name: str, default: int | None = None, least: int = 1) -> int:
        """Return a whole number, at least `least`, of the configuration.

        Raises:
            ModelError: There is none under this name and no default, or it is something else.
        """
        value = self.config.get(name, default)
        if type(value) is not int or value < least:
            raise ModelError(
                f"`{name}` in config.json of `{self.source}` must be a whole number from {least} on, but got {value!r}"
            )
        return value

    def take(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return a weight of a known shape.

        Raises:
            ModelError: It is missing, or has another shape.
        """
        weight = self.weights.get(name)
        if weight is None or tuple(weight.shape) != tuple(shape):
            found = "it is missing" if weight is None else f"it is {tuple(weight.shape)}"
            raise ModelError(f"weight `{name}` of `{self.source}` must be {tuple(shape)}, but {found}")
        return weight


def read_checkpoint(source: str, names: Sequence[str]) -> HeadCheckpoint:
    """Read heads.

    Args:
        source: Folder or hub id.
        names: File names of weights to look for, in this order; `.safetensors`, or tensors saved by `torch.save`.

    Raises:
        ModelError: They cannot be found or read.
    """
    location = locate(source)
    found = {name: _find(location, name) for name in ("config.json", *names)}
    weight_files = [path for path in (found[name] for name in names) if path is not None]
    config_file = found["config.json"]
    if config_file is None or not weight_files:
        there = [name for name, path in found.items() if path is not None]
        raise ModelError(f"heads need config.json and one of {list(names)}, but `{source}` has {there}")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        weights = _read_weights(weight_files[0])
        ok = isinstance(config, dict) and all(isinstance(weight, Tensor) for weight in weights.values())
    except Exception as error:  # damaged files make torch, safetensors and json raise what they like
        raise ModelError(f"heads of `{source}` cannot be read: {error}") from error
    if not ok:
        raise ModelError(
            f"heads must be named tensors with a mapping beside them, but `{source}` holds something else"
        )
    return HeadCheckpoint(source, config, weights)


def _read_weights(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    return dict(torch.load(path, map_location="cpu", weights_only=True))


def _find(location: str, name: str) -> Path | None:
    folder = Path(location)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    try:
        return Path(hf_hub_download(location, name))
    except EntryNotFoundError:
        return None
    except Exception as error:  # no network, no such repository, no permission
        raise ModelError(f"`{name}` of `{location}` cannot be fetched: {error}") from error
