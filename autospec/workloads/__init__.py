"""Files to a `Workload`: reads prompts, splits them into tune and held-out ones, and puts both in order.

Knows the steps of that path; what a file holds is the business of `reading`, what belongs where that of `splitting`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from autospec.config import SamplingParams
from autospec.errors import ConfigError, WorkloadError
from autospec.records import Workload, size_faults
from autospec.workloads.reading import DEFAULT_CATEGORY, read_rows
from autospec.workloads.splitting import (
    MAX_FAULTS,
    CountTokens,
    assigned,
    distinct,
    of_categories,
    ordered,
    raise_if_faulty,
    repeated_ids,
    short_enough,
    split,
)

__all__ = ["DEFAULT_CATEGORY", "MAX_FAULTS", "CountTokens", "WorkloadSource", "load_workload"]


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
        batch_sizes: See `autospec.records.Workload`.
        context_lengths: See there.

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
    batch_sizes: tuple[int, ...] = (1,)
    context_lengths: tuple[int, ...] = ()

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
        faults += size_faults(self.batch_sizes, self.context_lengths)
        if faults:
            raise ConfigError(faults)


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
        rows = read_rows(Path(source.path), "", faults)
    else:
        rows = assigned(read_rows(Path(source.path), "", faults), "tune", faults)
        rows += assigned(read_rows(Path(source.held_out_path), "held_out/", faults), "held_out", faults)
    faults += repeated_ids(rows)
    raise_if_faulty(faults)
    if not rows:
        raise WorkloadError(f"a workload must hold at least one prompt, but {source.path} holds none")
    rows = distinct(of_categories(rows, source.categories))
    if source.max_prompt_tokens is not None and count_tokens is not None:
        rows = short_enough(rows, source.max_prompt_tokens, count_tokens)
    rows = split(rows, source.held_out_share, source.seed)
    limit = source.max_prompts_per_category
    return Workload(
        name=source.name or Path(source.path).name.split(".")[0],
        tune=ordered((row for row in rows if row.split == "tune"), source.seed, limit),
        held_out=ordered(
            (row for row in rows if row.split == "held_out"), source.seed, source.max_held_out_per_category or limit
        ),
        sampling=source.sampling,
        max_new_tokens=source.max_new_tokens,
        batch_sizes=source.batch_sizes,
        context_lengths=source.context_lengths,
    )
