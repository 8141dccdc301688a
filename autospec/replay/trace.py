"""A trace: what the target wrote, what it thought there, and what each drafter would have drafted at every position.

Named by its content; its files are those of `autospec.replay.storing`. Knows no model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from autospec.config import SamplingParams, SpecConfig
from autospec.errors import ReplayError, ReplayMiss
from autospec.replay.forest import Draft, DraftForest, DraftStore, Drawn, Floats, Ints, Rows
from autospec.replay.storing import TraceFolder
from autospec.replay.texts import Texts, TracePrompt

SCHEMA_VERSION = 2
_ROWS, _LINKS = ("tokens", "logprobs", "entropies"), ("children", "parents", "ranks", "caps")


@dataclass(frozen=True)
class Trace(Texts):
    """What was recorded.

    Args:
        target: Name of the target.
        sampling: Decoding settings; its seed does not count.
        prompts: In order.
        text: [tokens] prompts and outputs, one behind the other.
        top_tokens: [tokens, 8] the target's best candidates behind every token of the text.
        top_logprobs: [tokens, 8] their log-probabilities, unfiltered.
        eos_token_ids: Of the target.
        sources: Name of a drafter to its source.
        forests: Name of a drafter, with its exit where it has several, to what it would draft.
        drawn: The same to what it draws, under sampling.
        drafts: Name of a drafter that shows no probabilities, with a hash of its knobs, to what it drafted.
        windows: Size of a window of lookahead decoding to what those of all texts hold behind their first tokens:
            [windows, size, tokens]; see `autospec.replay.windowing`.
        target_probs: [positions] that the target gave what it wrote, in the filters of sampling.
        default_exit: With how many of its layers the target drafts where `exit_layer` is 0.
        seconds: Phase to what recording took.
    """

    target: str
    sampling: SamplingParams
    prompts: tuple[TracePrompt, ...]
    text: Ints
    top_tokens: Ints
    top_logprobs: NDArray[np.float32]
    eos_token_ids: tuple[int, ...] = ()
    sources: dict[str, str] = field(default_factory=dict)
    forests: dict[str, DraftForest] = field(default_factory=dict)
    drawn: dict[str, Drawn] = field(default_factory=dict)
    drafts: dict[str, DraftStore] = field(default_factory=dict)
    windows: dict[int, Ints] = field(default_factory=dict)
    target_probs: Floats = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    default_exit: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def key_of(self, drafter: str, exit_layer: int = 0, temperature: float = -1.0) -> str | None:
        """Return under which name a drafter was recorded; None where no draft of it was.

        Args:
            drafter: Its name in configurations, or already such a name.
            exit_layer: Of a target that drafts itself; 0 is its default.
            temperature: Of the drafter, `draft_temperature`; without effect under greedy decoding.

        Raises:
            ReplayMiss: It was recorded with other exits or temperatures.
        """
        if drafter in self.forests:
            base = drafter
        elif exits := [key for key in self.forests if "@" in key and key.partition("@")[0] == drafter]:
            base = f"{drafter}@{exit_layer or self.default_exit}"
            if base not in exits:
                raise ReplayMiss(f"`exit_layer` of {drafter!r} must be one that was recorded, {exits}, not {base!r}")
        else:
            return None
        if self.sampling.is_greedy or temperature < 0.0:
            return base
        key = f"{base}~{temperature:g}"
        if key not in self.forests:
            raise ReplayMiss(
                f"`draft_temperature` of {drafter!r} must be one that was recorded, but got {temperature}"
            )
        return key

    def stored(self, config: SpecConfig) -> dict[tuple[int, int], Draft]:
        """Return the drafts of a drafter that shows no probabilities, to read and to add to: (position, limit) to it.

        Args:
            config: Of the drafter; what has no effect on a draft does not count.
        """
        stop_rule = "static" if config.stop_rule == "heuristic" else config.stop_rule
        knobs = replace(config, accept_rule="exact", stop_rule=stop_rule)
        key = f"{config.drafter}#{knobs.config_hash}"
        return self.drafts.setdefault(key, DraftStore(knobs)).drafts

    @property
    def tensors(self) -> dict[str, NDArray[Any]]:
        """All arrays by the name under which they are stored."""
        found: dict[str, NDArray[Any]] = {
            "text": self.text,
            "top_tokens": self.top_tokens,
            "top_logprobs": self.top_logprobs,
            "target_probs": self.target_probs,
        }
        found |= {f"windows/{size}": array for size, array in self.windows.items()}
        for name, drawn in self.drawn.items():
            found |= {f"{name}/drawn/{part.name}": getattr(drawn, part.name) for part in fields(drawn)}
        for name, store in self.drafts.items():
            found |= {f"{name}/drafts/{part}": array for part, array in store.tensors.items()}
        for name, forest in self.forests.items():
            found |= {f"{name}/{part}": getattr(forest.rows, part) for part in _ROWS}
            found |= {f"{name}/{part}": getattr(forest, part) for part in _LINKS}
        return found

    @property
    def num_bytes(self) -> int:
        """Size of all arrays."""
        return sum(array.nbytes for array in self.tensors.values())

    @property
    def header(self) -> dict[str, Any]:
        """Everything but the arrays, as JSON values."""
        return {
            "schema_version": SCHEMA_VERSION,
            "target": self.target,
            "sampling": self.sampling.to_json(),
            "prompts": [asdict(prompt) for prompt in self.prompts],
            "eos_token_ids": list(self.eos_token_ids),
            "sources": self.sources,
            "default_exit": self.default_exit,
            "forests": sorted(self.forests),
            "drawn": sorted(self.drawn),
            "windows": sorted(self.windows),
            "drafts": {name: store.config.to_json() for name, store in sorted(self.drafts.items())},
        }

    @property
    def content_hash(self) -> str:
        """Sixteen hexadecimal digits of all that was recorded; what recording took does not count."""
        digest = hashlib.sha256(json.dumps(self.header, sort_keys=True).encode())
        for name, array in sorted(self.tensors.items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    def save(self, folder: str | Path) -> Path:
        """Write it below a folder, under its content's hash; what is there already is left as it is.

        Returns:
            The folder of the trace itself.

        Raises:
            ReplayError: It cannot be written.
        """
        own = Path(folder) / self.content_hash
        values = {**self.header, "content_hash": own.name, "seconds": self.seconds}
        TraceFolder(own).write(values, self.tensors)
        return own

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Open what `save` wrote; the arrays are mapped, not read.

        Raises:
            ReplayError: It cannot be read, is of another version, or is not what its name says.
        """
        path = Path(folder)
        try:
            values = TraceFolder(path).header()
            version = values["schema_version"]
            if version != SCHEMA_VERSION:
                raise ReplayError(
                    f"a trace must be of version {SCHEMA_VERSION}, but `{path}` is of {version}: "
                    "a guided `tune` records another"
                )
            trace = cls._of(values, TraceFolder(path).arrays())
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ReplayError(f"a trace must be a folder that was recorded whole, but `{path}`: {error}") from error
        if trace.content_hash != values["content_hash"]:
            raise ReplayError(f"a trace must hold what its hash says, but `{path}` was changed")
        return trace

    @classmethod
    def _of(cls, values: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Self:
        forests = {}
        for name in values["forests"]:
            rows = Rows(*(arrays[f"{name}/{part}"] for part in _ROWS))
            forests[name] = DraftForest(rows, *(arrays[f"{name}/{part}"] for part in _LINKS))
        drawn = {
            name: Drawn(*(arrays[f"{name}/drawn/{part.name}"] for part in fields(Drawn))) for name in values["drawn"]
        }
        drafts = {}
        for name, config in values["drafts"].items():
            parts = (arrays[f"{name}/drafts/{part}"] for part in ("places", "tokens", "parents"))
            drafts[name] = DraftStore.of(SpecConfig.from_json(config), *parts)
        return cls(
            target=values["target"],
            sampling=SamplingParams.from_json(values["sampling"]),
            prompts=tuple(TracePrompt(**prompt) for prompt in values["prompts"]),
            text=arrays["text"],
            top_tokens=arrays["top_tokens"],
            top_logprobs=arrays["top_logprobs"],
            eos_token_ids=tuple(values["eos_token_ids"]),
            sources=dict(values["sources"]),
            forests=forests,
            drawn=drawn,
            drafts=drafts,
            windows={size: arrays[f"windows/{size}"] for size in values["windows"]},
            target_probs=arrays["target_probs"],
            default_exit=values["default_exit"],
            seconds=dict(values["seconds"]),
        )
