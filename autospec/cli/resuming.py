"""Which unfinished run `tune` goes on with: what must be the same, and what is said where it is not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import autospec
from autospec.cli.console import Terminal
from autospec.cli.runs import RunKey, config_hash, unfinished_runs
from autospec.imports import code_digest
from autospec.profiling import device_fingerprint, differences, fingerprint_hash
from autospec.records import Workload
from autospec.rules import imported_path
from autospec.sources import model_digest, tokenizer_digest
from autospec.tuning import SearchSpace
from autospec.tuning.identity import machine_of

if TYPE_CHECKING:
    from autospec.engine.decoder import SpeculativeDecoder

# What does not change what is measured, so that a run is gone on with whatever they are.
_NOT_IN_HASH = ("resume", "dry_run", "output_root", "tracking", "allow_import")
_NUM_THREADS = "num_threads"  # in a fingerprint


def run_key(decoder: SpeculativeDecoder, workload: Workload, space: SearchSpace, values: Mapping[str, Any]) -> RunKey:
    """Return what must be the same for a run to be gone on with; files count by content, not by name.

    A number of threads counts as a part of the machine, wherever it comes from.

    Args:
        decoder: The models, under the number of threads that torch has now.
        workload: What is tuned on.
        space: What may be tried.
        values: The composed configuration.
    """
    target, drafters = decoder.target, decoder.drafters
    sources = {"target": target.name, **{name: drafter.source for name, drafter in drafters.items()}}
    tokenizer = "" if decoder.text is None else decoder.text.source
    extra = {
        "version": autospec.__version__,
        "space": space.content_hash,
        "models": {name: [source, _digest(source)] for name, source in sources.items()},
        "tokenizer": [tokenizer, tokenizer_digest(tokenizer) if tokenizer else None],
    }
    counted = {**values, "threads": values.get("threads") == "auto", "files": extra}
    return RunKey(
        config_hash=config_hash(counted, without=_NOT_IN_HASH),
        workload_hash=workload.content_hash,
        device_hash=fingerprint_hash(machine_under(decoder)),
    )


def machine_under(decoder: SpeculativeDecoder) -> dict[str, str | int]:
    """Return the fingerprint of the machine that a decoder runs on, with the threads that torch has now."""
    return device_fingerprint(decoder.target.device, decoder.target.dtype)


def threads_of_run(folder: Path, here: Mapping[str, str | int]) -> int | None:
    """Return the number of threads that a run was begun with; None where it cannot be gone on with on this machine.

    Args:
        folder: Of the run.
        here: Fingerprint of this machine, under whatever number of threads.
    """
    before = machine_of(folder)
    if before is None or {**before, _NUM_THREADS: 0} != {**here, _NUM_THREADS: 0}:
        return None
    num_threads = before.get(_NUM_THREADS)
    return num_threads if isinstance(num_threads, int) else None


def tell_left(root: Path, key: RunKey, folder: Path, here: Mapping[str, str | int], terminal: Terminal) -> None:
    """Say which unfinished run would have been gone on with, were the machine or its threads the same.

    Args:
        root: The folder of all outputs.
        key: Of the run that begins.
        folder: Where it is written to.
        here: Fingerprint of this machine.
        terminal: Told so.
    """
    for left in unfinished_runs(root, "tune", key.of_any_device):
        before = machine_of(left)
        if left == folder or before is None:
            continue
        num_threads = threads_of_run(left, here)
        hint = "" if num_threads is None else f"; threads={num_threads} goes on with it"
        changed = ", ".join(differences(before, here))
        terminal.line(f"the unfinished run in {left} stays as it is, because the machine is another: {changed}{hint}")
        return


def _digest(source: str) -> str | None:
    path = imported_path(source)
    return code_digest(path) if path else model_digest(source)
