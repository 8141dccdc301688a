"""A hardware profile as the JSON document that is kept, and back."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from autospec.config import SamplingParams
from autospec.errors import ProfileError
from autospec.files import FileKind
from autospec.profiling import schema
from autospec.profiling.parts import (
    DrafterCosts,
    Memory,
    Noise,
    PlainPoint,
    PrefillPoint,
    TargetPoint,
    ThreadChoice,
    with_timings,
)
from autospec.sources import ModelSource

if TYPE_CHECKING:
    from autospec.profiling.hardware import HardwareProfile

PROFILE_FILE = FileKind("a profile", ProfileError)


def document_of(profile: HardwareProfile) -> dict[str, Any]:
    """Return a profile as JSON values, schema version and checksum included."""
    content = {"schema_version": schema.SCHEMA_VERSION, **asdict(profile), "sampling": profile.sampling.to_json()}
    content = json.loads(json.dumps(content))  # tuples become lists, as they will be read
    return {**content, "sha256": schema.checksum(content)}


def fields_of(document: Any) -> dict[str, Any]:
    """Return the fields of the profile that a document holds.

    Raises:
        ProfileError: The document is malformed, was changed or is of another schema version; all faults are listed.
    """
    values = schema.validate(document)
    del values["schema_version"]
    return {
        **values,
        "target": ModelSource(**values["target"]),
        "drafters": {name: DrafterCosts.from_json(one) for name, one in values["drafters"].items()},
        "sampling": SamplingParams.from_json(values["sampling"]),
        "target_points": tuple(with_timings(TargetPoint, one) for one in values["target_points"]),
        "plain_points": tuple(with_timings(PlainPoint, one) for one in values["plain_points"]),
        "prefill_points": tuple(with_timings(PrefillPoint, one) for one in values["prefill_points"]),
        "memory": Memory(**values["memory"]),
        "noise": Noise(**values["noise"]),
        "left_out": tuple(values["left_out"]),
        "threads": values["threads"] and ThreadChoice.from_json(values["threads"]),
    }
