"""What may be tried: knobs, conditions and constraints from a YAML file -> `SpecConfig`.

A knob that does not apply keeps its default, so that equal configurations look equal. Knows no measurement.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import optuna
from optuna.distributions import BaseDistribution

from autospec.config import SamplingParams, SpecConfig
from autospec.errors import ConfigError
from autospec.paths import data_dir
from autospec.rules import ACCEPT_RULES
from autospec.tuning.grid import combinations, values_of
from autospec.tuning.knobs import DECODING, Choices, Constraint, Knob, Params, Range, Value
from autospec.tuning.space_file import drafter_rule, near, read_space
from autospec.tuning.trees import TreeMaker

MAX_COUNTED = 50_000
_MAX_DRAWS = 500
_DEFAULT_NODES = SpecConfig().tree_nodes


class SearchSpace:
    """The configurations a study may try.

    Args:
        knobs: In the order in which they are chosen; a condition refers to knobs before it.
        constraints: Expressions that must be true.
        name: For people.
        trees: What makes a tree of shape `optimal` out of `tree_nodes` and `draft_length`.

    Raises:
        ConfigError: Knobs and constraints leave nothing to try.
    """

    def __init__(
        self,
        knobs: Iterable[Knob],
        constraints: Iterable[Constraint] = (),
        name: str = "",
        trees: TreeMaker | None = None,
    ) -> None:
        self.knobs, self.constraints, self.name = tuple(knobs), tuple(constraints), name
        self._trees = trees or TreeMaker()
        if self.draw(np.random.default_rng(0)) is None and next(self.walk(), None) is None:
            raise ConfigError(self._why_empty())

    @classmethod
    def load(cls, path: str | Path, drafters: Collection[str] | None = None) -> Self:
        """Read a YAML file.

        Args:
            path: A file, or the name of one that ships with autospec, such as `chain`.
            drafters: Those that the decoder will have, where that is known: a space that names others is refused.

        Raises:
            ConfigError: There is no such file, or it is no search space; all faults with file, line and key.
        """
        file = _find(path)
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"a search space must be a readable text file, but {file}: {error}") from error
        return cls(*read_space(file, text, drafters), name=str(file))

    def under(self, sampling: SamplingParams) -> SearchSpace:
        """Return the space for these decoding settings: knobs that do not apply to them are gone.

        Raises:
            ConfigError: Nothing to try is left.
        """
        decoding = "greedy" if sampling.is_greedy else "sampling"
        kept: dict[str, Knob] = {}
        for knob in self.knobs:
            wanted = [condition for condition in knob.conditions if condition.knob == DECODING]
            others = tuple(condition for condition in knob.conditions if condition.knob != DECODING)
            if all(decoding in one.values for one in wanted) and all(one.knob in kept for one in others):
                kept[knob.name] = replace(knob, conditions=others)
        try:
            return SearchSpace(kept.values(), self.constraints, self.name, self._trees)
        except ConfigError as error:
            raise ConfigError([f"{fault} (under {decoding} decoding)" for fault in error.faults]) from error

    def with_trees(self, trees: TreeMaker) -> SearchSpace:
        """Return the space with optimal trees made by this; knobs and hash stay what they are."""
        return SearchSpace(self.knobs, self.constraints, self.name, trees)

    @property
    def has_optimal_trees(self) -> bool:
        """Whether trees are among what may be tried that are made for a drafter's recorded acceptance."""
        return any("optimal" in (knob.domain.grid() or ()) for knob in self.knobs if knob.name == "tree_shape")

    def check(self, drafters: Iterable[str], allow_lossy: bool = False) -> None:
        """Refuse a space whose drafters a decoder has not, and one with lossy rules where no loss was named.

        Raises:
            ConfigError: With the nearest names it has, and what lossy rules guarantee.
        """
        known = sorted(drafters)
        faults = [
            f"{self._place(knob.line)}`knobs.drafter.choices`: {drafter_rule(name, known)}"
            for knob in self.knobs
            if knob.name == "drafter" and isinstance(knob.domain, Choices)
            for name in dict.fromkeys(part for choice in knob.domain.values for part in str(choice).split("+"))
            if name not in known
        ]
        faults += [] if allow_lossy else self.lossy_faults()
        if faults:
            raise ConfigError(faults)

    def lossy_faults(self) -> list[str]:
        """Return a sentence where lossy rules may be tried."""
        found = [
            (knob, [str(name) for name in knob.domain.grid() or () if not ACCEPT_RULES[str(name)].is_lossless])
            for knob in self.knobs
            if knob.name == "accept_rule"
        ]
        return [
            f"{self._place(knob.line)}`knobs.accept_rule.choices`: a study must keep the target's output unless "
            f"quality.max_loss=NATS says how much may be lost, but {names} are lossy (what each guarantees says "
            "`ACCEPT_RULES` in autospec/rules.py)"
            for knob, names in found
            if names
        ]

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Knob to Optuna distribution, for every knob that can apply."""
        return {knob.name: knob.domain.distribution() for knob in self.knobs}

    @property
    def content_hash(self) -> str:
        """Sixteen hexadecimal digits of knobs and constraints; comments and the file's name do not count."""
        parts = {"knobs": [knob.to_json() for knob in self.knobs], "constraints": self._expressions()}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def suggest(self, trial: optuna.Trial) -> SpecConfig:
        """Let a trial choose a value for every knob that applies.

        Raises:
            ConfigError: The values break a constraint, or `SpecConfig` refuses them together.
        """
        params: Params = {}
        for knob in self.knobs:
            if knob.applies(params):
                params[knob.name] = knob.domain.suggest(trial, knob.name)
        return self.config(params)

    def config(self, params: Mapping[str, Value]) -> SpecConfig:
        """Return the configuration of these values.

        Raises:
            ConfigError: The values break a constraint, or `SpecConfig` refuses them together.
        """
        broken = [one.expression for one in self.constraints if not one.holds(params)]
        if broken:
            raise ConfigError([f"the constraint `{one}` must hold, but got {dict(params)}" for one in broken])
        values: dict[str, Any] = dict(params)
        for knob in self.knobs:
            if knob.name in values and isinstance(knob.domain, Range):
                values[knob.name] = knob.domain.clean(values[knob.name])
        if values.get("tree_shape") == "optimal" and "tree_paths" not in values:
            size = int(values.get("tree_nodes", _DEFAULT_NODES)), int(values.get("draft_length", 0))
            values["tree_paths"] = self._trees.paths(str(values.get("drafter")), *size) if size[1] else ()
        return SpecConfig(**values)

    def to_params(self, config: SpecConfig) -> Params | None:
        """Return the values that give this configuration; None where the space does not hold it."""
        params: Params = {}
        for knob in self.knobs:
            if knob.applies(params):
                value = self._value_of(knob, config)
                if not knob.domain.contains(value):
                    return None
                params[knob.name] = value
        built = self._try(params)
        return params if built == config else None

    def _value_of(self, knob: Knob, config: SpecConfig) -> Value:
        """Return the value of a knob that gives a configuration what it has."""
        if knob.name == "tree_paths":
            return _paths_choice(knob, config)
        if knob.name == "tree_nodes" and config.tree_shape == "optimal":
            return self._optimal_size(knob, config)
        return cast(Value, getattr(config, knob.name))

    def _optimal_size(self, knob: Knob, config: SpecConfig) -> Value:
        """Return for how many nodes a configuration's optimal tree was made: the fewest that make it."""
        for size in knob.domain.grid() or ():
            if self._trees.paths(config.drafter, int(size), config.draft_length) == config.tree_paths:
                return size
        return len(config.tree_paths)

    def contains(self, config: SpecConfig) -> bool:
        """Return whether the study could try this configuration."""
        return self.to_params(config) is not None

    def size(self) -> int | None:
        """Return how many distinct configurations there are; None for a continuum or over 50,000 combinations."""
        return len(set(self.walk())) if self._is_countable else None

    @cached_property  # a search asks whenever its sampler repeats itself
    def _is_countable(self) -> bool:
        if any(knob.domain.grid() is None for knob in self.knobs):
            return False
        return sum(1 for _ in islice(combinations(self.knobs, self.constraints), MAX_COUNTED + 1)) <= MAX_COUNTED

    def draw(self, rng: np.random.Generator) -> Params | None:
        """Return random values that break no constraint; None where they could not be found."""
        for _ in range(_MAX_DRAWS):
            params: Params = {}
            for knob in self.knobs:
                if knob.applies(params):
                    params[knob.name] = knob.domain.draw(rng)
            if self._try(params) is not None:
                return params
        return None

    def unseen(self, seen: Iterable[SpecConfig]) -> bool | None:
        """Return whether a configuration is left that is not in `seen`; None where they cannot be counted."""
        if not self._is_countable:
            return None
        known = set(seen)
        return any(config not in known for config in self.walk())

    def walk(self) -> Iterator[SpecConfig]:
        """Yield every configuration of a grid; a continuous knob stands at its lower end."""
        for params in combinations(self.knobs, self.constraints):
            config = self._try(params)
            if config is not None:
                yield config

    def _try(self, params: Mapping[str, Value]) -> SpecConfig | None:
        try:
            return self.config(params)
        except ConfigError:
            return None

    def _why_empty(self) -> str:
        if self.constraints:
            rule = f"constraints must leave something to try, but {self._expressions()} do not"
            return f"{self._place(self.constraints[0].line)}`constraints`: {rule}"
        params: Params = {}
        for knob in self.knobs:
            if knob.applies(params):
                params[knob.name] = values_of(knob)[0]
        faults: list[str] = []
        try:
            self.config(params)
        except ConfigError as error:
            faults = error.faults
        line = min((knob.line for knob in self.knobs), default=0)
        return f"{self._place(line)}`knobs`: knobs must leave something to try, but {'; '.join(faults)}"

    def _place(self, line: int) -> str:
        """Return file and line to put before a message, as far as they are known."""
        return "".join(f"{part}:" for part in (self.name, line or "") if part) + (" " if self.name or line else "")

    def _expressions(self) -> list[str]:
        return [constraint.expression for constraint in self.constraints]


def _find(path: str | Path) -> Path:
    """Return the file of a search space, given as a path or by the name of one that ships with autospec."""
    file = Path(path)
    if file.is_file():
        return file
    shipped = {one.stem: one for one in sorted(data_dir("search_spaces").glob("*.yaml"))}
    if str(path) in shipped:
        return shipped[str(path)]
    raise ConfigError(
        f"a search space must be a file or one of {list(shipped)}, but got {str(path)!r}{near(str(path), shipped)}"
    )


def _paths_choice(knob: Knob, config: SpecConfig) -> Value:
    """Return the text that gives a configuration its rank paths, of which those longer than a draft are cut off."""
    for text in knob.domain.grid() or ():
        changes: dict[str, Any] = {"tree_paths": text}
        if replace(config, **changes).tree_paths == config.tree_paths:
            return text
    return ""
