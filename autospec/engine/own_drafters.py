"""Drafters of one's own: objects held against the `Drafter` protocol, and factories imported where that is allowed.

A factory is any callable that takes the target (`CausalLM`) and its tokenizer (`TextCodec`, or None) and returns a
drafter; `import:MODULE:FACTORY` names it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import cast

from autospec.engine.drafters import Drafter, Needs
from autospec.engine.model import CausalLM
from autospec.engine.text import TextCodec
from autospec.errors import AutospecError, ModelError
from autospec.imports import import_callable, told
from autospec.rules import TREE_SHAPES

METHODS = ("start", "propose", "commit")
ATTRIBUTES = tuple(Drafter.__annotations__)


def drafter_faults(candidate: object) -> list[str]:
    """Return everything for which an object is no `Drafter`."""
    if isinstance(candidate, type):
        return [f"it is the class {candidate.__name__} itself and no instance of it"]
    missing = [name for name in (*ATTRIBUTES, *METHODS) if not hasattr(candidate, name)]
    faults = [f"it lacks {', '.join(missing)}"] if missing else []
    rules: tuple[tuple[str, str, Callable[[object], bool]], ...] = (
        ("source", "text", lambda value: isinstance(value, str)),
        ("has_probs", "true or false", lambda value: isinstance(value, bool)),
        ("shapes", f"a tuple of names of {list(TREE_SHAPES)}", _are_shapes),
        ("needs", "a `Needs`", lambda value: isinstance(value, Needs)),
        *((name, "a method", callable) for name in METHODS),
    )
    for name, rule, holds in rules:
        if name not in missing and not holds(value := getattr(candidate, name)):
            faults.append(f"its {name} must be {rule}, but is {value!r}")
    return faults


def _are_shapes(value: object) -> bool:
    return isinstance(value, tuple) and bool(value) and all(shape in TREE_SHAPES for shape in value)


def import_drafter(path: str, target: CausalLM, text: TextCodec | None, allow_import: Collection[str]) -> Drafter:
    """Let an imported factory make a drafter, whose `source` then says how it was made.

    Args:
        path: `MODULE:FACTORY`.
        target: Given to the factory.
        text: Given to the factory; the target's tokenizer, where there is one.
        allow_import: Modules whose code may run.

    Raises:
        ConfigError: The module is not allowed, or the factory cannot be imported.
        ModelError: The factory fails, or returns something else than a drafter.
    """
    factory = import_callable(path, allow_import)
    try:
        made = factory(target, text)
    except AutospecError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(f"the factory `import:{path}` must return a drafter, but failed: {told(error)}") from error
    faults = drafter_faults(made)
    try:
        setattr(made, "source", f"import:{path}")  # noqa: B010  (it is not known to be a drafter yet)
    except AttributeError as error:
        faults.append(f"its source must be possible to set, but: {error}")
    if faults:
        kind = type(made).__qualname__
        raise ModelError(
            f"the factory `import:{path}` must return a `Drafter`, but of its {kind}: {'; '.join(faults)}"
        )
    return cast(Drafter, made)
