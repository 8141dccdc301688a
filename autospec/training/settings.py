"""What a pocket family is made of: the values of `conf/recipe/pocket.yaml` as frozen dataclasses.

Passive data with the rules that a wrong value breaks; knows no model and no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Self, get_type_hints

from autospec.errors import ConfigError

STAGES = ("corpus", "tokenizer", "workload", "trunk", "decay", "draft", "evaluate", "export")


@dataclass(frozen=True, slots=True)
class CorpusSettings:
    """Which text is taken.

    Args:
        packages: Distribution names; ``python`` stands for the standard library.
        held_out_share: Share of files never trained on.
        max_package_bytes: Most text taken from one package.
        edit_share: Edit documents made, as a share of the number of files.
        vocab_size: Tokens of the tokenizer.
    """

    packages: tuple[str, ...]
    held_out_share: float
    max_package_bytes: int
    edit_share: float
    vocab_size: int

    def faults(self) -> list[str]:
        """Return what is wrong, as messages."""
        faults = []
        if not self.packages:
            faults.append("`corpus.packages` must name at least one package, but it is empty")
        if not 0.0 < self.held_out_share < 1.0:
            faults.append(f"`0 < corpus.held_out_share < 1` must hold, but got {self.held_out_share}")
        if not 0.0 <= self.edit_share <= 1.0:
            faults.append(f"`0 <= corpus.edit_share <= 1` must hold, but got {self.edit_share}")
        if not 257 <= self.vocab_size <= 65_536:
            faults.append(f"`257 <= corpus.vocab_size <= 65536` must hold, but got {self.vocab_size}")
        return faults


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a Llama model."""

    num_layers: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    context_length: int
    tied_embeddings: bool

    def faults(self) -> list[str]:
        """Return what is wrong, as messages."""
        sizes = (self.num_layers, self.hidden_size, self.num_heads, self.intermediate_size, self.context_length)
        if min(sizes) < 1:
            return [f"sizes of a model must be at least 1, but got {self}"]
        if self.hidden_size % (2 * self.num_heads):
            return [f"`hidden_size` must be a multiple of 2 * `num_heads`, but got {self}"]
        return []


@dataclass(frozen=True, slots=True)
class TargetSettings:
    """How the target is trained: a trunk at constant rate, and a decay that branches off it.

    Args:
        shape: Its sizes.
        trunk_tokens: Where the trunk ends; an interrupted one goes on from its checkpoint.
        trunk_window: Tokens of a training window of the trunk; short ones train more tokens per second.
        decay_tokens: Length of the linear decay to zero.
        decay_window: Tokens of a window of the decay, so that the whole context is learnt.
        resume_from: Folder of an exported target. A trunk without a checkpoint goes on from its weights, with its
            tokenizer and fresh optimizers. Null: from nothing.
    """

    shape: ModelShape
    trunk_tokens: int
    trunk_window: int
    decay_tokens: int
    decay_window: int
    resume_from: str | None = None

    def faults(self) -> list[str]:
        """Return what is wrong, as messages."""
        faults = self.shape.faults()
        if self.resume_from is not None and not (Path(self.resume_from) / "training.json").is_file():
            faults.append(
                f"`target.resume_from` must be the folder of an exported target, but {self.resume_from!r} has no "
                "training.json"
            )
        return faults + [
            f"windows must be of 1 to {self.shape.context_length} tokens, but got {name}={window}"
            for name, window in (("trunk_window", self.trunk_window), ("decay_window", self.decay_window))
            if not 1 <= window <= self.shape.context_length
        ]


@dataclass(frozen=True, slots=True)
class DraftSettings:
    """How the draft is distilled from the target.

    Args:
        shape: Its sizes.
        tokens: Tokens seen, half of them corpus, half written by the target.
        generated_tokens: Tokens of text the target writes for it, prefixes included.
        window: Tokens of a corpus window.
        greedy_weight: Weight of the cross-entropy to the target's most probable token, beside the divergence.
    """

    shape: ModelShape
    tokens: int
    generated_tokens: int
    window: int
    greedy_weight: float

    def faults(self) -> list[str]:
        """Return what is wrong, as messages."""
        faults = self.shape.faults()
        if self.greedy_weight < 0.0:
            faults.append(f"`draft.greedy_weight >= 0` must hold, but got {self.greedy_weight}")
        return faults


@dataclass(frozen=True, slots=True)
class PocketRecipe:
    """A whole family, from text to exported weights.

    Args:
        corpus: Which text is taken.
        target: Shape and length of training of the target.
        draft: The same for the draft.
        stages: Which stages run, in the order of `STAGES`.
        prompts_per_split: Prompts of each category in each half of the workload.
        seed: Decides held-out files, order of windows, weights at the start, prompts.
        device: ``auto``, ``cpu`` or ``cuda``.
        compile: Whether losses are compiled; worth its minute from about a million tokens on.
        export_dir: Folder the finished family is put into. Null: in a checkout the place of the embedded family, where
            that can be written to, else `export` in the folder of results.

    Raises:
        ConfigError: A value cannot work; all faults are listed.
    """

    corpus: CorpusSettings
    target: TargetSettings
    draft: DraftSettings
    stages: tuple[str, ...] = STAGES
    prompts_per_split: int = 32
    seed: int = 0
    device: str = "auto"
    compile: bool = True
    export_dir: str | None = None

    def __post_init__(self) -> None:
        faults = self.corpus.faults() + self.target.faults() + self.draft.faults()
        if unknown := [stage for stage in self.stages if stage not in STAGES]:
            faults.append(f"`stages` must be among {list(STAGES)}, but got {unknown}")
        if self.device not in ("auto", "cpu", "cuda"):
            faults.append(f"`device` must be auto, cpu or cuda, but got {self.device!r}")
        if self.draft.shape.context_length != self.target.shape.context_length:
            faults.append("draft and target must have the same `context_length`")
        if faults:
            raise ConfigError(faults)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build from nested mappings, as YAML gives them; a missing or unknown name is a `ConfigError`."""
        recipe: Self = _build(cls, values, "recipe")
        return recipe


def _build(cls: type[Any], values: Any, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f"`{where}` must be a mapping, but got {values!r}")
    known = {field.name for field in fields(cls)}
    required = {field.name for field in fields(cls) if field.default is MISSING}
    faults = [f"`{where}` has no `{name}`; it takes {sorted(known)}" for name in sorted(set(values) - known)]
    faults += [f"`{where}` needs `{name}`, but it is missing" for name in sorted(required - set(values))]
    if faults:
        raise ConfigError(faults)
    hints, arguments = get_type_hints(cls), {}
    for name, value in values.items():
        if is_dataclass(hints[name]):
            value = _build(hints[name], value, f"{where}.{name}")
        arguments[name] = _checked(value, hints[name], f"{where}.{name}")
    return cls(**arguments)


def _checked(value: Any, hint: Any, where: str) -> Any:
    """Return the value as the field's type; sequences become tuples of strings, whole numbers floats."""
    if hint == tuple[str, ...]:
        if isinstance(value, str) or not all(isinstance(one, str) for one in value):
            raise ConfigError(f"`{where}` must be a list of names, but got {value!r}")
        return tuple(value)
    if hint == str | None:
        if value is not None and not isinstance(value, str):
            raise ConfigError(f"`{where}` must be a string or null, but got {value!r}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"`{where}` must be of type {hint.__name__}, but got {value!r}")
    return value
