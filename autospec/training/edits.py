"""Edited copies of code: a block, a comment that says what changed, and the block with one name changed.

The form serves the corpus (so that the model learns to copy) and the `edit` workload (where copying is the job).
"""

from __future__ import annotations

import ast
import builtins
import keyword
import random
import re
from dataclasses import dataclass

NAME = re.compile(r"\b[a-z_][a-z0-9_]{2,20}\b")
KEPT_NAMES = frozenset(keyword.kwlist) | frozenset(dir(builtins)) | {"self", "cls"}


@dataclass(frozen=True, slots=True)
class Edit:
    """A block of code and its copy in which `old_name` has become `new_name`."""

    block: str
    old_name: str
    new_name: str

    @property
    def lead(self) -> str:
        """The block and the comment that announces its edited copy."""
        return f"{self.block}\n# Edited: `{self.old_name}` is now `{self.new_name}`.\n"

    @property
    def edited(self) -> str:
        """The edited copy."""
        return re.sub(rf"\b{re.escape(self.old_name)}\b", self.new_name, self.block)


def code_blocks(text: str, min_chars: int, max_chars: int) -> list[str]:
    """Return the functions and classes of a Python file, as written, whose length is within the bounds."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return []
    lines, blocks = text.splitlines(keepends=True), []
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.end_lineno:
            block = "".join(lines[node.lineno - 1 : node.end_lineno])
            if min_chars <= len(block) <= max_chars:
                blocks.append(block if block.endswith("\n") else block + "\n")
    return blocks


def make_edit(block: str, source: random.Random) -> Edit | None:
    """Choose a name that the block uses more than once and a new one for it; None where it has no such name."""
    names = [name for name in NAME.findall(block) if name not in KEPT_NAMES]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if not repeated:
        return None
    old_name = source.choice(repeated)
    stem = source.choice(sorted({part for name in names for part in name.split("_") if len(part) > 2}) or ["value"])
    new_name = source.choice([f"{stem}_{old_name}", f"{old_name}_{stem}", f"new_{old_name}", f"{stem}_value"])
    return None if new_name in names else Edit(block, old_name, new_name)


def edit_documents(texts: list[str], share: float, seed: int) -> list[str]:
    """Make one edit document out of about `share` of the files."""
    documents = []
    for index, text in enumerate(texts):
        source = random.Random(f"{seed}/{index}")
        if source.random() >= share:
            continue
        blocks = code_blocks(text, 300, 1500)
        edit = make_edit(source.choice(blocks), source) if blocks else None
        if edit is not None:
            documents.append(edit.lead + edit.edited)
    return documents
