"""The thing that is tuned (`SpecConfig`) and how tokens are sampled (`SamplingParams`).

Frozen dataclasses of primitives; they know no model, engine or file. A field has the same name in YAML, Optuna,
MLflow and policy files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from typing import Any, Self

from autospec.combinations import combination_faults, name_faults
from autospec.errors import ConfigError
from autospec.fields import Paths, check_types, from_mapping
from autospec.rules import ACCEPT_RULES, idle_accept_knobs

MAX_DRAFT_LENGTH = 64
MAX_TREE_NODES = 512
MAX_SUFFIX_DEPTH = 64
MAX_LOOKAHEAD_WINDOW = 256


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
        faults = check_types(self)
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
        params: Self = from_mapping(cls, values)
        return params


@dataclass(frozen=True, slots=True)
class SpecConfig:
    """One way to speculate; `SpecConfig()` is speculation off.

    Args:
        drafter: Name under which the decoder knows the drafter, or several, as in `a+b`; empty when speculation is
            off.
        draft_length: Most draft tokens along one path (gamma); 0 turns speculation off.
        tree_shape: How drafts are held; see `autospec.rules.TREE_SHAPES`.
        tree_width: Children of a node, and nodes kept at each depth of a `beam`, at most.
        tree_nodes: Nodes of one draft, at most, in shapes that are cut to a budget.
        tree_paths: Of `static` and `optimal` trees, a path of ranks from the root to every node: (0,) is the most
            probable first token, (0, 1) the second most probable behind it. Paths longer than `draft_length` are cut
            off.
        stop_rule: When drafting ends before `draft_length`: `static` never; `confidence` after a token whose draft
            probability is below `stop_threshold`; `entropy` after a token that was drawn where the drafter was
            unsure; `cumulative` where the probability of the whole path falls below `stop_threshold`; `adaptive` as
            `confidence` with a threshold that follows what was accepted (2309.08168); `heuristic` at a length that
            grows by 2 when a whole draft was accepted and shrinks by 1 otherwise (assisted generation in
            transformers); `cost_aware` when another token would cost more time than it is likely to save.
        stop_threshold: In [0, 1], for `confidence`, `entropy`, `cumulative`; where `adaptive` begins.
        entropy_form: `svip` (2411.18462) stops above a root of the entropy, `adaedl` (2410.18351) below a bound of
            the acceptance that the entropy gives.
        entropy_scale: c_H of `adaedl`.
        adaptive_goal: Acceptance that `adaptive` steers to.
        draft_length_start: Length of the first draft under `heuristic`.
        accept_rule: Which drafted tokens are kept; see `autospec.rules.ACCEPT_RULES`. Under greedy decoding all
            lossless rules keep the same tokens. A lossy rule is used only where it is asked for.
        lookahead_window: Of `lookahead`, W: guesses in a window, and tokens of the text between two windows.
        lookahead_ngram: Of `lookahead`, N: tokens of an n-gram; N - 1 of them are drafted.
        accept_threshold: Of `typical` (published: 0.09), `lenient`, `margin` (0.9) and `contrastive` (0.1); see
            `autospec.rules.ACCEPT_RULES`. In [0, 1], larger is stricter.
        accept_delta: Of `typical` (0.3; larger is stricter), `relaxed` (0.6; larger is looser) and `contrastive` (0.5;
            how far the target is sharpened). In [0, 1].
        accept_top: Of `relaxed` (10): the most tokens of one position that may be kept.
        with_replacement: Whether siblings that are drawn may be the same token.
        draft_temperature: Temperature of the drafter, 0 its most probable tokens; -1 that of the target. Without
            effect under greedy decoding, where the drafter is greedy too.
        ngram_min: Shortest suffix the n-gram drafter looks up.
        ngram_max: Longest suffix the n-gram drafter looks up.
        exit_layer: Of a target that drafts itself, how many of its first layers do; 0 is a half of them.
        combine: What several drafters do: `fallback` takes the draft of the first that has one, `merge` puts the
            drafts of all into one trie.
        suffix_factor: Tokens the suffix drafter may draft for each token of the suffix that it found.
        suffix_min_prob: Share of earlier continuations below which it drafts no path.
        suffix_depth: Longest suffix it looks up.

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
    tree_shape: str = "chain"
    tree_width: int = 2
    tree_nodes: int = 16
    tree_paths: Paths = ()
    entropy_form: str = "svip"
    entropy_scale: float = 0.2
    adaptive_goal: float = 0.9
    exit_layer: int = 0
    combine: str = "fallback"
    suffix_factor: float = 1.0
    suffix_min_prob: float = 0.1
    suffix_depth: int = 24
    lookahead_window: int = 15
    lookahead_ngram: int = 5
    accept_threshold: float = 0.5
    accept_delta: float = 0.3
    accept_top: int = 2
    with_replacement: bool = False
    draft_temperature: float = -1.0

    def __post_init__(self) -> None:
        faults = check_types(self) or self._faults()
        if faults:
            raise ConfigError(faults)
        self._forget_idle_knobs()

    def _forget_idle_knobs(self) -> None:
        """Set what has no effect to its default, so that equal behaviour is one configuration with one hash."""
        is_ranked = self.tree_shape in ("static", "optimal")
        is_grown = self.tree_shape in ("beam", "best_first", "trie")
        reads_threshold = self.stop_rule in ("confidence", "entropy", "cumulative", "adaptive")
        idle = {
            "stop_threshold": not reads_threshold,
            "draft_length_start": self.stop_rule != "heuristic",
            "entropy_form": self.stop_rule != "entropy",
            "entropy_scale": self.stop_rule != "entropy" or self.entropy_form != "adaedl",
            "adaptive_goal": self.stop_rule != "adaptive",
            "combine": len(self.drafter_names) < 2,
            "tree_width": not is_grown,
            "tree_nodes": not is_grown,
            "tree_paths": not is_ranked,
            "with_replacement": self.draft_temperature == 0.0,
        } | dict.fromkeys(idle_accept_knobs(self.accept_rule, self.tree_shape), True)
        paths = tuple(path for path in self.tree_paths if len(path) <= self.draft_length)
        object.__setattr__(self, "tree_paths", paths)
        for field in fields(self):
            if self.is_off or idle.get(field.name, False):
                object.__setattr__(self, field.name, field.default)

    def _faults(self) -> list[str]:
        return [*self._range_faults(), *name_faults(self), *combination_faults(self, MAX_TREE_NODES)]

    def _range_faults(self) -> list[str]:
        faults = []
        if self.draft_length > 0 and not self.drafter:
            faults.append(f"a draft needs a drafter, but got drafter='' with draft_length={self.draft_length}")
        for name, low, high in (
            ("draft_length", 0, MAX_DRAFT_LENGTH),
            ("stop_threshold", 0, 1),
            ("draft_length_start", 1, MAX_DRAFT_LENGTH),
            ("tree_width", 1, MAX_TREE_NODES),
            ("tree_nodes", 1, MAX_TREE_NODES),
            ("entropy_scale", 0, 100),
            ("adaptive_goal", 0, 1),
            ("exit_layer", 0, 1 << 16),
            ("suffix_factor", 0, MAX_DRAFT_LENGTH),
            ("suffix_min_prob", 0, 1),
            ("suffix_depth", 1, MAX_SUFFIX_DEPTH),
            ("lookahead_window", 2, MAX_LOOKAHEAD_WINDOW),
            ("lookahead_ngram", 2, MAX_DRAFT_LENGTH + 1),
            ("accept_threshold", 0, 1),
            ("accept_delta", 0, 1),
            ("accept_top", 1, MAX_TREE_NODES),
        ):
            if not low <= getattr(self, name) <= high:
                faults.append(f"`{low} <= {name} <= {high}` must hold, but got {getattr(self, name)}")
        if not (self.draft_temperature == -1.0 or 0.0 <= self.draft_temperature <= 100.0):
            faults.append(
                f"`0 <= draft_temperature <= 100` must hold, or -1 for the target's, but got {self.draft_temperature}"
            )
        if not 1 <= self.ngram_min <= self.ngram_max:
            faults.append(f"`1 <= ngram_min <= ngram_max` must hold, but got {self.ngram_min} and {self.ngram_max}")
        return faults

    @property
    def is_off(self) -> bool:
        """Whether this is plain decoding."""
        return self.draft_length == 0

    @property
    def drafter_names(self) -> tuple[str, ...]:
        """The drafters that are used, in order; none when speculation is off."""
        return () if self.is_off else tuple(self.drafter.split("+"))

    def draft_sampling(self, sampling: SamplingParams) -> SamplingParams:
        """Return how the drafter samples where the target samples so."""
        if sampling.is_greedy or self.draft_temperature < 0.0:
            return sampling
        return replace(sampling, temperature=self.draft_temperature)

    def to_json(self) -> dict[str, Any]:
        """Return the fields that differ from speculation off, so that later fields do not change old hashes."""
        if self.is_off:
            return {"draft_length": 0}
        defaults = {field.name: field.default for field in fields(self)}
        changed = {name: value for name, value in asdict(self).items() if value != defaults[name]}
        if self.tree_paths:
            changed["tree_paths"] = [list(path) for path in self.tree_paths]
        return changed

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Build from `to_json`; an unknown name is a `ConfigError`."""
        config: Self = from_mapping(cls, values)
        return config

    @property
    def config_hash(self) -> str:
        """Twelve hexadecimal digits of the canonical JSON form."""
        return _hash_of(self)

    def short(self) -> str:
        """Return a form for a line of a terminal, such as ``draft x4 confidence 0.40 exact``."""
        if self.is_off:
            return "off"
        words = [f"{self.drafter} x{self.draft_length}", *self._drafter_words(), *self._stop_words()]
        words.append(self.accept_rule)
        for knob in ACCEPT_RULES[self.accept_rule].knobs:
            value = getattr(self, knob)
            words += ["replaced"] * value if isinstance(value, bool) else [f"{value:g}"]
        return " ".join(words + [f"drawn at {self.draft_temperature:g}"] * (self.draft_temperature >= 0.0))

    def _drafter_words(self) -> list[str]:
        words = [self.combine] * (len(self.drafter_names) > 1)
        if "ngram" in self.drafter_names:
            words.append(f"n{self.ngram_min}-{self.ngram_max}")
        if self.exit_layer:
            words.append(f"exit {self.exit_layer}")
        if "suffix" in self.drafter_names:
            words.append(f"s{self.suffix_depth} {self.suffix_factor:g} {self.suffix_min_prob:g}")
        if "lookahead" in self.drafter_names:
            words.append(f"w{self.lookahead_window} n{self.lookahead_ngram}")
        if self.tree_paths:
            words.append(f"{self.tree_shape} {len(self.tree_paths)}")
        elif self.tree_shape != "chain":
            words.append(f"{self.tree_shape} {self.tree_width}/{self.tree_nodes}")
        return words

    def _stop_words(self) -> list[str]:
        if self.stop_rule == "static":
            return []
        if self.stop_rule == "heuristic":
            return [f"heuristic from {self.draft_length_start}"]
        name = self.entropy_form if self.stop_rule == "entropy" else self.stop_rule
        return [name] + [f"{self.stop_threshold:.2f}"] * (self.stop_rule != "cost_aware")


@lru_cache(maxsize=1 << 14)  # a study asks for the same ones again and again, and equal ones have one JSON form
def _hash_of(config: SpecConfig) -> str:
    text = json.dumps(config.to_json(), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
