"""What goes together in a configuration, as far as it can be told without the drafter. Faults are sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autospec.rules import ACCEPT_RULES, COMBINE_RULES, ENTROPY_FORMS, STOP_RULES, TREE_SHAPES, accept_faults

if TYPE_CHECKING:
    from autospec.config import SpecConfig

_KNOWN = {
    "stop_rule": STOP_RULES,
    "accept_rule": tuple(ACCEPT_RULES),
    "tree_shape": tuple(TREE_SHAPES),
    "entropy_form": ENTROPY_FORMS,
    "combine": COMBINE_RULES,
}


def name_faults(config: SpecConfig) -> list[str]:
    """Return what is no name of a rule, a shape or a form."""
    return [
        f"`{name}` must be one of {list(names)}, but got {getattr(config, name)!r}"
        for name, names in _KNOWN.items()
        if getattr(config, name) not in names
    ]


def combination_faults(config: SpecConfig, max_paths: int) -> list[str]:
    """Return what does not go together; nothing where names are unknown or speculation is off.

    Args:
        config: Whose types are right.
        max_paths: Most `tree_paths`.
    """
    if name_faults(config) or config.is_off:
        return []
    shape = config.tree_shape
    faults = accept_faults(config.accept_rule, shape, config.accept_threshold)
    if config.stop_rule not in (allowed := TREE_SHAPES[shape].stop_rules):
        faults.append(f"tree_shape {shape!r} goes with stop rules {list(allowed)}, but got {config.stop_rule!r}")
    if shape in ("static", "optimal"):
        faults += _path_faults(config, max_paths)
    return faults + _drafter_faults(config)


def _drafter_faults(config: SpecConfig) -> list[str]:
    names = config.drafter_names
    if len(names) < 2:
        return []
    if not all(names) or len(set(names)) < len(names):
        return [f"drafters joined by + must be names, all different, but got {config.drafter!r}"]
    if config.combine == "merge" and config.tree_shape != "trie":
        return [f"combine 'merge' makes a trie, but got tree_shape={config.tree_shape!r}"]
    return []


def _path_faults(config: SpecConfig, max_paths: int) -> list[str]:
    paths = set(config.tree_paths)
    if not paths:
        return [f"tree_shape {config.tree_shape!r} needs `tree_paths`, but got none"]
    faults = []
    if len(paths) != len(config.tree_paths):
        faults.append(f"`tree_paths` must be all different, but got {config.tree_paths}")
    if len(paths) > max_paths:
        faults.append(f"`tree_paths` must hold at most {max_paths} paths, but got {len(paths)}")
    missing = sorted({path[:-1] for path in paths if len(path) > 1} - paths)
    if missing:
        faults.append(f"`tree_paths` must hold every path's beginning, but {list(missing)} are missing")
    return faults
