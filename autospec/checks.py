"""Checks of plain JSON values: what one must be, and a sentence for everything wrong with it.

Knows no document; the schemas of policies and profiles are made of these.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from autospec.errors import ConfigError


class Check(Protocol):
    """What one value of the file must be."""

    def faults(self, value: Any, where: str) -> Iterator[str]:
        """Yield a sentence for everything wrong with `value`, which stands at `where` in the file."""
        ...


@dataclass(frozen=True, slots=True)
class Text:
    """A string, one of `choices` where there are any."""

    choices: tuple[str, ...] = ()

    def faults(self, value: Any, where: str) -> Iterator[str]:
        """Yield what is wrong with `value`."""
        if not isinstance(value, str):
            yield f"`{where}` must be a string, but got {value!r}"
        elif self.choices and value not in self.choices:
            yield f"`{where}` must be one of {list(self.choices)}, but got {value!r}"


@dataclass(frozen=True, slots=True)
class Number:
    """A finite number of at least `low` and at most `high`."""

    low: float = -math.inf
    high: float = math.inf
    integer: bool = False

    def faults(self, value: Any, where: str) -> Iterator[str]:
        """Yield what is wrong with `value`."""
        wanted = int if self.integer else (int, float)
        if isinstance(value, bool) or not isinstance(value, wanted):
            yield f"`{where}` must be {'an integer' if self.integer else 'a number'}, but got {value!r}"
        elif not -math.inf < value < math.inf:
            yield f"`{where}` must be finite, but got {value!r}"
        elif value < self.low:
            yield f"`{where} >= {self.low:g}` must hold, but got {value!r}"
        elif value > self.high:
            yield f"`{where} <= {self.high:g}` must hold, but got {value!r}"


@dataclass(frozen=True, slots=True)
class Boolean:
    """True or false."""

    def faults(self, value: Any, where: str) -> Iterator[str]:
        """Yield what is wrong with `value`."""
        if not isinstance(value, bool):
            yield f"`{where}` must be true or false, but got {value!r}"


@dataclass(frozen=True, slots=True)
class Scalar:
    """A string or a number."""

    def faults(self, value: Any, where: str) -> Iterator[str]:
        """Yield what is wrong with `value`."""
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            yield f"`{where}` must be a string or a number, but got {value!r}"


@dataclass(frozen=True, slots=True)
class Nullable:
    """Either null or what `check` asks for."""

    check: Check

    def faults(self, value: Any, where: str) -> Iterator[str]:
        """Yield what is wrong with `value`."""
        if value is not None:
            yield from self.check.faults(value, where)


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list whose items all pass `check`."""

    check: Check

    def faults(self, value: Any, where: str) -> Iterator[str]:
        """Yield what is wrong with `value`."""
        if not isinstance(value, list):
            yield f"`{where}` must be a list, but got {value!r}"
            return
        for index, item in enumerate(value):
            yield from self.check.faults(item, f"{where}[{index}]")


@dataclass(frozen=True, slots=True)
class MapOf:
    """An object with any names whose values all pass `check`."""

    check: Check

    def faults(self, value: Any, where: str) -> Iterator[str]:
        """Yield what is wrong with `value`."""
        if not isinstance(value, dict):
            yield f"`{where}` must be an object, but got {value!r}"
            return
        for name, item in value.items():
            yield from self.check.faults(item, f"{where}.{name}")


@dataclass(frozen=True, slots=True)
class Record:
    """An object with exactly these names, and a rule over all of them once each is right."""

    checks: Mapping[str, Check]
    rule: Callable[[Mapping[str, Any]], str] = field(default=lambda values: "")

    def faults(self, value: Any, where: str) -> Iterator[str]:
        """Yield what is wrong with `value`."""
        if not isinstance(value, dict):
            yield f"`{where or 'the document'}` must be an object, but got {value!r}"
            return
        prefix = f"{where}." if where else ""
        found = []
        for name in sorted(set(value) - set(self.checks)):
            near = difflib.get_close_matches(name, self.checks, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known are {sorted(self.checks)}"
            found.append(f"`{prefix}{name}` is not a field of this schema version; {hint}")
        for name, check in self.checks.items():
            if name in value:
                found.extend(check.faults(value[name], f"{prefix}{name}"))
            else:
                found.append(f"`{prefix}{name}` is missing")
        broken = self.rule(value) if not found else ""
        yield from [*found, f"`{where}`: {broken}"] if broken else found


@dataclass(frozen=True, slots=True)
class Built:
    """An object that `build` accepts; its `ConfigError` lists the faults."""

    build: Callable[[Mapping[str, Any]], Any]

    def faults(self, value: Any, where: str) -> Iterator[str]:
        """Yield what is wrong with `value`."""
        if not isinstance(value, dict):
            yield f"`{where}` must be an object, but got {value!r}"
            return
        try:
            self.build(value)
        except ConfigError as error:
            yield from (f"`{where}`: {fault}" for fault in error.faults)
