"""What a policy file must look like: its fields, checksum, migration of older versions.

Works on plain JSON values only and returns faults as sentences; it builds no objects and reads no files.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from autospec.checks import Boolean, Built, ListOf, MapOf, Nullable, Number, Record, Scalar, Text
from autospec.config import SamplingParams, SpecConfig
from autospec.engine.costs import CostCurve
from autospec.errors import AutospecWarning, PolicyError

SCHEMA_VERSION = 5
QUALITY_VERDICTS = ("identical", "different", "not compared")


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
_BOUND = Nullable(Record({"value": Number(), "bound": Nullable(Number()), "num_prompts": Number(low=1, integer=True)}))
_QUALITY = Record(
    {
        "num_identical": _COUNT,
        "num_excused": _COUNT,
        "verdict": Text(choices=QUALITY_VERDICTS),
        "loss": _BOUND,
        "agreement": _BOUND,
        "score_drop": _BOUND,
    }
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
        "quality": _QUALITY,
        "objective": Text(),
        "p95_latency_ratio": Nullable(_ESTIMATE),
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
        "tokenizer": Nullable(_MODEL),
        "costs": MapOf(Built(CostCurve.from_json)),
        "dtype": Text(),
        "compile": Boolean(),
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


def _from_version_1(document: dict[str, Any]) -> dict[str, Any]:
    """Add what came with version 2: a tokenizer that is not the target's own, of which there was none."""
    return {"tokenizer": None, **document}


def _from_version_2(document: dict[str, Any]) -> dict[str, Any]:
    """Add what came with version 3: bounds on what lossy rules lose, and costs, of which there were none."""
    rows = document.get("rows")
    bounded = {"rows": [_with_bounds(row) for row in rows]} if isinstance(rows, list) else {}
    return {"costs": {}, **document, **bounded}


def _with_bounds(row: Any) -> Any:
    evidence = row.get("evidence") if isinstance(row, dict) else None
    if not isinstance(evidence, dict) or not isinstance(evidence.get("quality"), dict):
        return row
    quality = {"loss": None, "agreement": None, "score_drop": None, **evidence["quality"]}
    return {**row, "evidence": {**evidence, "quality": quality}}


def _from_version_3(document: dict[str, Any]) -> dict[str, Any]:
    """Add what came with version 4: objectives other than speed, and latency, which was not recorded."""
    rows = document.get("rows")
    return {**document, "rows": [_with_objective(row) for row in rows]} if isinstance(rows, list) else document


def _with_objective(row: Any) -> Any:
    evidence = row.get("evidence") if isinstance(row, dict) else None
    if not isinstance(evidence, dict):
        return row
    added = {"objective": "tokens_per_second", "p95_latency_ratio": None}
    return {**row, "evidence": {**added, **evidence}}


def _from_version_4(document: dict[str, Any]) -> dict[str, Any]:
    """Add what came with version 5: whether models were compiled, which no command line could ask for."""
    return {"compile": False, **document}


# From each version to the next; what is not of the expected shape is left for the schema to name.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    0: _from_version_0,
    1: _from_version_1,
    2: _from_version_2,
    3: _from_version_3,
    4: _from_version_4,
}
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

    Warns of a version from before there were checksums: nothing tells whether such a file was changed.

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
    if version < FIRST_VERSION_WITH_CHECKSUM:
        warnings.warn(
            f"a policy of schema version {version} has no checksum, so that it cannot be verified: it may have been "
            "changed since it was made",
            AutospecWarning,
            stacklevel=4,
        )
    return content
