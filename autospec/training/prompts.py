"""The pocket workload: prompts of three categories cut out of held-out source files.

A cut is a place in a file where a prompt may end; which cut, file and length are taken is decided by a seed.
Knows files and token counts, nothing of models; the rows it writes are what `workloads` reads.
"""

from __future__ import annotations

import ast
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from autospec.errors import TrainingError
from autospec.training.corpus import SourceFile
from autospec.training.edits import code_blocks, make_edit

CATEGORIES = ("complete", "docs", "edit")
SPLITS = ("tune", "held_out")
MIN_TOKENS, MAX_TOKENS = 64, 768
# An edited copy shorter than this would be finished before a generation of ordinary length is.
MIN_COPY_TOKENS = 64
# Below this an edit prompt cannot hold a block whose copy is long enough.
MIN_EDIT_TOKENS = 144
# A cut leaves at least this much of the function, docstring or comment to be written.
MIN_REST_CHARS = 160
# Files are searched for a cut whose prompt is at most this share off the wanted length.
LENGTH_TOLERANCE = 0.12

CountTokens = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One line of the workload file; `source` names the held-out file it was cut from."""

    id: str
    category: str
    split: str
    source: str
    prompt: str


@dataclass(frozen=True, slots=True)
class Cut:
    """A prompt is the text of the file up to `offset`, from a line of choice, followed by `tail`."""

    offset: int
    tail: str = ""


def _line_starts(text: str) -> list[int]:
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return starts


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def complete_cuts(text: str) -> list[Cut]:
    """Return the ends of statements inside functions of which enough is left to be written.

    Prompts end before a line break, because the tokenizer joins a line break with the indent that follows.
    """
    starts, cuts = _line_starts(text), []
    for function in _functions(ast.parse(text)):
        end = starts[function.end_lineno or function.lineno]
        for before, after in zip(function.body, function.body[1:], strict=False):
            offset = starts[before.end_lineno or before.lineno] - 1
            if after.lineno > (before.end_lineno or 0) and end - offset >= MIN_REST_CHARS:
                cuts.append(Cut(offset))
    return cuts


def _docstring_cuts(text: str, tree: ast.AST, starts: list[int]) -> Iterator[Cut]:
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)):
            continue
        if not ast.get_docstring(node, clean=False):
            continue
        string = node.body[0]
        begin, end = starts[string.lineno - 1] + string.col_offset, starts[string.end_lineno or string.lineno]
        opening = text.find('"""', begin, begin + 5)
        if opening < 0:
            continue
        line_end = text.find("\n", opening)
        for offset in (opening + 3, line_end):
            if end - offset >= MIN_REST_CHARS:
                yield Cut(offset)


def _comment_cuts(text: str, starts: list[int]) -> Iterator[Cut]:
    lines = text.splitlines()
    first = 0
    while first < len(lines):
        last = first
        while last < len(lines) and lines[last].lstrip().startswith("# "):
            last += 1
        if last > first and starts[last] - starts[first + 1] >= MIN_REST_CHARS:
            yield Cut(starts[first + 1] - 1)
        first = last + 1


def docs_cuts(text: str) -> list[Cut]:
    """Return the openings and first lines of long docstrings, and the first lines of long comments."""
    starts = _line_starts(text)
    return [*_docstring_cuts(text, ast.parse(text), starts), *_comment_cuts(text, starts)]


def edit_cuts(text: str, source: random.Random, count_tokens: CountTokens) -> list[Cut]:
    """Return blocks with the beginning (one to three lines) of their edited copy as the tail."""
    cuts = []
    for block in code_blocks(text, 200, 1500):
        edit = make_edit(block, source)
        if edit is None:
            continue
        lines = edit.edited.splitlines(keepends=True)
        num_given = source.randint(1, 3)
        given, rest = "".join(lines[:num_given]), "".join(lines[num_given:])
        if count_tokens(rest) > MIN_COPY_TOKENS:
            cuts.append(Cut(text.index(block), edit.lead + given.removesuffix("\n")))
    return cuts


def _prompt_of_length(text: str, cut: Cut, wanted: int, count_tokens: CountTokens) -> str | None:
    """Return the prompt of this cut whose length is nearest to `wanted`; None where none is near enough."""
    best, best_gap = None, LENGTH_TOLERANCE * wanted
    prompt, num_tokens = cut.tail, count_tokens(cut.tail)
    end = cut.offset
    while num_tokens <= wanted + best_gap:
        if prompt.strip() and MIN_TOKENS <= num_tokens <= MAX_TOKENS and abs(num_tokens - wanted) <= best_gap:
            best, best_gap = prompt, abs(num_tokens - wanted)
        if end == 0:
            break
        end = text.rfind("\n", 0, end - 1) + 1
        prompt = text[end : cut.offset] + cut.tail
        num_tokens = count_tokens(prompt)
    return best


def wanted_lengths(num_prompts: int, shortest: int) -> list[int]:
    """Return lengths spread evenly over the logarithm, longest first, because those fit the fewest files."""
    ratio = MAX_TOKENS / shortest
    return [round(shortest * ratio ** ((i + 0.5) / num_prompts)) for i in reversed(range(num_prompts))]


def split_files(files: list[tuple[SourceFile, str]], seed: int) -> dict[str, list[tuple[SourceFile, str]]]:
    """Deal the held-out files out to the splits, package by package, so that no file is in both."""
    order = random.Random(seed)
    held_out = sorted(
        ((file, text) for file, text in files if file.held_out),
        key=lambda pair: (pair[0].package, pair[0].path),
    )
    order.shuffle(held_out)
    held_out.sort(key=lambda pair: pair[0].package)
    return {split: held_out[i :: len(SPLITS)] for i, split in enumerate(SPLITS)}


class _Builder:
    """Takes prompts from the least used files first."""

    def __init__(self, files: list[tuple[SourceFile, str]], count_tokens: CountTokens, seed: str) -> None:
        self._files, self._count_tokens = files, count_tokens
        self._source = random.Random(seed)
        self._uses = [0] * len(files)
        self._taken: set[str] = set()

    def _cuts(self, category: str, text: str) -> list[Cut]:
        if category == "edit":
            return edit_cuts(text, self._source, self._count_tokens)
        return complete_cuts(text) if category == "complete" else docs_cuts(text)

    def take(self, category: str, wanted: int) -> tuple[str, str]:
        """Return (source, prompt) of about `wanted` tokens."""
        order = sorted(range(len(self._files)), key=lambda i: (self._uses[i], self._source.random()))
        for index in order:
            file, text = self._files[index]
            cuts = self._cuts(category, text)
            self._source.shuffle(cuts)
            for cut in cuts[:20]:
                prompt = _prompt_of_length(text, cut, wanted, self._count_tokens)
                if prompt is not None and prompt not in self._taken:
                    self._uses[index] += 1
                    self._taken.add(prompt)
                    return f"{file.package}:{file.path}", prompt
        raise TrainingError(
            f"the held-out files of a split must hold a `{category}` prompt of every length, "
            f"but {len(self._files)} files have none left with {wanted} tokens"
        )


def build_workload(
    files: list[tuple[SourceFile, str]], count_tokens: CountTokens, num_prompts: int, seed: int
) -> list[PromptRow]:
    """Cut `num_prompts` prompts of each category and split out of the held-out files.

    Raises:
        TrainingError: The held-out files do not hold enough prompts.
    """
    rows = []
    for split, members in split_files(files, seed).items():
        for category in CATEGORIES:
            builder = _Builder(members, count_tokens, f"{seed}/{split}/{category}")
            shortest = MIN_EDIT_TOKENS if category == "edit" else MIN_TOKENS
            taken = [builder.take(category, wanted) for wanted in wanted_lengths(num_prompts, shortest)]
            # Long and short ones mixed, so that the first few of a category are a fair sample of it.
            random.Random(f"{seed}/order").shuffle(taken)
            rows += [PromptRow(f"{category}-{split}-{i:02d}", category, split, *one) for i, one in enumerate(taken)]
    return rows


def write_workload(rows: list[PromptRow], path: Path) -> None:
    """Write one JSON line a prompt."""
    path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows), encoding="utf-8")
