"""Task scorers: exact match with a reference, a regular expression, or a function of the user's own.

A scorer says how well an output does its task; names become scorers here. Runs no model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection

from autospec.errors import ConfigError, ScorerError
from autospec.imports import import_callable
from autospec.records import Prompt, Workload

Scorer = Callable[[Prompt, str], float]
"""Prompt and the text of an output -> a score, higher is better."""

_REGEX = "regex:"
_DOTTED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def make_scorer(name: str | None, allow_import: Collection[str] = ()) -> Scorer | None:
    """Return the scorer of a name; None for none.

    Args:
        name: `exact`: 1 where the output, without white space around it, is the prompt's reference.
            `regex:PATTERN`: 1 where the pattern is found; where it has a group and the prompt a reference, the last
            group found must be the reference. `package.module:function`: what the function returns for a `Prompt` and
            the text of an output.
        allow_import: Modules from which a function may be imported, which runs their code.

    Raises:
        ConfigError: There is no such scorer, or a function is named that may not be imported or cannot be.
    """
    if name is None:
        return None
    if name == "exact":
        return _exact
    if name.startswith(_REGEX):
        return _regex(name.removeprefix(_REGEX))
    if _DOTTED.fullmatch(name) is None:
        raise ConfigError(f"a scorer must be exact, regex:PATTERN or package.module:function, but got {name!r}")
    scorer: Scorer = import_callable(name, allow_import)
    return scorer


def needs_reference(name: str | None) -> bool:
    """Return whether a scorer says nothing of prompts without a reference."""
    return name == "exact"


def check_references(name: str | None, workload: Workload) -> None:
    """Refuse a workload without the references that a scorer compares with.

    Raises:
        ConfigError: Prompts have none; says how many.
    """
    prompts = (*workload.tune, *workload.held_out)
    missing = [prompt.prompt_id for prompt in prompts if not prompt.reference]
    if needs_reference(name) and missing:
        raise ConfigError(
            f"scorer {name!r} needs a `reference` in every row of the workload, but {len(missing)} of {len(prompts)} "
            f"prompts of {workload.name!r} have none, such as {missing[0]!r}"
        )


def score(scorer: Scorer, prompt: Prompt, text: str) -> float:
    """Return what a scorer says of an output.

    Raises:
        ScorerError: It raised, or returned no finite number.
    """
    try:
        value = float(scorer(prompt, text))
    except Exception as error:  # a scorer is the user's code: it raises what it likes
        raise ScorerError(
            f"a scorer must return a number for every output, but on prompt {prompt.prompt_id!r} it raised "
            f"{type(error).__name__}: {error}"
        ) from error
    if not math.isfinite(value):
        raise ScorerError(f"a scorer must return a finite number, but on prompt {prompt.prompt_id!r} got {value}")
    return value


def _exact(prompt: Prompt, text: str) -> float:
    return float(text.strip() == prompt.reference.strip())


def _regex(pattern: str) -> Scorer:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"`regex:` must be followed by a regular expression, but {pattern!r}: {error}") from error

    def scorer(prompt: Prompt, text: str) -> float:
        found = list(compiled.finditer(text))
        if not found or not compiled.groups or not prompt.reference:
            return float(bool(found))
        return float((found[-1][1] or "").strip() == prompt.reference.strip())

    return scorer
