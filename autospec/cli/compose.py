"""Command-line overrides -> plain values, with every fault found before anything is created.

Wraps Hydra's compose API. Knows which names a command has, not what their values mean: see `autospec.cli.schema`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from autospec.paths import data_dir

# Taken as typed: quotes, commas, braces and `$` in a prompt are part of the prompt.
RAW_TEXT = ("prompt",)
# Tables to which an override may add a name without Hydra's `+`.
OPEN_TABLES = ("model.drafters",)
_OVERRIDE = re.compile(r"(?P<prefix>\+\+|\+|~)?(?P<key>[\w./@-]+)=(?P<value>.*)", re.DOTALL)
# Permissions: whoever starts a command gives them, and no file in his place.
_BY_HAND_ONLY = ("allow_import",)
_MISSING = "???"


@dataclass(slots=True)
class Composed:
    """The values of one command, what was wrong with overrides that are not in them, and all overrides as typed."""

    values: dict[str, Any]
    faults: list[str] = field(default_factory=list)
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Override:
    """One override, rewritten so that Hydra can parse it."""

    key: str
    value: str
    text: str


def compose_values(command: str, overrides: Sequence[str], conf_dir: Path | None = None) -> Composed:
    """Compose the configuration of a command; overrides that cannot be applied are left out and become faults.

    Args:
        command: Name of the primary configuration, `conf/<command>.yaml`.
        overrides: As typed, such as `study.trials=10`.
        conf_dir: Where the configuration lies; found by `autospec.paths` where it is not given.
    """
    faults: list[str] = []
    raw: dict[str, str] = {}
    parsed: list[_Override] = []
    for text in overrides:
        key, _, value = text.partition("=")
        if key in RAW_TEXT and "=" in text:
            raw[key] = value
        elif isinstance(override := _parse(text), _Override):
            parsed.append(override)
        else:
            faults.append(override)
    GlobalHydra.instance().clear()
    folder = (conf_dir or data_dir("conf")).resolve()
    with initialize_config_dir(str(folder), version_base="1.3", job_name=command):
        config = _apply(command, parsed, folder, faults)
    composed = plain_values(config, overrides)
    for key, value in raw.items():
        if key in composed.values:
            composed.values[key] = value
        else:
            faults.append(_unknown(key, command, [*_groups(command, folder), *_names(config)]))
    composed.faults[:0] = faults
    return composed


def near(name: str, names: Sequence[str]) -> str:
    """Return `; did you mean ...?` with the nearest of `names`, or nothing where none is near."""
    by_last = {other.rsplit(".", 1)[-1]: other for other in reversed(names)}
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if not close:
        close = [by_last[last] for last in difflib.get_close_matches(name.rsplit(".", 1)[-1], list(by_last), n=1)]
    return f"; did you mean `{close[0]}`?" if close else ""


def _parse(text: str) -> _Override | str:
    """Return the override, or the fault of a text that is none."""
    match = _OVERRIDE.fullmatch(text)
    if match is None:
        kind = (
            "an option is --help, --version, --multirun or --cfg" if text.startswith("-") else "a setting is key=value"
        )
        return f"{kind}, but got {text!r}"
    prefix, key, value = match["prefix"] or "", match["key"], match["value"]
    if key.split(".")[0].split("/")[0] == "hydra":
        return f"settings of Hydra itself serve only with --multirun or --cfg, but got {text!r}"
    if not prefix and any(key == table or key.startswith(f"{table}.") for table in OPEN_TABLES):
        prefix = "++"
    if not prefix.startswith("~"):
        value = _parseable(value)
    return _Override(key, match["value"], f"{prefix}{key}={value}")


def _parseable(value: str) -> str:
    """Quote a value outside Hydra's grammar, such as a path with brackets: it is text then."""
    try:
        OverridesParser.create().parse_override(f"key={value}")
    except HydraException:
        escaped = re.sub(r"(\\*)'", lambda match: match[1] * 2 + r"\'", value)
        trailing = re.search(r"\\*$", escaped)
        return f"'{escaped}{trailing[0] if trailing else ''}'"
    return value


def _apply(command: str, overrides: Sequence[_Override], folder: Path, faults: list[str]) -> DictConfig:
    """Apply all overrides at once, or one by one where some are faulty."""
    groups = _groups(command, folder)
    ordered = sorted(overrides, key=lambda override: override.key not in groups)
    try:
        return compose(command, overrides=[override.text for override in ordered])
    except (HydraException, OmegaConfBaseException):
        accepted: list[str] = []
        config = compose(command)
        names = [*groups, *_names(config)]
        for override in ordered:
            try:
                config = compose(command, overrides=[*accepted, override.text])
            except (HydraException, OmegaConfBaseException) as error:
                faults.append(_explain(error, override, command, folder, names))
            else:
                accepted.append(override.text)
                names = [*groups, *_names(config)]
        return config


def _explain(error: Exception, override: _Override, command: str, folder: Path, names: Sequence[str]) -> str:
    if override.key not in names:
        return _unknown(override.key, command, names)
    if "," in override.value and "Ambiguous" in str(error):
        return f"`{override.key}` takes one value (or a list, [a,b]), but got {override.value!r}"
    options = sorted(path.stem for path in (folder / override.key).glob("*.yaml"))
    if options:
        hint = near(override.value, options)
        return f"`{override.key}` must be one of {options}, but got {override.value!r}{hint}"
    return f"`{override.text}` cannot be applied: {str(error).splitlines()[0]}"


def _unknown(key: str, command: str, names: Sequence[str]) -> str:
    return f"`{command}` has no setting `{key}`{near(key, names)}"


def _groups(command: str, folder: Path) -> list[str]:
    """Return the names of the groups that a command chooses from, those without a default choice too."""
    primary = yaml.safe_load((folder / f"{command}.yaml").read_text())
    return [name for entry in primary.get("defaults", []) if isinstance(entry, dict) for name in entry]


def _names(config: DictConfig) -> list[str]:
    """Return every name that an override may set: tables and values."""
    values = OmegaConf.to_container(config, resolve=False)
    assert isinstance(values, dict)
    return list(_dotted(values))


def _dotted(values: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{key}.")


def plain_values(config: DictConfig, overrides: Sequence[str] = (), by_hand: Sequence[str] | None = None) -> Composed:
    """Resolve interpolations; a name that must be given and was not is a fault and left out.

    Args:
        config: As Hydra composed it.
        overrides: Of this job.
        by_hand: The words of the command line, where the overrides of a job may come from elsewhere too.
    """
    faults = []
    try:
        values = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        faults.append(f"a `${{...}}` must name another setting: {str(error).splitlines()[0]}")
        values = OmegaConf.to_container(config, resolve=False)
    assert isinstance(values, dict)
    plain = {str(key): value for key, value in values.items()}
    for name in [name for name in list(_dotted(plain)) if _pop_missing(plain, name)]:
        faults.append(f"`{name}` must be given, as {name}=VALUE")
    words = overrides if by_hand is None else by_hand
    typed_keys = {match["key"] for text in words if (match := _OVERRIDE.fullmatch(text))}
    for name in _BY_HAND_ONLY:
        if plain.get(name) and name not in typed_keys:
            faults.append(f"`{name}` must be given on the command line itself, but a file sets it to {plain[name]}")
    return Composed(plain, faults, tuple(overrides))


def _pop_missing(values: dict[str, Any], name: str) -> bool:
    *parents, last = name.split(".")
    for parent in parents:
        values = values[parent]
    if values[last] != _MISSING:
        return False
    del values[last]
    return True
