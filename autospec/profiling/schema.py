"""What the file of a hardware profile must look like: its fields and its checksum.

Works on plain JSON values and returns faults as sentences; it builds no objects and reads no files. What an older
version lacks is added where that takes no measuring.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from autospec.checks import Boolean, Built, ListOf, MapOf, Nullable, Number, Record, Scalar, Text
from autospec.config import SamplingParams
from autospec.errors import ProfileError

SCHEMA_VERSION = 4
_OLDEST = 1
_FIRST_OF_UNEVEN_ROWS = 3  # before, batches were timed with rows of one length
HOWS = ("step", "forward")
VERDICTS = ("quiet", "noisy", "too noisy", "unknown")

_COUNT, _SIZE = Number(low=0, integer=True), Number(low=1, integer=True)
_POSITIVE = Number(low=0.0)
_TIMING = Record({"seconds": _POSITIVE, "spread": _POSITIVE, "num_samples": _SIZE})
_DIFFERENCE = Record({"seconds": Number(), "spread": _POSITIVE, "num_samples": _SIZE})
_MODEL = Record({"source": Text(), "revision": Nullable(Text()), "digest": Nullable(Text())})
_AT = {"batch_size": _SIZE, "context_length": _SIZE}
_TARGET_POINT = Record(
    {**_AT, "num_tokens": _SIZE, "forward": _TIMING, "host": Nullable(_TIMING), "how": Text(choices=HOWS)}
)
_DRAFT_POINT = Record(
    {
        **_AT,
        "exit_layer": _COUNT,
        "width": _SIZE,
        "depth": _SIZE,
        "num_tokens": _SIZE,
        "draft": _TIMING,
        "verify": _TIMING,
        "host": _TIMING,
    }
)
_DRAFTER_CONTEXT = Record(
    {
        **_AT,
        "exit_layer": _COUNT,
        "prefill": _TIMING,
        "first_draft": _TIMING,
        "verify_extra": _DIFFERENCE,
        "host_extra": _DIFFERENCE,
    }
)
THREADS = Record(
    {
        "num_threads": _SIZE,
        "context_length": _SIZE,
        "num_verified": _SIZE,
        "points": ListOf(
            Record(
                {
                    "num_threads": _SIZE,
                    "plain": _TIMING,
                    "verify": _TIMING,
                    **dict.fromkeys(("slowdown", "slowdown_low", "slowdown_high"), _POSITIVE),
                }
            )
        ),
    }
)
_DRAFTER = Record(
    {
        "source": _MODEL,
        "has_probs": Boolean(),
        "default_exit_layer": _COUNT,
        "weight_bytes": _COUNT,
        "points": ListOf(_DRAFT_POINT),
        "contexts": ListOf(_DRAFTER_CONTEXT),
    }
)
PROFILE = Record(
    {
        "schema_version": Number(low=SCHEMA_VERSION, high=SCHEMA_VERSION, integer=True),
        "fingerprint": MapOf(Scalar()),
        "target": _MODEL,
        "drafters": MapOf(_DRAFTER),
        "sampling": Built(SamplingParams.from_json),
        "workload": Text(),
        "target_points": ListOf(_TARGET_POINT),
        "plain_points": ListOf(Record({**_AT, "step": _TIMING})),
        "prefill_points": ListOf(Record({"batch_size": _SIZE, "num_tokens": _SIZE, "prefill": _TIMING})),
        "memory": Record({"target_weight_bytes": _COUNT, "kv_bytes_per_token": _POSITIVE, "peak_bytes": _COUNT}),
        "threads": Nullable(THREADS),
        "compile": Boolean(),
        "noise": Record({"spread": _POSITIVE, "verdict": Text(choices=VERDICTS)}),
        "left_out": ListOf(Text()),
        "wall_seconds": _POSITIVE,
        "created": Text(),
        "autospec_version": Text(),
    }
)


def checksum(document: Mapping[str, Any]) -> str:
    """Return the sha256 of the canonical form of a profile, its own checksum left out."""
    content = {name: value for name, value in document.items() if name != "sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def validate(document: Any) -> dict[str, Any]:
    """Return the document without its checksum, as of this schema version, or raise with every fault found.

    Raises:
        ProfileError: A field is missing, unknown or of the wrong type, the checksum does not fit, or the schema
            version is not one that can be read.
    """
    if not isinstance(document, dict):
        raise ProfileError(f"a profile must be a JSON object, but got {document!r:.60}")
    version = document.get("schema_version")
    if isinstance(version, bool) or not isinstance(version, int):
        raise ProfileError(f"`schema_version` must be an integer, but got {version!r}")
    if version > SCHEMA_VERSION:
        raise ProfileError(
            f"a profile of schema version {version} needs a newer autospec; this one reads {SCHEMA_VERSION}"
        )
    if version < _OLDEST:
        raise ProfileError(
            f"a profile must be of schema version {_OLDEST} to {SCHEMA_VERSION}, but got {version}: measure again "
            "with `python -m autospec profile`"
        )
    content = {name: value for name, value in document.items() if name != "sha256"}
    content = _raised(content, version)
    faults = list(PROFILE.faults(content, ""))
    if "sha256" not in document:
        faults.append("`sha256` is missing")
    elif document["sha256"] != checksum(document):
        faults.append(
            "the content must be what was saved, but its sha256 does not fit: the file was changed or damaged"
        )
    if faults:
        raise ProfileError("\n".join(faults))
    return content


def _raised(content: dict[str, Any], version: int) -> dict[str, Any]:
    """Return what an older version says as of this one."""
    if version == SCHEMA_VERSION:
        return content
    content = {"compile": False, **content, "schema_version": SCHEMA_VERSION}
    if version == 1:  # before numbers of threads were compared
        content = {"threads": None, **content}
    points = content.get("target_points")
    if version < _FIRST_OF_UNEVEN_ROWS and isinstance(points, list):  # rows of one length attend in another way
        content["target_points"] = [one for one in points if not (isinstance(one, dict) and _size(one) > 1)]
    return content


def _size(point: Mapping[str, Any]) -> int:
    size = point.get("batch_size")
    return size if isinstance(size, int) else 1
