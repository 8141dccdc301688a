"""One knob of a search space: its values, when it applies, and constraints over several knobs.

A knob is named after the `SpecConfig` field it sets. Knows no file; of Optuna only the form
of a distribution, and a trial that is asked for a value.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import CodeType
from typing import Any, cast

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

Value = str | int | float | bool
Params = dict[str, Value]

DECODING = "decoding"  # not a knob: `greedy` or `sampling`, known from the workload
DECODING_VALUES = ("greedy", "sampling")
_ALLOWED_NODES = (
    ast.Expression, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.BinOp, ast.Add, ast.Sub, ast.Mult,
    ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.In, ast.NotIn, ast.Name, ast.Load,
    ast.Constant, ast.List, ast.Tuple,
)  # fmt: skip
_DECIMALS = 9  # grid values are rounded to these, so that 0.1 + 0.2 and 0.3 are one configuration


@dataclass(frozen=True, slots=True)
class Choices:
    """A knob that takes one of a few values."""

    values: tuple[Value, ...]

    def grid(self) -> tuple[Value, ...] | None:
        """Return all values."""
        return self.values

    def contains(self, value: Value) -> bool:
        """Return whether the knob can take this value."""
        return any(value == own and isinstance(value, bool) == isinstance(own, bool) for own in self.values)

    def distribution(self) -> BaseDistribution:
        """Return Optuna's form."""
        return CategoricalDistribution(self.values)

    def suggest(self, trial: optuna.Trial, name: str) -> Value:
        """Let a trial choose a value."""
        return cast(Value, trial.suggest_categorical(name, self.values))

    def draw(self, rng: np.random.Generator) -> Value:
        """Return a random value."""
        return self.values[int(rng.integers(len(self.values)))]


@dataclass(frozen=True, slots=True)
class Range:
    """A numeric knob.

    Args:
        low: Smallest value.
        high: Largest value.
        step: Distance of neighbours; None is continuous, for floats only.
        is_log: Sampled uniformly in the logarithm.
        is_integer: Of an integer field.
    """

    low: float
    high: float
    step: float | None
    is_log: bool
    is_integer: bool

    def grid(self) -> tuple[Value, ...] | None:
        """Return all values; None where there is a continuum of them."""
        if self.step is None:
            return None if self.low < self.high else (self.clean(self.low),)
        return tuple(self.clean(self.low + index * self.step) for index in range(self._num_steps() + 1))

    def contains(self, value: Value) -> bool:
        """Return whether the knob can take this value."""
        if isinstance(value, str | bool) or not self.low <= value <= self.high:
            return False
        if self.step is None:
            return True
        steps = (value - self.low) / self.step
        return math.isclose(steps, round(steps), abs_tol=1e-6)

    def distribution(self) -> BaseDistribution:
        """Return Optuna's form."""
        if self.is_integer:
            return IntDistribution(int(self.low), int(self.high), log=self.is_log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.is_log, step=self.step)

    def suggest(self, trial: optuna.Trial, name: str) -> Value:
        """Let a trial choose a value."""
        if self.is_integer:
            step = int(self.step or 1)
            return trial.suggest_int(name, int(self.low), int(self.high), step=step, log=self.is_log)
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.is_log)

    def draw(self, rng: np.random.Generator) -> Value:
        """Return a random value."""
        if self.is_log:
            drawn = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
            return self.clean(min(max(drawn, self.low), self.high))
        if self.step is None:
            return self.clean(float(rng.uniform(self.low, self.high)))
        return self.clean(self.low + int(rng.integers(self._num_steps() + 1)) * self.step)

    def clean(self, value: float) -> Value:
        """Return a sampled value in the form that goes into a configuration."""
        return round(value) if self.is_integer else round(value, _DECIMALS)

    def _num_steps(self) -> int:
        return round((self.high - self.low) / (self.step or 1))


@dataclass(frozen=True, slots=True)
class Condition:
    """The knob that has it applies only where another one (or `decoding`) applies and takes one of these values."""

    knob: str
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Knob:
    """One tunable.

    Args:
        name: Field of `SpecConfig`.
        domain: Its values.
        conditions: All must hold; where one does not, the field keeps its default.
        line: Where its values stand in the file; 0 for a knob that was not read from one.
    """

    name: str
    domain: Choices | Range
    conditions: tuple[Condition, ...] = ()
    line: int = field(default=0, compare=False)

    def applies(self, params: Mapping[str, Value]) -> bool:
        """Return whether the knob exists, given the knobs before it; the way of decoding is not looked at."""
        return all(
            params.get(condition.knob) in condition.values
            for condition in self.conditions
            if condition.knob != DECODING
        )

    def to_json(self) -> dict[str, Any]:
        """Return a canonical form."""
        domain = (
            {"choices": list(self.domain.values)}
            if isinstance(self.domain, Choices)
            else {"range": [self.domain.low, self.domain.high], "step": self.domain.step, "log": self.domain.is_log}
        )
        return {
            "name": self.name,
            **domain,
            "when": {condition.knob: list(condition.values) for condition in self.conditions},
        }


class Constraint:
    """An expression over knobs that must be true, such as ``ngram_min <= ngram_max``.

    It holds where one of its knobs does not apply. Comparisons, `and`, `or`, `not`, `in`, `+`, `-`, `*`, knobs,
    numbers, text and lists are known; calls and attributes are not, so a file can compute nothing else.

    Args:
        expression: The expression.
        line: Where it stands in the file; 0 for one that was not read from one.

    Raises:
        ValueError: The expression has something else in it.
    """

    def __init__(self, expression: str, line: int = 0) -> None:
        self.expression, self.line = expression, line
        try:
            tree = ast.parse(expression.strip(), mode="eval")
        except SyntaxError as error:
            raise ValueError(f"a constraint must be an expression over knobs, but got {expression!r}") from error
        for node in ast.walk(tree):
            if not isinstance(node, _ALLOWED_NODES):
                raise ValueError(f"a constraint must only compare knobs, but {expression!r} has {type(node).__name__}")
        names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
        if not names:
            raise ValueError(f"a constraint must speak of a knob, but got {expression!r}")
        self.knobs = tuple(dict.fromkeys(names))
        self._code: CodeType = compile(tree, "<constraint>", "eval")

    def holds(self, params: Mapping[str, Value]) -> bool:
        """Return whether these values are allowed.

        Raises:
            TypeError: Text is compared with a number.
        """
        if not all(name in params for name in self.knobs):
            return True
        return bool(eval(self._code, {"__builtins__": {}}, dict(params)))
