"""Python source files of permissively licensed packages as training text.

Finds files, drops near-copies, holds whole files out, carries the text as one file, and writes a manifest from which
the same corpus can be checked. Knows nothing of tokens or models.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import platform
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path

from autospec.errors import TrainingError

# Substrings of licence names that let the text be used and redistributed with attribution alone.
PERMISSIVE = ("MIT", "BSD", "APACHE", "PSF", "PYTHON SOFTWARE FOUNDATION", "ISC", "HPND", "ZLIB", "MATPLOTLIB")
# Folders whose files teach little: data tables, generated code, vendored copies, fixtures.
SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "testing", "encodings", "_vendor", "idlelib", "lib2to3", "turtledemo", "site-packages",
     "validators", "graph_objs", "__pycache__", "protos", "proto_files", "versions"}
)  # fmt: skip
SHINGLE_LINES = 5


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of the corpus: where it came from and what it must hash to."""

    package: str
    path: str
    sha256: str
    num_bytes: int
    held_out: bool


def licence_of(package: str) -> str:
    """Return the licence a distribution declares, in its own words.

    Raises:
        TrainingError: The distribution is not installed or its licence is not permissive.
    """
    if package == "python":
        return "PSF-2.0"
    try:
        info = metadata.metadata(package)
    except metadata.PackageNotFoundError as error:
        raise TrainingError(f"every corpus package must be installed, but `{package}` is not") from error
    named = list(info.get_all("License-Expression") or [])
    named += [
        value.split("::")[-1].strip() for value in info.get_all("Classifier") or [] if value.startswith("License")
    ]
    # Some put the whole text there, whose first line is the name.
    named += [value.strip().partition("\n")[0] for value in info.get_all("License") or []]
    for name in named:
        if any(word in name.upper() for word in PERMISSIVE) and "GPL" not in name.upper():
            return str(name)
    raise TrainingError(f"every corpus package must have a permissive licence, but `{package}` declares {named}")


def package_files(package: str) -> Iterator[tuple[str, Path]]:
    """Yield (name inside the package, path on disk) of its Python sources, sorted by name."""
    if package == "python":
        root = Path(sysconfig.get_paths()["stdlib"])
        found = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    else:
        listed = metadata.files(package) or []
        found = {file.as_posix(): Path(str(file.locate())) for file in listed if file.suffix == ".py"}
    for name in sorted(found):
        parts = Path(name).parts
        if not SKIPPED_FOLDERS.intersection(parts[:-1]) and not parts[-1].startswith(("test_", "_test_")):
            yield name, found[name]


def is_prose_like(text: str) -> bool:
    """Tell source a person would read from tables, generated code and minified text."""
    lines = text.splitlines()
    if not 10 <= len(lines) <= 6000 or not text.isascii():
        return False
    digits = sum(character.isdigit() for character in text)
    return max(map(len, lines)) <= 400 and len(text) / len(lines) <= 70 and digits <= 0.1 * len(text)


def line_windows(text: str) -> set[int]:
    """Return a hash of every run of `SHINGLE_LINES` lines, blank lines and indents left out."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return {hash("\n".join(lines[i : i + SHINGLE_LINES])) for i in range(len(lines))}


class NearCopies:
    """Remembers windows of lines, so that a file made of windows seen before can be dropped."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def share_seen(self, text: str) -> float:
        """Return which share of the file's line windows earlier files held, and remember them all."""
        windows = line_windows(text)
        share = len(windows & self._seen) / max(1, len(windows))
        self._seen |= windows
        return share


def collect(
    packages: list[str], held_out_share: float, max_package_bytes: int, seed: int
) -> list[tuple[SourceFile, str]]:
    """Read the usable files of the packages, in a fixed order, near-copies dropped.

    Args:
        packages: Distribution names; ``python`` stands for the standard library.
        held_out_share: Share of files that are never trained on.
        max_package_bytes: Most text taken from one package, so that no package sets the style alone.
        seed: Decides the order of files and which are held out, by their names alone.

    Raises:
        TrainingError: A package is missing, not permissive, or nothing usable was found.
    """
    copies, collected = NearCopies(), []
    for package in packages:
        licence_of(package)
        room = max_package_bytes
        draws = {name: random.Random(f"{seed}/{package}/{name}") for name, _ in package_files(package)}
        for name, path in sorted(package_files(package), key=lambda file: draws[file[0]].random()):
            raw = path.read_bytes() if path.is_file() else b""
            text = raw.decode("utf-8", errors="replace").replace("\r\n", "\n").expandtabs(4)
            if not is_prose_like(text) or copies.share_seen(text) > 0.5:
                continue
            if (room := room - len(text)) < 0:
                break
            digest, held_out = hashlib.sha256(raw).hexdigest(), draws[name].random() < held_out_share
            collected.append((SourceFile(package, name, digest, len(raw), held_out), text))
    if not collected:
        raise TrainingError(f"a corpus needs at least one usable file, but {packages} hold none")
    return collected


def unseen_files(files: list[tuple[SourceFile, str]], max_share: float = 0.05) -> list[tuple[SourceFile, str]]:
    """Return the held-out files of whose line windows at most `max_share` also stand in a file trained on.

    `collect` lets a file keep up to half of another's lines; what is measured on held-out text must not be recalled.
    """
    held_out = [(file, text, line_windows(text)) for file, text in files if file.held_out]
    wanted: set[int] = set().union(*(windows for _, _, windows in held_out))
    trained: set[int] = set()
    for file, text in files:
        if not file.held_out:
            trained |= line_windows(text) & wanted
    return [(file, text) for file, text, windows in held_out if len(windows & trained) <= max_share * len(windows)]


def write_corpus(files: list[tuple[SourceFile, str]], path: Path) -> None:
    """Write all text as one compressed file, a JSON line for each source file."""
    partial = path.with_name(path.name + ".partial")
    with gzip.open(partial, "wt", encoding="utf-8", compresslevel=6) as stream:
        for file, text in files:
            stream.write(json.dumps({**asdict(file), "text": text}) + "\n")
    partial.replace(path)


def read_corpus(path: Path) -> list[tuple[SourceFile, str]]:
    """Read what `write_corpus` wrote."""
    files = []
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        for line in stream:
            values = json.loads(line)
            text = values.pop("text")
            files.append((SourceFile(**values), text))
    return files


def package_table(files: list[SourceFile]) -> list[dict[str, str | int]]:
    """Return a row for each package: name, version, licence, files and bytes taken from it."""
    rows: list[dict[str, str | int]] = []
    for package in dict.fromkeys(file.package for file in files):
        taken = [file.num_bytes for file in files if file.package == package]
        version = platform.python_version() if package == "python" else metadata.version(package)
        row: dict[str, str | int] = {"package": package, "version": version, "licence": licence_of(package)}
        rows.append(row | {"num_files": len(taken), "num_bytes": sum(taken)})
    return rows


def write_manifest(files: list[SourceFile], path: Path) -> None:
    """Write packages and files with their sha256, so that another machine's corpus can be checked against it.

    Compressed column by column, because that is half the size of a JSON line for each file.
    """
    columns = {field.name: [getattr(file, field.name) for file in files] for field in fields(SourceFile)}
    text = json.dumps({"packages": package_table(files), "files": columns})
    path.write_bytes(lzma.compress(text.encode()))


def read_packages(path: Path) -> list[dict[str, str | int]]:
    """Read the rows of `package_table` that `write_manifest` wrote down."""
    packages: list[dict[str, str | int]] = json.loads(lzma.decompress(path.read_bytes()))["packages"]
    return packages
