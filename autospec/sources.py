"""Where models come from: names that mean the same on every machine, and what identifies their files.

Knows the embedded model family by name only; loads no model.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autospec import pocket
from autospec.errors import ConfigError
from autospec.rules import DRAFTER_KINDS, OBJECT_PREFIX, model_named, split_source

if TYPE_CHECKING:
    from autospec.engine.drafters import Drafter
    from autospec.engine.model import CausalLM

POCKET_PREFIX = "pocket/"
_WEIGHTS = ("*.safetensors", "*.bin")
_SAMPLE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model, drafter or tokenizer comes from.

    Args:
        source: Hub id, path, `pocket/target`, `pocket/draft`, or a kind of drafter such as `ngram`, which may be
            followed by a colon and any of the former.
        revision: Revision of a hub id.
        digest: What identified the files of a local model when it was recorded; see `model_digest`.
    """

    source: str
    revision: str | None = None
    digest: str | None = None


def _pocket_paths() -> dict[str, Path]:
    return {f"{POCKET_PREFIX}target": pocket.target_path(), f"{POCKET_PREFIX}draft": pocket.draft_path()}


def resolve_source(source: str) -> str:
    """Return what the engine loads: `pocket/target` and `pocket/draft` become paths, all else stays as it is.

    In a source `kind:path` this is done to the path.

    Raises:
        ConfigError: The name begins with `pocket/` but is neither of the embedded models nor an existing path.
    """
    kind, path = split_source(source)
    if kind:
        return f"{kind}:{resolve_source(path)}" if path else kind
    if not source.startswith(POCKET_PREFIX) or Path(source).exists():
        return source
    paths = _pocket_paths()
    if source not in paths:
        raise ConfigError(f"the embedded models are {list(paths)}, but got {source!r}")
    return str(paths[source])


def portable_source(source: str) -> str:
    """Return what finds a model from anywhere.

    That is `pocket/target` or `pocket/draft` for an embedded model, the absolute path of another local folder, and a
    hub id as it is; in a source `kind:path` the same for the path, and the absolute path of a file of data.
    """
    kind, path = split_source(source)
    if kind and _is_data(source):
        return f"{kind}:{Path(path).expanduser().resolve()}"
    if kind and path and not model_named(source):
        return source
    if kind:
        return f"{kind}:{portable_source(path)}" if path else kind
    if not Path(source).is_dir():
        return source
    here = Path(source).resolve()
    return next((name for name, path in _pocket_paths().items() if path.resolve() == here), str(here))


def tokenizer_digest(source: str) -> str | None:
    """Return what identifies the tokenizer files of a local folder, or None where the source is not one.

    Sixteen hexadecimal digits over names and contents.
    """
    from autospec.engine.location import TOKENIZER_FILES

    folder = Path(resolve_source(source))
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted({path for pattern in TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()}):
        digest.update(f"{path.name}:{path.stat().st_size}".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _is_data(source: str) -> bool:
    kind, path = split_source(source)
    return bool(path) and kind in DRAFTER_KINDS and DRAFTER_KINDS[kind].reads_data


def _data_digest(path: Path) -> str | None:
    if not path.exists():
        return None
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.json")) if path.is_dir() else [path]:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def model_digest(source: str) -> str | None:
    """Return what identifies the files of a local model, or None where the source is not a local folder.

    Sixteen hexadecimal digits over `config.json` and, of every weight file, name, size and one MiB of its beginning,
    middle and end: retrained weights are noticed, and a model of many gigabytes still takes milliseconds. Of a
    drafter's data it is over the file, or the headers of its folder, which tell of the rest.
    """
    if _is_data(source):
        return _data_digest(Path(split_source(source)[1]).expanduser())
    place = model_named(source)
    folder = Path(resolve_source(place))
    if not place or not folder.is_dir():
        return None
    digest = hashlib.sha256()
    config = folder / "config.json"
    if config.is_file():
        digest.update(config.read_bytes())
    for path in sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern)):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with path.open("rb") as file:
            for start in sorted({0, max(0, (size - _SAMPLE_BYTES) // 2), max(0, size - _SAMPLE_BYTES)}):
                file.seek(start)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def drafter_source(drafter: Drafter) -> ModelSource:
    """Return where a drafter came from.

    What follows a kind is not pinned to a commit. An object of one's own has no source that would make it again, and
    `object:` before what it calls itself says so; a factory of one's own has.
    """
    source = drafter.source
    if split_source(source)[0]:
        return ModelSource(portable_source(source), digest=model_digest(source))
    model = getattr(drafter, "model", None)
    if model is None or getattr(model, "name", None) != source:
        return ModelSource(OBJECT_PREFIX + source)
    return loaded_source(source, model)


def loaded_source(source: str, model: CausalLM) -> ModelSource:
    """Return where a loaded model came from; a hub id is pinned to the commit that was loaded, where that is known.

    Args:
        source: As it was given when it was loaded.
        model: What was loaded.
    """
    revision = model.revision or getattr(model.model.config, "_commit_hash", None)
    return ModelSource(portable_source(source), revision, model_digest(source))
