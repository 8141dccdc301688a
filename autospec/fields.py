"""Fields of frozen dataclasses of primitives: their types, rank paths among them, and building from a mapping."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from autospec.errors import ConfigError

Paths = tuple[tuple[int, ...], ...]


def check_types(instance: Any) -> list[str]:
    """Return a fault for every field whose value is not of the declared primitive type; make floats of numbers."""
    allowed = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}
    faults = []
    for field in fields(instance):
        value = getattr(instance, field.name)
        if field.type == "Paths":
            paths = read_paths(value)
            if paths is None:
                rule = "must be a list of paths of ranks from 0, or text such as '0 1 0.0'"
                faults.append(f"`{field.name}` {rule}, but got {value!r}")
            else:
                object.__setattr__(instance, field.name, paths)
            continue
        wrong_bool = isinstance(value, bool) and field.type != "bool"
        if wrong_bool or not isinstance(value, allowed[str(field.type)]):
            faults.append(f"`{field.name}` must be of type {field.type}, but got {value!r}")
        elif field.type == "float":
            # 1 and 1.0, 0.0 and -0.0 are equal, so they must have one JSON form and one hash.
            object.__setattr__(instance, field.name, float(value) + 0.0)
    return faults


def read_paths(value: Any) -> Paths | None:
    """Return rank paths from lists, or from text in which `0 1 0.0` are (0,), (1,) and (0, 0); None for others."""
    if isinstance(value, str):
        words = [word.split(".") for word in value.split()]
        value = [[int(rank) if rank.isdecimal() else None for rank in ranks] for ranks in words]
    sequences = (list, tuple)
    is_good = isinstance(value, sequences) and all(
        isinstance(path, sequences) and path and all(type(rank) is int and rank >= 0 for rank in path)
        for path in value
    )
    return tuple(tuple(path) for path in value) if is_good else None


def from_mapping(cls: type[Any], values: Mapping[str, Any]) -> Any:
    """Build a dataclass of defaults from a mapping, refusing names it does not have."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{cls.__name__} must be a mapping of names to values, but got {values!r}")
    known = [field.name for field in fields(cls)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        close = {name: difflib.get_close_matches(str(name), known, n=1) for name in unknown}
        meant = " and ".join(f"`{matches[0]}`" for matches in close.values() if matches)
        hint = f"; did you mean {meant}?" if meant else ""
        raise ConfigError(f"{cls.__name__} takes only {known}, but got {unknown}{hint}")
    return cls(**values)
