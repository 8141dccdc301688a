"""The settings of `conf/` as lines of a help text: every leaf with its value and the comment beside it.

Reads the node tree of the YAML, because only that knows where a comment belongs. Composes nothing, knows no command.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

_NOT_SETTINGS = ("defaults", "hydra")
_GLOBAL = "@package _global_"  # of a choice that sets things outside its group
_MAX_VALUE, _MAX_NAME, _WIDTH = 48, 52, 118


@dataclass(frozen=True, slots=True)
class Leaf:
    """One setting.

    Args:
        value: As written.
        comment: What stands beside it; empty where nothing does.
    """

    value: str
    comment: str


def leaves(path: Path) -> dict[str, Leaf]:
    """Return the settings of a file by dotted name, those it inherits included; comments are inherited too."""
    text = path.read_text(encoding="utf-8")
    found: dict[str, Leaf] = {}
    for entry in defaults(path):
        if isinstance(entry, str) and entry != "_self_":
            found |= leaves(path.with_name(f"{entry}.yaml"))
    for name, leaf in _own_leaves(yaml.compose(text), text, ""):
        inherited = found.get(name)
        found[name] = Leaf(leaf.value, leaf.comment or (inherited.comment if inherited else ""))
    return found


def defaults(path: Path) -> list[str | dict[str, str | None]]:
    """Return the defaults list of a file."""
    return list((yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("defaults", []))


def setting_lines(settings: Mapping[str, Leaf], prefix: str = "") -> Iterator[str]:
    """Yield one line for each setting, comments below each other."""
    named = {
        f"{prefix}{name}: {leaf.value}": "must be given" if leaf.value == "???" else leaf.comment
        for name, leaf in settings.items()
    }
    width = max((len(text) for text in named if len(text) <= _MAX_NAME), default=0)
    for text, comment in named.items():
        yield f"  {text:<{width}}  # {comment}" if comment else f"  {text}"


def group_lines(conf: Path, group: str, default: str | None) -> Iterator[str]:
    """Yield what a group can set: the leaves of its default choice, then what each other choice is for and changes.

    Args:
        conf: The folder of the configuration.
        group: Name of the group.
        default: Choice that a command takes by itself; None where it takes none.
    """
    choices = sorted((conf / group).glob("*.yaml"))
    common = [path for path in choices if _GLOBAL not in path.read_text(encoding="utf-8")]
    shown = next((path for path in common if path.stem == default), common[0] if common else None)
    known: dict[str, Leaf] = {}
    if shown is None:
        yield group
    else:
        known = leaves(shown)
        yield f"{group}={shown.stem}" + ("" if default else f" (settings of {group} need a choice first)")
        yield from setting_lines(known, f"{group}.")
    for path in choices:
        if path != shown:
            prefix = f"{group}." if path in common else ""
            changed = [
                f"{prefix}{name}={leaf.value}"
                for name, leaf in leaves(path).items()
                if name not in known or known[name].value != leaf.value
            ]
            words = [f"{group}={path.stem}:", _description(path), f"Sets {', '.join(changed)}."]
            text = " ".join(filter(None, words))
            yield from textwrap.wrap(text, _WIDTH, initial_indent="  ", subsequent_indent="      ")


def _own_leaves(node: yaml.Node | None, text: str, prefix: str) -> Iterator[tuple[str, Leaf]]:
    if not isinstance(node, yaml.MappingNode):
        return
    for key_node, value_node in node.value:
        name = str(key_node.value)
        if not prefix and name in _NOT_SETTINGS:
            continue
        if isinstance(value_node, yaml.MappingNode) and not value_node.flow_style:
            yield from _own_leaves(value_node, text, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _leaf(value_node, text)


def _leaf(node: yaml.Node, text: str) -> Leaf:
    """Return value and comment; of a list over several lines the comment may stand at its beginning."""
    start, end = node.start_mark.index, node.end_mark.index
    written = text[start:end]
    comment = re.match(r"[ \t]*#\s*(.*)", text[end:]) or re.match(r"[\[{][ \t]*#\s*(.*)", written)
    value = " ".join(re.sub(r"\s#.*", "", written).split())
    if len(value) > _MAX_VALUE:
        value = f"{value[: _MAX_VALUE - 4].rstrip()} ...{value[-1]}"
    return Leaf(value, comment[1].strip() if comment else "")


def _description(path: Path) -> str:
    """Return what the comment at the top of a file says, its example left out."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        words = line.lstrip("# ")
        if not words.startswith("python -m ") and not words.startswith("@package"):
            lines.append(words)
    return " ".join(lines)
