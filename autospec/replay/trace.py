"""A trace: what the target wrote, what it thought there, and what each drafter would have drafted at every position.

Tensors in safetensors, the rest in JSON beside them; opened as a memory map, named by its content. Knows no model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from autospec.config import SamplingParams, SpecConfig
from autospec.errors import ReplayError, ReplayMiss
from autospec.files import FileKind
from autospec.replay.forest import Draft, DraftForest, DraftStore, Drawn, Floats, Ints, Rows

SCHEMA_VERSION = 2
TENSORS, HEADER = "trace.safetensors", "trace.json"
_ROWS, _LINKS = ("tokens", "logprobs", "entropies"), ("children", "parents", "ranks", "caps")
_DTYPES = {"I32": np.dtype("<i4"), "F32": np.dtype("<f4")}


@dataclass(frozen=True, slots=True)
class TracePrompt:
    """One recorded text.

    Args:
        prompt_id: Unique within the trace.
        category: Of the workload.
        seed: It was sampled with.
        num_prompt: Tokens of the rendered prompt.
        num_new: Tokens the target wrote, an end-of-text token not ending them.
    """

    prompt_id: str
    category: str
    seed: int
    num_prompt: int
    num_new: int


@dataclass(frozen=True)
class Trace:
    """What was recorded.

    A position is a place in an output where a step can begin: behind the first token, which comes from the prefill,
    and behind every later one but the last. Positions of all prompts are numbered through.

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

    @cached_property
    def text_starts(self) -> NDArray[np.int64]:
        """Where each text begins, and where the last one ends: [prompts + 1]."""
        return np.cumsum([0, *(prompt.num_prompt + prompt.num_new for prompt in self.prompts)])

    @cached_property
    def position_starts(self) -> NDArray[np.int64]:
        """Each prompt's first position, and the number of all: [prompts + 1]."""
        return np.cumsum([0, *(prompt.num_new - 1 for prompt in self.prompts)])

    @property
    def num_positions(self) -> int:
        """Number of all positions."""
        return int(self.position_starts[-1])

    @cached_property
    def prompt_of(self) -> NDArray[np.int64]:
        """Which prompt each position belongs to: [positions]."""
        return np.repeat(np.arange(len(self.prompts)), np.diff(self.position_starts))

    @cached_property
    def contexts(self) -> NDArray[np.int64]:
        """Tokens of the text before each position: [positions]."""
        within = np.arange(self.num_positions) - self.position_starts[self.prompt_of]
        return within + 1 + np.array([prompt.num_prompt for prompt in self.prompts], dtype=np.int64)[self.prompt_of]

    @cached_property
    def next_tokens(self) -> Ints:
        """What the target wrote at each position: [positions]."""
        return np.asarray(self.text[self.text_starts[self.prompt_of] + self.contexts])

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

    def left(self, max_new_tokens: int | None = None) -> NDArray[np.int64]:
        """Return how many tokens remain to be written at each position, 0 or fewer behind the end: [positions].

        Raises:
            ReplayError: More tokens than were recorded.
        """
        lengths = np.array([prompt.num_new for prompt in self.prompts], dtype=np.int64)
        if max_new_tokens is not None:
            if max_new_tokens > lengths.min(initial=max_new_tokens):
                raise ReplayError(
                    f"`max_new_tokens` must be at most what was recorded, {lengths.min()}, but got {max_new_tokens}"
                )
            lengths[:] = max_new_tokens
        emitted = np.arange(self.num_positions) - self.position_starts[self.prompt_of] + 1
        return np.asarray(lengths[self.prompt_of] - emitted)

    def prompt_ids(self, row: int) -> list[int]:
        """Return the tokens of a prompt."""
        start = int(self.text_starts[row])
        return self._ids[start : start + self.prompts[row].num_prompt]

    def output_ids(self, row: int) -> list[int]:
        """Return what the target wrote."""
        start, end = int(self.text_starts[row]) + self.prompts[row].num_prompt, int(self.text_starts[row + 1])
        return self._ids[start:end]

    @cached_property
    def _ids(self) -> list[int]:
        ids: list[int] = self.text.tolist()
        return ids

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
        try:
            own.mkdir(parents=True, exist_ok=True)
            if not (own / HEADER).exists():
                save_file({name: np.ascontiguousarray(array) for name, array in self.tensors.items()}, own / TENSORS)
                values = {**self.header, "content_hash": own.name, "seconds": self.seconds}
                # Last, and whole or not at all: a folder with a header is a trace.
                FileKind("a trace", ReplayError).write(own / HEADER, json.dumps(values, indent=1) + "\n")
        except OSError as error:
            raise ReplayError(f"a trace must go where files can be written, but: {error}") from error
        return own

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Open what `save` wrote; the arrays are mapped, not read.

        Raises:
            ReplayError: It cannot be read, is of another version, or is not what its name says.
        """
        path = Path(folder)
        try:
            values = json.loads((path / HEADER).read_text(encoding="utf-8"))
            version = values["schema_version"]
            if version != SCHEMA_VERSION:
                raise ReplayError(
                    f"a trace must be of version {SCHEMA_VERSION}, but `{path}` is of {version}: "
                    "a guided `tune` records another"
                )
            trace = cls._of(values, _mapped(path / TENSORS))
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


def _mapped(path: Path) -> dict[str, NDArray[Any]]:
    """Map the arrays of a safetensors file: eight bytes with the header's length, a JSON header, then the data."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    # As plain arrays over the map, whose elements are read several times as fast.
    data = np.asarray(np.memmap(path, dtype=np.uint8, mode="r", offset=8 + length))
    arrays = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            if end > data.size:
                raise ValueError(f"`{path.name}` was cut short")
            arrays[name] = data[start:end].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return arrays
