"""Plain values -> frozen dataclasses, with all faults at once, and the sections that several commands share.

A command's own settings stand in its file. Ranges are the business of the dataclasses themselves; types and names are
checked here. Creates nothing and loads nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from autospec.cli.compose import near
from autospec.errors import ConfigError

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
SettingsT = TypeVar("SettingsT")
_KINDS = {
    int: "an integer",
    float: "a finite number",
    bool: "true or false",
    str: "text",
    Path: "text",
    tuple: "a list such as [a,b]",
    dict: "a table such as {name:value}",
    NoneType: "null",
}


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Which models; see `conf/model`."""

    target: str = ""
    drafters: dict[str, str | None] = field(default_factory=dict)
    tokenizer: str | None = None
    device: str = "auto"
    dtype: Dtype = "auto"
    revision: str | None = None
    trust_remote_code: bool = False
    compile: bool = False

    @property
    def named_drafters(self) -> dict[str, str]:
        """The drafters that were given; a name set to null is none."""
        return {name: source for name, source in self.drafters.items() if source}


@dataclass(frozen=True, slots=True)
class TrackingSettings:
    """Where experiments are logged; see `conf/tracking`."""

    kind: Literal["mlflow", "none"] = "none"
    uri: str | None = None


def typed(cls: type[SettingsT], values: Mapping[str, Any], faults: list[str], where: str = "") -> SettingsT | None:
    """Build a dataclass from plain values, nested dataclasses included.

    A faulty value leaves its default in place, so that what the right ones point to (files, models) can still be
    checked and reported in the same message.

    Args:
        cls: A dataclass whose fields are of primitive types, lists, tables or dataclasses.
        values: What was composed.
        faults: Grows by one message for everything that is wrong.
        where: Dotted name of the section.

    Returns:
        None only where a value without a default is missing or faulty.
    """
    hints = get_type_hints(cls)
    accepted: dict[str, Any] = {}
    for name, value in values.items():
        place = f"{where}.{name}" if where else name
        if name not in hints:
            faults.append(f"there is no setting `{place}`{near(name, list(hints))}")
            continue
        inner = _dataclass_of(hints[name])
        if inner is not None and isinstance(value, Mapping):
            built = typed(inner, value, faults, place)
            if built is not None:
                accepted[name] = built
        elif _fits(value, hints[name]):
            accepted[name] = _converted(value, hints[name])
        else:
            hint = near(str(value), [one for one in get_args(hints[name]) if isinstance(one, str)])
            faults.append(f"`{place}` must be {_rule(hints[name])}, but got {value!r}{hint}")
    return _made(cls, accepted, faults, where)


def _made(cls: type[SettingsT], accepted: Mapping[str, Any], faults: list[str], where: str) -> SettingsT | None:
    """Make the instance; where a range is broken, with defaults in place of the values that break it."""
    broken = _range_faults(cls, accepted)
    faults.extend(f"`{where}`: {message}" if where else message for message in broken)
    required = {one.name for one in fields(cls) if one.default is MISSING and one.default_factory is MISSING}  # type: ignore[arg-type]
    kept = dict(accepted)
    while broken:
        left = {name: _range_faults(cls, _without(kept, name)) for name in kept if name not in required}
        name = min(left, key=lambda name: len(left[name]), default="")
        if len(left.get(name, broken)) >= len(broken):
            return None
        del kept[name]
        broken = left[name]
    return None if required - set(kept) else cls(**kept)


def _range_faults(cls: type[Any], values: Mapping[str, Any]) -> list[str]:
    """Return what a dataclass says against values; nothing where one without a default is missing."""
    try:
        cls(**values)
    except ConfigError as error:
        return error.faults
    except TypeError:
        return []
    return []


def _without(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {other: value for other, value in values.items() if other != name}


def _dataclass_of(hint: Any) -> type[Any] | None:
    """Return the dataclass in `hint`, which may also allow None."""
    found = [kind for kind in (hint, *get_args(hint)) if isinstance(kind, type) and is_dataclass(kind)]
    return found[0] if found else None


def _fits(value: Any, hint: Any) -> bool:
    """Tell whether a plain value is of a type, without converting text to numbers or numbers to switches."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, list) and all(_fits(one, arguments[0]) for one in value)
    if origin is dict:
        return isinstance(value, Mapping) and all(
            _fits(key, arguments[0]) and _fits(one, arguments[1]) for key, one in value.items()
        )
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    return isinstance(value, str) if hint is Path else type(value) is hint


def _converted(value: Any, hint: Any) -> Any:
    if isinstance(value, list) and hint is not Any:
        return tuple(value)
    return float(value) if hint is float else value


def _rule(hint: Any) -> str:
    """Say in words what values a type allows."""
    arguments = get_args(hint)
    if get_origin(hint) is Literal:
        return f"one of {list(arguments)}"
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(dict.fromkeys(_rule(argument) for argument in arguments))
    if inner := _dataclass_of(hint):
        return f"a table with {[one.name for one in fields(inner)]}"
    return _KINDS.get(get_origin(hint) or hint, str(hint))
