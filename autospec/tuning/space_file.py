"""Search-space YAML -> knobs and constraints; every fault with its line and key, all at once.

Reads the node tree instead of plain values, because only nodes know their lines. Knows the fields of `SpecConfig` and
nothing of a decoder.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from autospec.config import SpecConfig
from autospec.errors import ConfigError
from autospec.tuning.knobs import DECODING, DECODING_VALUES, Choices, Condition, Constraint, Knob, Range, Value

_FIELD_TYPES = {field.name: str(field.type) for field in fields(SpecConfig)}
_PROBE: Mapping[str, Value] = {
    "drafter": "any",
    "draft_length": 1,
    "ngram_min": 1,
    "ngram_max": 10**6,
    "tree_paths": "0",
}


def near(name: str, known: Iterable[str]) -> str:
    """Return a hint such as ``; did you mean `draft_length`?``, or nothing."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean `{matches[0]}`?" if matches else ""


class _Reader:
    """Walks the nodes of one file and collects faults."""

    def __init__(self, path: Path, text: str, drafters: Collection[str] | None) -> None:
        self._path, self._faults = path, list[tuple[int, str]]()
        self._drafters = None if drafters is None else sorted(drafters)
        try:
            self._loader = yaml.SafeLoader(text)
            self._root = self._loader.get_single_node()
        except yaml.YAMLError as error:
            raise self._broken(error) from error
        self.knobs: dict[str, Knob] = {}
        self.constraints: list[Constraint] = []
        self._lines: dict[str, int] = {}

    def read(self) -> None:
        """Fill `knobs` and `constraints`, or raise with all faults."""
        if self._root is None:
            raise ConfigError(f"{self._path}:1: `knobs`: a search space must have knobs, but the file is empty")
        entries = self._entries(self._root, "", ("knobs", "constraints"))
        if "knobs" in entries:
            self._read_knobs(entries["knobs"])
        elif isinstance(self._root, yaml.MappingNode):
            self._fault(self._root, "knobs", "a search space must have knobs, but there are none")
        if "constraints" in entries:
            self._read_constraints(entries["constraints"])
        if self._faults:
            raise ConfigError([f"{self._path}:{line}: {text}" for line, text in sorted(self._faults)])

    def _read_knobs(self, node: yaml.Node) -> None:
        entries = self._entries(node, "knobs", tuple(_FIELD_TYPES), "fields of SpecConfig")
        if not entries and isinstance(node, yaml.MappingNode) and not node.value:
            self._fault(node, "knobs", "a search space must have knobs, but there are none")
        for name, knob_node in entries.items():
            knob = self._read_knob(name, knob_node, set(entries))
            if knob is not None:
                self.knobs[name] = knob
        self._check_off(node, entries)

    def _check_off(self, node: yaml.Node, entries: Mapping[str, yaml.Node]) -> None:
        missing = [name for name in ("drafter", "draft_length") if entries and name not in entries]
        if missing:
            self._fault(node, "knobs", f"a search space must have {missing}, or speculation stays off")

    def _read_knob(self, name: str, node: yaml.Node, declared: set[str]) -> Knob | None:
        key = f"knobs.{name}"
        parts = self._entries(node, key, ("choices", "range", "step", "log", "when"))
        num_faults = len(self._faults)
        if ("choices" in parts) == ("range" in parts):
            if isinstance(node, yaml.MappingNode):
                self._fault(node, key, f"a knob must have either `choices` or `range`, but has {sorted(parts)}")
            return None
        domain = self._choices(name, parts) if "choices" in parts else self._range(name, parts)
        conditions = self._conditions(key, parts["when"], declared) if "when" in parts else ()
        if domain is None or len(self._faults) > num_faults:
            return None
        return Knob(name, domain, conditions, _line(parts["choices" if "choices" in parts else "range"]))

    def _choices(self, name: str, parts: Mapping[str, yaml.Node]) -> Choices | None:
        key, node = f"knobs.{name}.choices", parts["choices"]
        for extra in ("step", "log"):
            if extra in parts:
                self._fault(parts[extra], f"knobs.{name}.{extra}", "belongs to a `range`, but the knob has `choices`")
        values = self._value(node)
        if not isinstance(values, list) or not values:
            self._fault(node, key, f"must be a list of at least one value, but got {values!r}")
            return None
        if len({repr(value) for value in values}) < len(values):
            self._fault(node, key, f"must not repeat a value, but got {values}")
        items = node.value if isinstance(node, yaml.SequenceNode) else [node] * len(values)
        good = [self._check_value(item, key, name, value) for item, value in zip(items, values, strict=True)]
        if name == "drafter" and self._drafters is not None:
            for item, value in zip(items, values, strict=True):
                for part in str(value).split("+"):
                    if part not in self._drafters:
                        self._fault(item, key, drafter_rule(part, self._drafters))
                        good.append(False)
        return Choices(tuple(values)) if all(good) else None

    def _range(self, name: str, parts: Mapping[str, yaml.Node]) -> Range | None:
        key, node = f"knobs.{name}.range", parts["range"]
        kind = _FIELD_TYPES[name]
        if kind not in ("int", "float"):
            self._fault(node, key, f"a range needs a numeric field, but {name} is of type {kind}; use `choices`")
            return None
        bounds = self._value(node)
        wanted = int if kind == "int" else (int, float)
        if (
            not isinstance(bounds, list)
            or len(bounds) != 2
            or not all(isinstance(bound, wanted) and not isinstance(bound, bool) for bound in bounds)
        ):
            self._fault(node, key, f"must be [low, high], both of type {kind}, but got {bounds!r}")
            return None
        low, high = bounds
        if not low <= high:
            self._fault(node, key, f"`low <= high` must hold, but got [{low}, {high}]")
            return None
        good = [self._check_value(node, key, name, bound) for bound in dict.fromkeys(bounds)]
        step, is_log = self._spacing(name, parts, low, high)
        return Range(low, high, step, is_log, kind == "int") if all(good) else None

    def _spacing(
        self, name: str, parts: Mapping[str, yaml.Node], low: float, high: float
    ) -> tuple[float | None, bool]:
        """Return step and log of a range; a fault is noted where they cannot work."""
        is_integer = _FIELD_TYPES[name] == "int"
        is_log = self._value(parts["log"]) if "log" in parts else False
        step = self._value(parts["step"]) if "step" in parts else (1 if is_integer else None)
        if not isinstance(is_log, bool):
            self._fault(parts["log"], f"knobs.{name}.log", f"must be true or false, but got {is_log!r}")
        elif is_log and low <= 0:
            self._fault(parts["log"], f"knobs.{name}.log", f"a logarithm needs `low > 0`, but got {low}")
        elif is_log and "step" in parts:
            self._fault(parts["log"], f"knobs.{name}.log", "a range can have `step` or `log`, but has both")
        if "step" in parts:
            number = isinstance(step, int if is_integer else (int, float)) and not isinstance(step, bool)
            if not number or step is None or not step > 0:
                self._fault(parts["step"], f"knobs.{name}.step", f"must be a positive number, but got {step!r}")
            elif abs((high - low) / step - round((high - low) / step)) > 1e-6:
                rule = f"must divide the range, but [{low}, {high}] is not a whole number of steps of {step}"
                self._fault(parts["step"], f"knobs.{name}.step", rule)
        return step, bool(is_log)

    def _conditions(self, key: str, node: yaml.Node, declared: set[str]) -> tuple[Condition, ...]:
        conditions = []
        known = (*self.knobs, DECODING)
        for knob, values_node in self._entries(node, f"{key}.when", None).items():
            place = f"{key}.when.{knob}"
            values = self._value(values_node)
            values = values if isinstance(values, list) else [values]
            if knob not in known:
                if knob in declared and f"knobs.{knob}" != key:
                    rule = f"a condition must name a knob declared before it, but `{knob}` comes later or has faults"
                else:
                    rule = f"a condition must name a knob that is declared, but got `{knob}`{near(knob, known)}"
                self._fault(values_node, place, rule)
                continue
            domain = Choices(DECODING_VALUES) if knob == DECODING else self.knobs[knob].domain
            impossible = [value for value in values if not domain.contains(value)]
            if impossible or not values:
                hint = near(str(impossible[0]), map(str, domain.grid() or ())) if impossible else ""
                rule = f"must be values that `{knob}` can take, but got {impossible or values}{hint}"
                self._fault(values_node, place, rule)
            conditions.append(Condition(knob, tuple(values)))
        return tuple(conditions)

    def _read_constraints(self, node: yaml.Node) -> None:
        if not isinstance(node, yaml.SequenceNode):
            self._fault(node, "constraints", f"must be a list of expressions, but got {self._value(node)!r}")
            return
        for index, item in enumerate(node.value):
            key, value = f"constraints[{index}]", self._value(item)
            try:
                constraint = Constraint(str(value), _line(item))
            except ValueError as error:
                self._fault(item, key, str(error))
                continue
            unknown = [name for name in constraint.knobs if name not in self.knobs]
            for name in unknown:
                rule = f"a constraint must speak of declared knobs, but got `{name}`{near(name, self.knobs)}"
                self._fault(item, key, rule)
            if not unknown:
                self._check_types(item, key, constraint)
                self.constraints.append(constraint)

    def _check_types(self, node: yaml.Node, key: str, constraint: Constraint) -> None:
        domains = [self.knobs[name].domain for name in constraint.knobs]
        sample = [domain.values[0] if isinstance(domain, Choices) else domain.low for domain in domains]
        try:
            constraint.holds(dict(zip(constraint.knobs, sample, strict=True)))
        except TypeError as error:
            self._fault(node, key, f"a constraint must compare like with like, but {error}")

    def _check_value(self, node: yaml.Node, key: str, name: str, value: Any) -> bool:
        """Note a fault unless `SpecConfig` takes this value."""
        try:
            SpecConfig(**{**_PROBE, name: value})
        except ConfigError as error:
            known = [own for own in _known_names(error) if isinstance(value, str)]
            self._fault(node, key, f"{error}{near(str(value), known)}")
            return False
        return True

    def _entries(
        self, node: yaml.Node, key: str, allowed: tuple[str, ...] | None, what: str = "keys"
    ) -> dict[str, yaml.Node]:
        """Return a mapping's nodes by key; unknown, repeated and non-text keys are faults."""
        if not isinstance(node, yaml.MappingNode):
            rule = f"must be a table `name: value`, but got {self._value(node)!r}"
            self._fault(node, key or "the file", rule)
            return {}
        entries: dict[str, yaml.Node] = {}
        for key_node, value_node in node.value:
            name = self._value(key_node)
            place = f"{key}.{name}" if key else str(name)
            if allowed is not None and name not in allowed:
                self._fault(key_node, place, f"must be one of the {what} {list(allowed)}{near(str(name), allowed)}")
            elif name in entries:
                self._fault(key_node, place, "may appear once, but is there again")
            else:
                entries[str(name)] = value_node
        return entries

    def _value(self, node: yaml.Node) -> Any:
        try:
            return self._loader.construct_object(node, deep=True)
        except yaml.YAMLError as error:
            raise self._broken(error) from error

    def _broken(self, error: yaml.YAMLError) -> ConfigError:
        mark = getattr(error, "problem_mark", None)
        place = f"{self._path}:{mark.line + 1}" if mark else str(self._path)
        return ConfigError(f"{place}: a search space must be plain YAML, but: {getattr(error, 'problem', error)}")

    def _fault(self, node: yaml.Node, key: str, rule: str) -> None:
        self._faults.append((_line(node), f"`{key}`: {rule}"))


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def drafter_rule(name: object, known: Sequence[str]) -> str:
    """Return what is wrong with a drafter that a decoder has not."""
    return f"must name drafters of the decoder {list(known)}, but got {name!r}{near(str(name), known)}"


def _known_names(error: ConfigError) -> list[str]:
    """Return the names quoted in a message such as ``must be one of ['static', ...]``."""
    return list(chain.from_iterable(fault.split("'")[1::2] for fault in error.faults))[:-1]


def read_space(
    path: Path, text: str, drafters: Collection[str] | None = None
) -> tuple[tuple[Knob, ...], tuple[Constraint, ...]]:
    """Return the knobs and constraints of a search-space file.

    Args:
        path: For messages.
        text: Its content.
        drafters: Those there are, where that is known: others become faults.

    Raises:
        ConfigError: The file is not a search space; all faults are listed with file, line and key.
    """
    reader = _Reader(path, text, drafters)
    reader.read()
    return tuple(reader.knobs.values()), tuple(reader.constraints)
