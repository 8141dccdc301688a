"""Prompts to tune and held-out ones: which belong together, which are the same, in which order they are measured.

Split and order depend on seed and prompts alone, not on the order of rows or on other categories. Reads no file.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import zip_longest

from autospec.errors import AutospecWarning, ConfigError, WorkloadError
from autospec.records import Prompt
from autospec.workloads.reading import SPLITS, PromptRow

logger = logging.getLogger(__name__)

MAX_FAULTS = 20
CountTokens = Callable[[Prompt], int]


def raise_if_faulty(faults: list[str]) -> None:
    """Raise a `WorkloadError` with the first `MAX_FAULTS` faults, and how many more there are; none is fine."""
    if len(faults) > MAX_FAULTS:
        faults = [*faults[:MAX_FAULTS], f"... and {len(faults) - MAX_FAULTS} more"]
    if faults:
        raise WorkloadError("\n".join(faults))


def assigned(rows: list[PromptRow], split: str, faults: list[str]) -> list[PromptRow]:
    """Give all rows of a source to one part; a row that says otherwise is a fault."""
    faults.extend(
        f"{row.where}: `split` must be {split!r} because `held_out_path` is given, but got {row.split!r}"
        for row in rows
        if row.split not in ("", split)
    )
    return [replace(row, split=split) for row in rows]


def repeated_ids(rows: list[PromptRow]) -> list[str]:
    """Return a fault for every row whose id an earlier one has."""
    first: dict[str, str] = {}
    faults = []
    for row in rows:
        earlier = first.setdefault(row.prompt.prompt_id, row.where)
        if earlier != row.where:
            faults.append(f"{row.where}: an id must be unique, but {row.prompt.prompt_id!r} is already at {earlier}")
    return faults


def of_categories(rows: list[PromptRow], categories: tuple[str, ...]) -> list[PromptRow]:
    """Return the rows of the categories asked for; none asked for is all.

    Raises:
        ConfigError: There is no such category.
    """
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


def distinct(rows: list[PromptRow]) -> list[PromptRow]:
    """Keep each content once: its first held-out row, or else its first row."""
    kept: dict[str, PromptRow] = {}
    for row in sorted(rows, key=lambda row: row.split != "held_out"):
        kept.setdefault(_content(row.prompt), row)
    if len(kept) < len(rows):
        logger.warning("left out %d of %d prompts that repeat another one", len(rows) - len(kept), len(rows))
    return list(kept.values())


def short_enough(rows: list[PromptRow], limit: int, count_tokens: CountTokens) -> list[PromptRow]:
    """Leave out prompts of more than `limit` tokens, and categories of which then too few are left to be split.

    Raises:
        WorkloadError: A prompt cannot be counted, or no category is left.
    """
    short, faults = [], []
    for row in rows:
        try:
            if count_tokens(row.prompt) <= limit:
                short.append(row)
        except WorkloadError as error:
            faults.append(f"{row.where}: {error}")
    raise_if_faulty(faults)
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


def _can_split(members: Sequence[PromptRow]) -> bool:
    """Return whether both parts can have a prompt."""
    return len(members) > 1 and {row.split for row in members} not in ({"tune"}, {"held_out"})


def _by_category(rows: Iterable[PromptRow]) -> dict[str, list[PromptRow]]:
    groups: dict[str, list[PromptRow]] = {}
    for row in rows:
        groups.setdefault(row.prompt.category, []).append(row)
    return dict(sorted(groups.items()))


def _shuffled(rows: Iterable[PromptRow], seed: int, use: str) -> list[PromptRow]:
    """Order rows by a hash of seed, use and content: the same on every machine, whatever the order in the file."""
    return sorted(rows, key=lambda row: hashlib.sha256(f"{seed}\n{use}\n{_content(row.prompt)}".encode()).hexdigest())


def split(rows: list[PromptRow], held_out_share: float, seed: int) -> list[PromptRow]:
    """Give every row that has no part yet to one, category by category, with at least one prompt in each part.

    Raises:
        WorkloadError: A category is too small for that.
    """
    split_rows, faults = [], []
    for category, members in _by_category(rows).items():
        num_given = sum(row.split == "held_out" for row in members)
        free = _shuffled((row for row in members if not row.split), seed, "split")
        num_wanted = min(max(1, math.ceil(held_out_share * len(members) - 0.5)), len(members) - 1)
        num_held_out = min(max(0, num_wanted - num_given), len(free))
        parts = [row for row in members if row.split]
        parts += [replace(row, split="held_out") for row in free[:num_held_out]]
        parts += [replace(row, split="tune") for row in free[num_held_out:]]
        counts = [sum(row.split == split for row in parts) for split in SPLITS]
        if not all(counts):
            faults.append(
                f"a category needs at least 2 different prompts, one to tune on and one held out, "
                f"but {category!r} has {counts[0]} and {counts[1]}"
            )
        split_rows += parts
    raise_if_faulty(faults)
    return split_rows


def ordered(rows: Iterable[PromptRow], seed: int, limit: int | None) -> tuple[Prompt, ...]:
    """Take one prompt of each category in turn; each round is shuffled, so no category is always first."""
    groups = [_shuffled(members, seed, "order")[:limit] for members in _by_category(rows).values()]
    rounds = [[row for row in turn if row is not None] for turn in zip_longest(*groups)]
    return tuple(row.prompt for turn in rounds for row in _shuffled(turn, seed, "round"))
