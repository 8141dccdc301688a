"""Where a model is: a local folder, the local cache, or a hub that answers. Loads nothing."""

from __future__ import annotations

import threading
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from autospec.errors import ModelError

REACH_SECONDS = 4.0
# Files of which a tokenizer in a checkpoint has at least one, whatever its kind.
TOKENIZER_FILES = ("*token*", "vocab*", "merges*", "tekken*", "*.model")


def locate(source: str) -> str:
    """Return where transformers shall look for a model: a local folder, or the hub id unchanged.

    Raises:
        ModelError: A path that does not exist, or an id that is neither cached nor reachable.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return str(path)
    if path.exists() or looks_like_path(source):
        raise ModelError(
            f"a model path must be an existing folder, but `{source}` is {'a file' if path.exists() else 'not there'}"
        )
    if not _is_cached(source):
        _check_reachable(source)
    return source


def looks_like_path(source: str) -> bool:
    """Tell a path from a hub id, which is `name` or `organisation/name`."""
    return source.startswith((".", "/", "~")) or "\\" in source or source.count("/") > 1 or source.endswith("/")


def _is_cached(source: str) -> bool:
    try:
        return isinstance(try_to_load_from_cache(source, "config.json"), str)
    except HFValidationError as error:
        raise ModelError(f"a model must be a folder or a hub id, but got {source!r}: {error}") from error


def _check_reachable(source: str) -> None:
    """Ask the hub once, within seconds; transformers alone would retry for half a minute."""
    failures: list[str] = []
    if constants.HF_HUB_OFFLINE:
        failures.append("HF_HUB_OFFLINE is set")
    else:

        def ask() -> None:
            try:
                urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=REACH_SECONDS).close()
            except HTTPError:
                return  # it answered
            except (URLError, TimeoutError, OSError) as error:
                failures.append(str(error) or type(error).__name__)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(REACH_SECONDS)
        if thread.is_alive():
            failures.append(f"no answer within {REACH_SECONDS:.0f} s")
    if failures:
        raise ModelError(
            f"`{source}` is no local folder and not in the local cache, and the model hub cannot be reached: "
            f"{failures[0]}"
        )
