"""What a policy file must look like: checks of every field, checksum, migration of older versions.

Works on plain JSON values only and returns faults as sentences; it builds no objects and reads no files.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from autospec.config import SamplingParams, SpecConfig
from autospec.errors import ConfigError, PolicyError

SCHEMA_VERSION = 1
QUALITY_VERDICTS = ("identical", "different", "not compared")


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
            yield f"`{where or 'the policy'}` must be an object, but got {value!r}"
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


def _ordered(estimate: Mapping[str, Any]) -> str:
    low, value, high = estimate["low"], estimate["value"], estimate["high"]
    if high is None or low <= value <= high:
        return "" if low <= value else f"`low <= value` must hold, but got {low} and {value}"
    return f"`low <= value <= high` must hold, but got {low}, {value} and {high}"


_COUNT = Number(low=0, integer=True)
_RATE = Number(low=0.0, high=1.0)
_MODEL = Record({"source": Text(), "revision": Nullable(Text()), "digest": Nullable(Text())})
_ESTIMATE = Record(
    {
        "value": Number(low=0.0),
        "low": Number(low=0.0),
        "high": Nullable(Number(low=0.0)),
        "num_prompts": Number(low=1, integer=True),
    },
    rule=_ordered,
)
_EVIDENCE = Record(
    {
        "baseline_tokens_per_second": Number(low=0.0),
        "tokens_per_second": Number(low=0.0),
        "speedup": _ESTIMATE,
        "decode_speedup": Nullable(_ESTIMATE),
        "tokens_per_step": Number(low=1.0),
        "acceptance_rate": _RATE,
        "position_acceptance": ListOf(_RATE),
        "num_prompts": _COUNT,
        "num_measurements": _COUNT,
        "quality": Record({"num_identical": _COUNT, "num_excused": _COUNT, "verdict": Text(choices=QUALITY_VERDICTS)}),
    }
)
_ROW = Record(
    {
        "batch_size": Nullable(Number(low=1, integer=True)),
        "context_length": Nullable(Number(low=1, integer=True)),
        "category": Nullable(Text()),
        "config": Built(SpecConfig.from_json),
        "evidence": Nullable(_EVIDENCE),
    }
)
POLICY = Record(
    {
        "schema_version": Number(low=SCHEMA_VERSION, high=SCHEMA_VERSION, integer=True),
        "target": _MODEL,
        "drafters": MapOf(_MODEL),
        "dtype": Text(),
        "device": MapOf(Scalar()),
        "workload": Record({"name": Text(), "content_hash": Text(), "categories": ListOf(Text())}),
        "sampling": Built(SamplingParams.from_json),
        "rows": ListOf(_ROW),
        "reproduce": Record(
            {"command": Text(), "seed": _COUNT, "autospec_version": Text(), "created": Text()},
        ),
    }
)


def checksum(document: Mapping[str, Any]) -> str:
    """Return the sha256 of the canonical form of a policy document, its own checksum left out."""
    content = {name: value for name, value in document.items() if name != "sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _from_version_0(document: dict[str, Any]) -> dict[str, Any]:
    """Add what came with version 1: digests of models and the speedup of decoding alone, both unknown."""
    migrated = dict(document)
    if isinstance(migrated.get("target"), dict):
        migrated["target"] = {"digest": None, **migrated["target"]}
    if isinstance(migrated.get("drafters"), dict):
        migrated["drafters"] = {
            name: {"digest": None, **model} if isinstance(model, dict) else model
            for name, model in migrated["drafters"].items()
        }
    if isinstance(migrated.get("rows"), list):
        migrated["rows"] = [_with_decode_speedup(row) for row in migrated["rows"]]
    return migrated


def _with_decode_speedup(row: Any) -> Any:
    if not isinstance(row, dict) or not isinstance(row.get("evidence"), dict):
        return row
    return {**row, "evidence": {"decode_speedup": None, **row["evidence"]}}


# From each version to the next; what is not of the expected shape is left for the schema to name.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {0: _from_version_0}
FIRST_VERSION_WITH_CHECKSUM = 1


def _checksum_faults(document: Mapping[str, Any]) -> list[str]:
    if "sha256" not in document:
        return ["`sha256` is missing"]
    if document["sha256"] != checksum(document):
        return [
            "the content must be what was saved, but its sha256 does not fit: the file was changed or damaged "
            "(to change a policy on purpose, load it, use dataclasses.replace and save it)"
        ]
    return []


def validate(document: Any) -> dict[str, Any]:
    """Return the document in today's schema version without its checksum, or raise with every fault found.

    Raises:
        PolicyError: A field is missing, unknown or of the wrong type, the checksum does not fit, or the schema
            version is newer than this autospec.
    """
    if not isinstance(document, dict):
        raise PolicyError(f"a policy must be a JSON object, but got {document!r:.60}")
    version = document.get("schema_version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 0:
        raise PolicyError(f"`schema_version` must be an integer of at least 0, but got {version!r}")
    if version > SCHEMA_VERSION:
        raise PolicyError(
            f"a policy of schema version {version} needs a newer autospec; this one reads up to {SCHEMA_VERSION}"
        )
    damage = _checksum_faults(document) if version >= FIRST_VERSION_WITH_CHECKSUM else []
    content = {name: value for name, value in document.items() if name != "sha256"}
    for older in range(version, SCHEMA_VERSION):
        content = {**MIGRATIONS[older](content), "schema_version": older + 1}
    faults = [*POLICY.faults(content, ""), *damage]
    if faults:
        raise PolicyError("\n".join(faults))
    return content
