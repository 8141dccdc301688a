"""The thing that is tuned (`SpecConfig`) and how tokens are sampled (`SamplingParams`).

Frozen dataclasses of primitives; they know no model, engine or file. A field has the same name in YAML, Optuna,
MLflow and policy files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from autospec.errors import ConfigError

STOP_RULES = ("static", "confidence", "heuristic")
ACCEPT_RULES = ("exact", "rejection", "block")
MAX_DRAFT_LENGTH = 64


def _check_types(instance: Any) -> list[str]:
    """Return a fault for every field whose value is not of the declared primitive type; make floats of numbers."""
    allowed = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}
    faults = []
    for field in fields(instance):
        value = getattr(instance, field.name)
        wrong_bool = isinstance(value, bool) and field.type != "bool"
        if wrong_bool or not isinstance(value, allowed[str(field.type)]):
            faults.append(f"`{field.name}` must be of type {field.type}, but got {value!r}")
        elif field.type == "float":
            # 1 and 1.0, 0.0 and -0.0 are equal, so they must have one JSON form and one hash.
            object.__setattr__(instance, field.name, float(value) + 0.0)
    return faults


def _from_mapping(cls: type[Any], values: Mapping[str, Any]) -> Any:
    """Build a dataclass of defaults from a mapping, refusing names it does not have."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{cls.__name__} must be a mapping of names to values, but got {values!r}")
    known = [field.name for field in fields(cls)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ConfigError(f"{cls.__name__} takes only {known}, but got {unknown}")
    return cls(**values)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen; applied to target and drafter alike.

    Args:
        temperature: 0 is greedy decoding.
        top_p: Smallest set of tokens whose probability reaches `top_p`; 1 keeps all.
        top_k: Number of most probable tokens kept; 0 keeps all.
        seed: Seed of the first prompt of a call; prompt number i uses `seed + i`.

    Raises:
        ConfigError: A value is out of range; all faults are listed.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        faults = _check_types(self)
        if not faults:
            if not 0.0 <= self.temperature <= 100.0:
                faults.append(f"`0 <= temperature <= 100` must hold, but got {self.temperature}")
            if not 0.0 < self.top_p <= 1.0:
                faults.append(f"`0 < top_p <= 1` must hold, but got {self.top_p}")
            if self.top_k < 0:
                faults.append(f"`top_k >= 0` must hold, but got {self.top_k}")
            if self.seed < 0:
                faults.append(f"`seed >= 0` must hold, but got {self.seed}")
        if faults:
            raise ConfigError(faults)

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature == 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Build from `to_json`; an unknown name is a `ConfigError`."""
        params: Self = _from_mapping(cls, values)
        return params


@dataclass(frozen=True, slots=True)
class SpecConfig:
    """One way to speculate; `SpecConfig()` is speculation off.

    Args:
        drafter: Name under which the decoder knows the drafter; empty when speculation is off.
        draft_length: Most draft tokens along one path (gamma); 0 turns speculation off.
        stop_rule: When drafting ends before `draft_length`: `static` never, `confidence` after a token whose draft
            probability is below `stop_threshold`, `heuristic` at a length that grows by 2 when a whole draft was
            accepted and shrinks by 1 otherwise (methods: Hugging Face assisted generation).
        stop_threshold: Probability in [0, 1] for `confidence`.
        draft_length_start: Length of the first draft under `heuristic`.
        accept_rule: `exact` (sample the target and match), `rejection` (2211.17192), `block` (2403.10444). Under
            greedy decoding all three accept the same tokens.
        ngram_min: Shortest suffix the n-gram drafter looks up.
        ngram_max: Longest suffix the n-gram drafter looks up.

    Raises:
        ConfigError: A name is not known or a combination cannot work; all faults are listed.
    """

    drafter: str = ""
    draft_length: int = 0
    stop_rule: str = "static"
    stop_threshold: float = 0.4
    draft_length_start: int = 4
    accept_rule: str = "exact"
    ngram_min: int = 1
    ngram_max: int = 3

    def __post_init__(self) -> None:
        faults = _check_types(self) or self._faults()
        if faults:
            raise ConfigError(faults)
        self._forget_idle_knobs()

    def _forget_idle_knobs(self) -> None:
        """Set what has no effect to its default, so that equal behaviour is one configuration with one hash."""
        idle = {"stop_threshold": self.stop_rule != "confidence", "draft_length_start": self.stop_rule != "heuristic"}
        for field in fields(self):
            if self.is_off or idle.get(field.name, False):
                object.__setattr__(self, field.name, field.default)

    def _faults(self) -> list[str]:
        faults = []
        if not 0 <= self.draft_length <= MAX_DRAFT_LENGTH:
            faults.append(f"`0 <= draft_length <= {MAX_DRAFT_LENGTH}` must hold, but got {self.draft_length}")
        if self.draft_length > 0 and not self.drafter:
            faults.append(f"a draft needs a drafter, but got drafter='' with draft_length={self.draft_length}")
        if self.stop_rule not in STOP_RULES:
            faults.append(f"`stop_rule` must be one of {list(STOP_RULES)}, but got {self.stop_rule!r}")
        if not 0.0 <= self.stop_threshold <= 1.0:
            faults.append(f"`0 <= stop_threshold <= 1` must hold, but got {self.stop_threshold}")
        if not 1 <= self.draft_length_start <= MAX_DRAFT_LENGTH:
            faults.append(f"`1 <= draft_length_start <= {MAX_DRAFT_LENGTH}` must hold, got {self.draft_length_start}")
        if self.accept_rule not in ACCEPT_RULES:
            faults.append(f"`accept_rule` must be one of {list(ACCEPT_RULES)}, but got {self.accept_rule!r}")
        if not 1 <= self.ngram_min <= self.ngram_max:
            faults.append(f"`1 <= ngram_min <= ngram_max` must hold, but got {self.ngram_min} and {self.ngram_max}")
        return faults

    @property
    def is_off(self) -> bool:
        """Whether this is plain decoding."""
        return self.draft_length == 0

    def to_json(self) -> dict[str, Any]:
        """Return the fields that differ from speculation off, so that later fields do not change old hashes."""
        if self.is_off:
            return {"draft_length": 0}
        defaults = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in asdict(self).items() if value != defaults[name]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Build from `to_json`; an unknown name is a `ConfigError`."""
        config: Self = _from_mapping(cls, values)
        return config

    @property
    def config_hash(self) -> str:
        """Twelve hexadecimal digits of the canonical JSON form."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def short(self) -> str:
        """Return a form for a line of a terminal, such as ``draft x4 confidence 0.40 exact``."""
        if self.is_off:
            return "off"
        words = [f"{self.drafter} x{self.draft_length}"]
        if self.drafter == "ngram":
            words.append(f"n{self.ngram_min}-{self.ngram_max}")
        if self.stop_rule == "confidence":
            words.append(f"confidence {self.stop_threshold:.2f}")
        if self.stop_rule == "heuristic":
            words.append(f"heuristic from {self.draft_length_start}")
        return " ".join([*words, self.accept_rule])
