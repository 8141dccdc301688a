"""The policy: which `SpecConfig` to use in which situation, with the evidence for it.

Plain JSON, no code: what is loaded is checked field by field. Knows no engine until `Policy.decoder` is called, and
never the tools that made it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.costs import CostCurve
from autospec.errors import AutospecWarning, PolicyError
from autospec.policy import schema
from autospec.policy.differences import device_differences, model_differences, running_differences
from autospec.policy.files import read_json, write_atomically
from autospec.policy.parts import Evidence, Quality, Reproduction, Row, TunedWorkload
from autospec.profiling.fingerprint import device_fingerprint
from autospec.rules import OBJECT_PREFIX
from autospec.sources import ModelSource, resolve_source, tokenizer_digest

if TYPE_CHECKING:
    from autospec.engine.decoder import SpeculativeDecoder
    from autospec.engine.drafters import Drafter
    from autospec.engine.model import PreTrainedModel

__all__ = ["Evidence", "ModelSource", "Policy", "Quality", "Reproduction", "Row", "TunedWorkload", "load_policy"]


@dataclass(frozen=True, slots=True)
class Policy:
    """Situation (batch size, context length, category) -> `SpecConfig`, with evidence.

    Args:
        target: The target model.
        drafters: Drafters by the name that configurations use.
        dtype: Data type of the models, such as `float32`.
        device: Fingerprint of the machine it was measured on.
        workload: What it was tuned on.
        sampling: Decoding settings it was tuned for.
        rows: The table.
        reproduce: How it was made.
        tokenizer: Where the tokenizer comes from; None: it is the target's own.
        costs: Drafter to what its steps cost, for the cost-aware stopping rule; constants stand in for others.
        compile: Whether it was tuned with models that run compiled.

    Raises:
        PolicyError: Two rows speak about the same situation, or a row names a drafter that is not there.
    """

    target: ModelSource
    drafters: Mapping[str, ModelSource]
    dtype: str
    device: Mapping[str, str | int | float]
    workload: TunedWorkload
    sampling: SamplingParams
    rows: tuple[Row, ...]
    reproduce: Reproduction
    tokenizer: ModelSource | None = None
    costs: Mapping[str, CostCurve] = field(default_factory=dict)
    compile: bool = False

    def __post_init__(self) -> None:
        faults = []
        situations = [row.situation for row in self.rows]
        for situation in sorted({repr(one) for one in situations if situations.count(one) > 1}):
            faults.append(
                f"(batch_size, context_length, category) must be given once, but {situation} has several rows"
            )
        for name in sorted(self._used - set(self.drafters)):
            faults.append(f"rows may use only the drafters {sorted(self.drafters)}, but got {name!r}")
        if faults:
            raise PolicyError("\n".join(faults))

    @property
    def _used(self) -> set[str]:
        """The drafters that the table uses."""
        return {name for row in self.rows for name in row.config.drafter_names}

    def choose(
        self, batch_size: int = 1, context_length: int | None = None, category: str | None = None
    ) -> SpecConfig:
        """Return the configuration for a situation: the most specific row that covers it, else speculation off.

        A row for batches of a size also serves smaller ones that have no row of their own. Such a batch lies between
        two sizes that were measured, and speculates only where both do: else it is off.

        Args:
            batch_size: Number of prompts decoded together.
            context_length: Tokens of context; None where it is not known: then no row with a length applies.
            category: Category of the request; None, or one the policy does not know, is served by the row for all.
        """
        row = self._row(batch_size, context_length, category)
        if row is None:
            return SpecConfig()
        if row.batch_size is not None and batch_size < row.batch_size:
            below = self._row_below(batch_size, context_length, category)
            if below is not None and below.config.is_off:
                return below.config
        return row.config

    def _row(self, batch_size: int, context_length: int | None, category: str | None) -> Row | None:
        """Return the most specific row that covers a situation."""
        covering = [row for row in self.rows if row.covers(batch_size, context_length, category)]
        return max(covering, key=lambda row: row.specificity, default=None)

    def _row_below(self, batch_size: int, context_length: int | None, category: str | None) -> Row | None:
        """Return the row of the largest size below this one; None where the table begins above it."""
        sizes = {row.batch_size for row in self.rows if row.batch_size is not None and row.batch_size < batch_size}
        for size in sorted(sizes, reverse=True):
            row = self._row(size, context_length, category)
            if row is not None and row.batch_size == size:
                return row
        return None

    def decoder(
        self,
        device: str = "auto",
        *,
        drafters: Mapping[str, Drafter] | None = None,
        allow_import: Collection[str] = (),
        trust_remote_code: bool = False,
        compile: bool | None = None,
    ) -> SpeculativeDecoder:
        """Return a decoder with the target, its tokenizer and those drafters loaded that the table uses.

        Warns where the decoder runs on another kind of device, or with more or fewer threads, than were measured.

        Args:
            device: `auto` takes CUDA where there is one.
            drafters: Objects to use in place of what the policy names, needed where it was tuned with objects.
            allow_import: Modules from which drafters `import:MODULE:FACTORY` may be made.
            trust_remote_code: Run Python code that comes with checkpoints; no policy can ask for that.
            compile: Compile the models, which needs a compiler here; None: as it was tuned.

        Raises:
            ModelError: A model cannot be loaded.
            PolicyError: A drafter was an object when the policy was tuned, and none is given for it.
            ConfigError: A drafter is to be imported from a module that is not allowed.
        """
        from autospec.engine.decoder import SpeculativeDecoder

        given = dict(drafters or {})
        self._check_objects(given)
        loaded = {
            name: given[name] if name in given else self._source(name, device, trust_remote_code)
            for name in sorted(self._used)
        }
        decoder = SpeculativeDecoder.from_pretrained(
            target=resolve_source(self.target.source),
            drafters=loaded,
            tokenizer=None if self.tokenizer is None else resolve_source(self.tokenizer.source),
            device=device,
            dtype=self.dtype,
            revision=self.target.revision,
            trust_remote_code=trust_remote_code,
            compile=self.compile if compile is None else compile,
            allow_import=allow_import,
        )
        decoder.costs = dict(self.costs)
        running = device_fingerprint(decoder.target.device, decoder.target.dtype)
        for difference in running_differences(self.device, running):
            warnings.warn(difference, AutospecWarning, stacklevel=2)
        return decoder

    def _source(self, name: str, device: str, trust_remote_code: bool) -> str | PreTrainedModel:
        """Return what a drafter is loaded from: where it lies, or a model where a revision of it was tuned."""
        from autospec.engine.model import load_model

        model = self.drafters[name]
        source = resolve_source(model.source)
        if model.revision is None:
            return source
        loaded: PreTrainedModel = load_model(
            source,
            device=device,
            dtype=self.dtype,
            revision=model.revision,
            trust_remote_code=trust_remote_code,
            keeps_model=True,
        ).model
        return loaded

    def _check_objects(self, given: Mapping[str, Drafter]) -> None:
        if unknown := sorted(set(given) - set(self.drafters)):
            raise PolicyError(f"drafters given must be among {sorted(self.drafters)} of the policy, but got {unknown}")
        objects = [name for name in sorted(self._used) if self.drafters[name].source.startswith(OBJECT_PREFIX)]
        if missing := [name for name in objects if name not in given]:
            raise PolicyError(
                f"drafters that were objects when the policy was tuned must be given, as "
                f"`policy.decoder(drafters={{{missing[0]!r}: ...}})`, but {missing} are not"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the document that `save` writes, schema version and checksum included."""
        content = {
            "schema_version": schema.SCHEMA_VERSION,
            "target": asdict(self.target),
            "drafters": {name: asdict(model) for name, model in self.drafters.items()},
            "tokenizer": self.tokenizer and asdict(self.tokenizer),
            "costs": {name: curve.to_json() for name, curve in sorted(self.costs.items())},
            "dtype": self.dtype,
            "compile": self.compile,
            "device": dict(self.device),
            "workload": {**asdict(self.workload), "categories": list(self.workload.categories)},
            "sampling": self.sampling.to_json(),
            "rows": [row.to_json() for row in self.rows],
            "reproduce": asdict(self.reproduce),
        }
        return {**content, "sha256": schema.checksum(content)}

    @classmethod
    def from_json(cls, document: Any) -> Policy:
        """Build from `to_json` of this or an older schema version.

        Raises:
            PolicyError: The document is malformed or was changed; all faults are listed.
        """
        values = schema.validate(document)
        return cls(
            target=ModelSource(**values["target"]),
            drafters={name: ModelSource(**model) for name, model in values["drafters"].items()},
            dtype=values["dtype"],
            compile=values["compile"],
            device=values["device"],
            workload=TunedWorkload.from_json(values["workload"]),
            sampling=SamplingParams.from_json(values["sampling"]),
            rows=tuple(Row.from_json(row) for row in values["rows"]),
            reproduce=Reproduction(**values["reproduce"]),
            tokenizer=values["tokenizer"] and ModelSource(**values["tokenizer"]),
            costs={name: CostCurve.from_json(curve) for name, curve in values["costs"].items()},
        )

    def save(self, path: str | Path) -> None:
        """Write the policy as JSON; a reader sees the old file or the new one, never a part.

        Raises:
            PolicyError: The file cannot be written, or the policy would not load again; all faults are listed.
        """
        document = self.to_json()
        schema.validate(document)
        write_atomically(Path(path), json.dumps(document, indent=2, allow_nan=False) + "\n")


def load_policy(path: str | Path, strict: bool = False) -> Policy:
    """Load a policy, and say where the machine or the models here are not those it was made for.

    A policy from before there were checksums gives an `AutospecWarning`: it cannot be verified.

    Args:
        path: A policy file of this or an older schema version.
        strict: Refuse a policy made for another device or model, where otherwise an `AutospecWarning` is given.

    Raises:
        PolicyError: The file cannot be read, is malformed, was changed or cut short; all faults are listed.
    """
    path = Path(path)
    try:
        policy = Policy.from_json(read_json(path))
    except PolicyError as error:
        raise PolicyError(f"{path} cannot be used as a policy:\n{error}") from error
    models = {"target": policy.target, **{f"drafter {name}": model for name, model in policy.drafters.items()}}
    tokenizer = {} if policy.tokenizer is None else {"tokenizer": policy.tokenizer}
    differences = [
        *model_differences(models),
        *model_differences(tokenizer, tokenizer_digest),
        *device_differences(policy.device),
    ]
    if differences and strict:
        raise PolicyError("\n".join([f"{path} must be made for this machine and these models:", *differences]))
    for difference in differences:
        warnings.warn(difference, AutospecWarning, stacklevel=2)
    return policy
