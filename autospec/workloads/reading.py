"""Files to prompts: finds the format of a source, judges every row of it, and says what is wrong with which.

Rows of JSONL are told apart by their keys: `turns` (Spec-Bench, MT-Bench), `messages` (chat) or `prompt`; a text file
is one prompt. Knows no tokenizer: messages stay unrendered until the engine meets them. Knows nothing of other rows.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autospec.errors import WorkloadError
from autospec.records import Prompt

DEFAULT_CATEGORY = "default"
SPLITS = ("tune", "held_out")
_JSONL_SUFFIXES = (".jsonl", ".jsonl.gz")


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt, the part it belongs to (empty until that is decided) and where it was read."""

    prompt: Prompt
    split: str
    where: str


def read_rows(path: Path, id_prefix: str, faults: list[str]) -> list[PromptRow]:
    """Read every prompt of a file or folder; what is wrong with single rows is added to `faults`.

    Args:
        path: A `.jsonl`, `.jsonl.gz` or `.txt` file, or a folder of `.txt` files.
        id_prefix: Put before ids that are made from lines or file names.
        faults: Grows by a sentence for each faulty row.

    Raises:
        WorkloadError: The file cannot be read, or is of no known kind.
    """
    try:
        if not path.exists():
            raise WorkloadError(f"a workload must be an existing file or folder, but {path} does not exist")
        if path.is_dir():
            return _read_texts(path, sorted(path.rglob("*.txt")), id_prefix, faults)
        if path.name.endswith(_JSONL_SUFFIXES):
            return _read_jsonl(path, id_prefix, faults)
        if path.suffix == ".txt":
            return _read_texts(path.parent, [path], id_prefix, faults)
    except (OSError, EOFError, zlib.error) as error:
        raise WorkloadError(f"a workload must be a readable file or folder, but {path} is not: {error}") from error
    expected = ", ".join((*_JSONL_SUFFIXES, ".txt"))
    raise WorkloadError(f"a workload must be a folder of .txt files or end in {expected}, but got {path}")


def _read_texts(folder: Path, paths: list[Path], id_prefix: str, faults: list[str]) -> list[PromptRow]:
    """Read one prompt a file; the name of the sub-folder is the category, one final line break is left out."""
    rows = []
    for path in paths:
        relative = path.relative_to(folder)
        category = relative.parts[0] if len(relative.parts) > 1 else DEFAULT_CATEGORY
        try:
            text = path.read_bytes().decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
            prompt = Prompt(f"{id_prefix}{relative.as_posix()}", category, text=_text(text, "a text file"))
            rows.append(PromptRow(prompt, "", str(path)))
        except UnicodeDecodeError as error:
            faults.append(f"{path}: expected UTF-8 text, but {error.reason} at byte {error.start}")
        except WorkloadError as error:
            faults.append(f"{path}: {error}")
    return rows


def _read_jsonl(path: Path, id_prefix: str, faults: list[str]) -> list[PromptRow]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rows = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            values = json.loads(line.decode("utf-8-sig"))
            rows.append(PromptRow(_prompt(values, f"{id_prefix}line-{number}"), _given_split(values), where))
        except WorkloadError as error:
            faults.append(f"{where}: {error}")
        except (ValueError, RecursionError) as error:
            faults.append(f"{where}: expected a JSON object in UTF-8, but got: {error}")
    return rows


# One row


def _prompt(values: Any, default_id: str) -> Prompt:
    """Turn one row into a prompt, by the first of the keys `turns`, `messages` and `prompt` that it has."""
    if not isinstance(values, dict):
        raise WorkloadError(f"expected a JSON object, but got a {type(values).__name__}")
    for key, read in _FORMATS.items():
        if key in values:
            return replace(read(values, default_id), reference=_reference(values))
    raise WorkloadError(f"expected one of the keys {list(_FORMATS)}, but got {sorted(values)}")


def _from_turns(values: Mapping[str, Any], default_id: str) -> Prompt:
    """Take the first turn of a Spec-Bench or MT-Bench question as one user message.

    A second turn asks about the answer to the first. That answer would differ from target to target and from one
    configuration to the next under sampling, and a measured prompt must be the same for all of them.
    """
    turns = values["turns"]
    if not isinstance(turns, list) or not turns:
        raise WorkloadError(f"`turns` must be a list of texts that is not empty, but got {turns!r:.80}")
    missing = [key for key in ("question_id", "category") if key not in values]
    if missing:
        raise WorkloadError(f"a row with `turns` needs `question_id` and `category`, but {missing} are missing")
    message = ("user", _text(turns[0], "the first of `turns`"))
    return Prompt(_identifier(values, "question_id", default_id), _category(values), messages=(message,))


def _from_messages(values: Mapping[str, Any], default_id: str) -> Prompt:
    """Take a conversation; assistant messages at its end are the answer that is to be generated, and left out."""
    messages = values["messages"]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise WorkloadError(f"`messages` must be a list of {{role, content}} objects, but got {messages!r:.80}")
    pairs = [(_text(row.get("role"), "`role`"), _text(row.get("content"), "`content`")) for row in messages]
    while pairs and pairs[-1][0] == "assistant":
        pairs.pop()
    if not pairs:
        raise WorkloadError("`messages` must hold a message that is not the assistant's, but there is none")
    return Prompt(_identifier(values, "id", default_id), _category(values), messages=tuple(pairs))


def _from_prompt(values: Mapping[str, Any], default_id: str) -> Prompt:
    return Prompt(_identifier(values, "id", default_id), _category(values), text=_text(values["prompt"], "`prompt`"))


_FORMATS: dict[str, Callable[[Mapping[str, Any], str], Prompt]] = {
    "turns": _from_turns,
    "messages": _from_messages,
    "prompt": _from_prompt,
}


def _text(value: Any, what: str) -> str:
    """Return a text that a tokenizer can read."""
    if not isinstance(value, str) or not value.strip():
        raise WorkloadError(f"{what} must be a text that is not blank, but got {value!r:.80}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise WorkloadError(f"{what} must be Unicode text, but character {error.start} is half a pair") from error
    return value


def _identifier(values: Mapping[str, Any], key: str, default_id: str) -> str:
    value = values.get(key, default_id)
    return str(value) if type(value) is int else _text(value, f"`{key}`")


def _reference(values: Mapping[str, Any]) -> str:
    """Return the right answer, which is optional: a text, or of a list the first, which belongs to the first turn."""
    given = values.get("reference", "")
    first = given[0] if isinstance(given, list) and given else given
    return first if isinstance(first, str) else ""


def _category(values: Mapping[str, Any]) -> str:
    return _text(values.get("category", DEFAULT_CATEGORY), "`category`")


def _given_split(values: Mapping[str, Any]) -> str:
    split = values.get("split", "")
    if "split" in values and split not in SPLITS:
        raise WorkloadError(f"`split` must be one of {list(SPLITS)}, but got {split!r:.80}")
    return str(split)
