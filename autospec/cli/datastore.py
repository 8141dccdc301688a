"""`python -m autospec datastore`: makes text files into what the drafter `datastore:PATH` looks through."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from autospec.cli.build import check_models, checked_root, embedded_model
from autospec.cli.compose import Composed
from autospec.cli.console import Terminal
from autospec.cli.faults import Faults
from autospec.cli.schema import ModelSettings, typed
from autospec.clock import Clock
from autospec.errors import ConfigError
from autospec.policy import resolve_source

MAX_TOKENS = 500_000_000  # positions are 32-bit numbers, and separators need room
_PIECE_CHARS = 1 << 20  # files are given to the tokenizer in pieces of whole lines


@dataclass(frozen=True, slots=True)
class DatastoreSettings:
    """Settings of `datastore`; see `conf/datastore.yaml`."""

    model: ModelSettings | None = None
    paths: tuple[str, ...] = ()
    output: str | None = None
    max_tokens: int = 10_000_000
    output_root: str = "outputs"

    def __post_init__(self) -> None:
        if not 1 <= self.max_tokens <= MAX_TOKENS:
            raise ConfigError(f"`1 <= max_tokens <= {MAX_TOKENS}` must hold, but got {self.max_tokens}")


@dataclass(slots=True)
class _Texts:
    """Token ids of files, read one by one as they are asked for.

    Args:
        files: What to read.
        encode: Text to token ids.
        num_read: Files that were text.
        left_out: Files that were not.
    """

    files: Sequence[Path]
    encode: Callable[[str], list[int]]
    num_read: int = 0
    left_out: list[Path] = field(default_factory=list)

    def __iter__(self) -> Iterator[list[int]]:
        for path in self.files:
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                self.left_out.append(path)
                continue
            self.num_read += 1
            yield from map(self.encode, pieces(text, _PIECE_CHARS))


def run(composed: Composed) -> int:
    """Read the files, write the datastore, and say what it holds."""
    faults = Faults(composed.faults)
    settings = typed(DatastoreSettings, composed.values, faults.found)
    assert settings is not None
    model = replace(settings.model or embedded_model("datastore"), drafters={})
    check_models(model, faults)
    files = [file for path in settings.paths for file in faults.attempt(partial(text_files, path), "paths") or ()]
    output = faults.attempt(lambda: _output(settings))
    if not files and not any("`paths`" in fault for fault in faults.found):
        faults.found.append(f"`paths` must hold at least one file, but got {list(settings.paths)}")
    faults.raise_if_any()
    assert output is not None
    with Terminal() as terminal:
        terminal.lines(_build(model, files, output, settings.max_tokens))
    return 0


def _output(settings: DatastoreSettings) -> Path:
    if not settings.output:
        raise ConfigError("`output` must be given, as output=FOLDER")
    return checked_root(settings.output, "output")


def _build(model: ModelSettings, files: Sequence[Path], output: Path, max_tokens: int) -> Iterator[str]:
    """Write the datastore and yield the lines about it."""
    from autospec.engine.datastore import write_datastore
    from autospec.engine.location import locate
    from autospec.engine.text import TextCodec

    clock = Clock("cpu")
    started = clock.now()
    source = locate(resolve_source(model.tokenizer or model.target))
    revision = None if model.tokenizer else model.revision
    codec = TextCodec.load(source, revision, model.trust_remote_code)
    texts = _Texts(files, codec.encode_span)
    yield f"reading {len(files)} files"
    header = write_datastore(output, texts, codec.fingerprint(), max_tokens, 1 + max(codec.vocabulary().values()))
    size = sum(file.stat().st_size for file in output.iterdir() if file.is_file())
    yield f"{header.num_tokens:,} tokens of {texts.num_read} files, {size / 1e6:.1f} MB, {clock.now() - started:.1f} s"
    if header.num_tokens == max_tokens:
        yield f"full: what came behind {max_tokens:,} tokens was left out; max_tokens=N takes more"
    if texts.left_out:
        yield f"{len(texts.left_out)} files left out, which are no UTF-8 text: {texts.left_out[0]} and so on"
    yield f"use it with model.drafters.datastore=datastore:{output}"


def text_files(path: str) -> list[Path]:
    """Return a file, or all files below a folder in order of their names, hidden ones left out.

    Raises:
        ConfigError: It is not there.
    """
    root = Path(path).expanduser()
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise ConfigError(f"a path must be a file or folder, but `{path}` is not there")
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(folder, name) for name in sorted(names) if not name.startswith(".")]
    return found


def pieces(text: str, num_chars: int) -> Iterator[str]:
    """Yield a text in pieces of whole lines, each as long as it can be within `num_chars`, or one line."""
    piece, size = list[str](), 0
    for line in text.splitlines(keepends=True):
        if piece and size + len(line) > num_chars:
            yield "".join(piece)
            piece, size = [], 0
        piece.append(line)
        size += len(line)
    if piece:
        yield "".join(piece)
