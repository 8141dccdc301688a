"""Files to a `Workload`: reads prompts, splits them into tune and held-out ones, and puts both in order.

Rows of JSONL are told apart by their keys: `turns` (Spec-Bench, MT-Bench), `messages` (chat) or `prompt`; a text file
is one prompt. Knows no tokenizer: messages stay unrendered until the engine meets them. Split and order depend on
seed and prompts alone, not on the order of rows or on other categories. Longer than most modules: reading a file,
judging a row and splitting the prompts are three steps of one path that nothing else takes.
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import json
import logging
import math
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from autospec.config import SamplingParams
from autospec.errors import AutospecWarning, ConfigError, WorkloadError
from autospec.records import Prompt, Workload

logger = logging.getLogger(__name__)

DEFAULT_CATEGORY = "default"
MAX_FAULTS = 20
_SPLITS = ("tune", "held_out")
_JSONL_SUFFIXES = (".jsonl", ".jsonl.gz")


CountTokens = Callable[[Prompt], int]


@dataclass(frozen=True, slots=True)
class WorkloadSource:
    """Where prompts come from and how they are split.

    Args:
        path: A `.jsonl`, `.jsonl.gz` or `.txt` file, or a folder of `.txt` files.
        name: For people; empty takes the name of the file or folder.
        categories: Categories to keep; empty keeps all.
        max_prompts_per_category: Most tune prompts, and most held-out prompts, of one category; None keeps all.
        max_held_out_per_category: The limit for held-out prompts where it differs; None: the same.
        max_prompt_tokens: Most tokens of a rendered prompt; longer ones are left out, with a warning, before the split
            and the other limits. None leaves none out.
        held_out_share: Share of each category that is held out, rounded, a half towards more prompts to tune on. A
            row that carries `split` keeps it.
        held_out_path: A second source whose prompts are the held-out ones; all of `path` is then to tune on.
        seed: Seed of split and order.
        sampling: Decoding settings of this workload.
        max_new_tokens: Tokens generated for each prompt.

    Raises:
        ConfigError: A value is out of range; all faults are listed.
    """

    path: str | Path
    name: str = ""
    categories: tuple[str, ...] = ()
    max_prompts_per_category: int | None = None
    max_held_out_per_category: int | None = None
    max_prompt_tokens: int | None = None
    held_out_share: float = 0.5
    held_out_path: str | Path | None = None
    seed: int = 0
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_new_tokens: int = 48

    def __post_init__(self) -> None:
        faults = []
        for name in ("max_prompts_per_category", "max_held_out_per_category", "max_prompt_tokens"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                faults.append(f"`{name} >= 1` must hold, but got {limit}")
        if not 0.0 < self.held_out_share < 1.0:
            faults.append(f"`0 < held_out_share < 1` must hold, but got {self.held_out_share}")
        if self.seed < 0:
            faults.append(f"`seed >= 0` must hold, but got {self.seed}")
        if self.max_new_tokens < 1:
            faults.append(f"`max_new_tokens >= 1` must hold, but got {self.max_new_tokens}")
        if faults:
            raise ConfigError(faults)


@dataclass(frozen=True, slots=True)
class _Row:
    """A prompt, the part it belongs to (empty until that is decided) and where it was read."""

    prompt: Prompt
    split: str
    where: str


def load_workload(source: WorkloadSource, count_tokens: CountTokens | None = None) -> Workload:
    """Read, split and order the prompts of a source.

    The same text (up to white space) is kept once, as held-out prompt where any of its rows says so. Any prefix of
    `tune` and `held_out` has as many prompts of each category as of every other, as long as they last.

    Args:
        source: Where they are.
        count_tokens: Returns how many tokens a prompt has for the target, or raises `WorkloadError`; without it
            `max_prompt_tokens` has no effect.

    Raises:
        WorkloadError: A source that cannot be read, faulty rows (up to 20 are listed), no prompts, or a category that
            cannot be split.
        ConfigError: A category was asked for that the source does not have.
    """
    faults: list[str] = []
    if source.held_out_path is None:
        rows = _read(Path(source.path), "", faults)
    else:
        rows = _assigned(_read(Path(source.path), "", faults), "tune", faults)
        rows += _assigned(_read(Path(source.held_out_path), "held_out/", faults), "held_out", faults)
    faults += _repeated_ids(rows)
    _raise_if_faulty(faults)
    if not rows:
        raise WorkloadError(f"a workload must hold at least one prompt, but {source.path} holds none")
    rows = _distinct(_of_categories(rows, source.categories))
    if source.max_prompt_tokens is not None and count_tokens is not None:
        rows = _short_enough(rows, source.max_prompt_tokens, count_tokens)
    rows = _split(rows, source)
    limit = source.max_prompts_per_category
    return Workload(
        name=source.name or Path(source.path).name.split(".")[0],
        tune=_ordered((row for row in rows if row.split == "tune"), source.seed, limit),
        held_out=_ordered(
            (row for row in rows if row.split == "held_out"), source.seed, source.max_held_out_per_category or limit
        ),
        sampling=source.sampling,
        max_new_tokens=source.max_new_tokens,
    )


def _raise_if_faulty(faults: list[str]) -> None:
    if len(faults) > MAX_FAULTS:
        faults = [*faults[:MAX_FAULTS], f"... and {len(faults) - MAX_FAULTS} more"]
    if faults:
        raise WorkloadError("\n".join(faults))


# Reading


def _read(path: Path, id_prefix: str, faults: list[str]) -> list[_Row]:
    """Read every prompt of a file or folder; what is wrong with single rows is added to `faults`."""
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


def _read_texts(folder: Path, paths: list[Path], id_prefix: str, faults: list[str]) -> list[_Row]:
    """Read one prompt a file; the name of the sub-folder is the category, one final line break is left out."""
    rows = []
    for path in paths:
        relative = path.relative_to(folder)
        category = relative.parts[0] if len(relative.parts) > 1 else DEFAULT_CATEGORY
        try:
            text = path.read_bytes().decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
            prompt = Prompt(f"{id_prefix}{relative.as_posix()}", category, text=_text(text, "a text file"))
            rows.append(_Row(prompt, "", str(path)))
        except UnicodeDecodeError as error:
            faults.append(f"{path}: expected UTF-8 text, but {error.reason} at byte {error.start}")
        except WorkloadError as error:
            faults.append(f"{path}: {error}")
    return rows


def _read_jsonl(path: Path, id_prefix: str, faults: list[str]) -> list[_Row]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rows = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            values = json.loads(line.decode("utf-8-sig"))
            rows.append(_Row(_prompt(values, f"{id_prefix}line-{number}"), _given_split(values), where))
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
            return read(values, default_id)
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


def _category(values: Mapping[str, Any]) -> str:
    return _text(values.get("category", DEFAULT_CATEGORY), "`category`")


def _given_split(values: Mapping[str, Any]) -> str:
    split = values.get("split", "")
    if "split" in values and split not in _SPLITS:
        raise WorkloadError(f"`split` must be one of {list(_SPLITS)}, but got {split!r:.80}")
    return str(split)


# All rows together


def _assigned(rows: list[_Row], split: str, faults: list[str]) -> list[_Row]:
    """Give all rows of a source to one part; a row that says otherwise is a fault."""
    faults.extend(
        f"{row.where}: `split` must be {split!r} because `held_out_path` is given, but got {row.split!r}"
        for row in rows
        if row.split not in ("", split)
    )
    return [replace(row, split=split) for row in rows]


def _repeated_ids(rows: list[_Row]) -> list[str]:
    first: dict[str, str] = {}
    faults = []
    for row in rows:
        earlier = first.setdefault(row.prompt.prompt_id, row.where)
        if earlier != row.where:
            faults.append(f"{row.where}: an id must be unique, but {row.prompt.prompt_id!r} is already at {earlier}")
    return faults


def _of_categories(rows: list[_Row], categories: tuple[str, ...]) -> list[_Row]:
    if not categories:
        return rows
    known = sorted({row.prompt.category for row in rows})
    faults = []
    for name in categories:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            faults.append(f"a category must be one of {known}, but got {name!r}{hint}")
    if faults:
        raise ConfigError(faults)
    return [row for row in rows if row.prompt.category in categories]


def _content(prompt: Prompt) -> str:
    """Return what a prompt says, without roles and with every run of white space as one space."""
    return " ".join([*prompt.text.split(), *(word for _, text in prompt.messages for word in text.split())])


def _distinct(rows: list[_Row]) -> list[_Row]:
    """Keep each content once: its first held-out row, or else its first row."""
    kept: dict[str, _Row] = {}
    for row in sorted(rows, key=lambda row: row.split != "held_out"):
        kept.setdefault(_content(row.prompt), row)
    if len(kept) < len(rows):
        logger.warning("left out %d of %d prompts that repeat another one", len(rows) - len(kept), len(rows))
    return list(kept.values())


def _short_enough(rows: list[_Row], limit: int, count_tokens: CountTokens) -> list[_Row]:
    """Leave out prompts of more than `limit` tokens, and categories of which then too few are left to be split."""
    short, faults = [], []
    for row in rows:
        try:
            if count_tokens(row.prompt) <= limit:
                short.append(row)
        except WorkloadError as error:
            faults.append(f"{row.where}: {error}")
    _raise_if_faulty(faults)
    num_before = {category: len(members) for category, members in _by_category(rows).items()}
    left = _by_category(short)
    gone = [
        name
        for name, num in num_before.items()
        if len(left.get(name, ())) < num and not _can_split(left.get(name, ()))
    ]
    kept = [row for row in short if row.prompt.category not in gone]
    if not kept:
        raise WorkloadError(f"a category must have two prompts of at most {limit:,} tokens, but none has")
    if len(kept) < len(rows):
        message = f"left out {len(rows) - len(kept)} of {len(rows)} prompts, because of tokens one may have {limit:,}"
        message += f"; too few are left of {', '.join(gone)}, so none is taken" if gone else ""
        warnings.warn(message, AutospecWarning, stacklevel=3)
    return kept


def _can_split(members: Sequence[_Row]) -> bool:
    """Return whether both parts can have a prompt."""
    return len(members) > 1 and {row.split for row in members} not in ({"tune"}, {"held_out"})


def _by_category(rows: Iterable[_Row]) -> dict[str, list[_Row]]:
    groups: dict[str, list[_Row]] = {}
    for row in rows:
        groups.setdefault(row.prompt.category, []).append(row)
    return dict(sorted(groups.items()))


def _shuffled(rows: Iterable[_Row], seed: int, use: str) -> list[_Row]:
    """Order rows by a hash of seed, use and content: the same on every machine, whatever the order in the file."""
    return sorted(rows, key=lambda row: hashlib.sha256(f"{seed}\n{use}\n{_content(row.prompt)}".encode()).hexdigest())


def _split(rows: list[_Row], source: WorkloadSource) -> list[_Row]:
    """Give every row that has no part yet to one, category by category, with at least one prompt in each part."""
    split_rows, faults = [], []
    for category, members in _by_category(rows).items():
        num_given = sum(row.split == "held_out" for row in members)
        free = _shuffled((row for row in members if not row.split), source.seed, "split")
        num_wanted = min(max(1, math.ceil(source.held_out_share * len(members) - 0.5)), len(members) - 1)
        num_held_out = min(max(0, num_wanted - num_given), len(free))
        parts = [row for row in members if row.split]
        parts += [replace(row, split="held_out") for row in free[:num_held_out]]
        parts += [replace(row, split="tune") for row in free[num_held_out:]]
        counts = [sum(row.split == split for row in parts) for split in _SPLITS]
        if not all(counts):
            faults.append(
                f"a category needs at least 2 different prompts, one to tune on and one held out, "
                f"but {category!r} has {counts[0]} and {counts[1]}"
            )
        split_rows += parts
    _raise_if_faulty(faults)
    return split_rows


def _ordered(rows: Iterable[_Row], seed: int, limit: int | None) -> tuple[Prompt, ...]:
    """Take one prompt of each category in turn; each round is shuffled, so no category is always first."""
    groups = [_shuffled(members, seed, "order")[:limit] for members in _by_category(rows).values()]
    rounds = [[row for row in turn if row is not None] for turn in zip_longest(*groups)]
    return tuple(row.prompt for turn in rounds for row in _shuffled(turn, seed, "round"))
