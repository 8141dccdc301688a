"""Settings -> plain objects: workloads, models, configurations. What the commands share of the wiring."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autospec.cli.compose import compose_values, near
from autospec.cli.faults import Faults
from autospec.cli.schema import ModelSettings, typed
from autospec.config import SpecConfig
from autospec.errors import ConfigError
from autospec.imports import import_callable
from autospec.pocket import workload_path
from autospec.records import Workload
from autospec.rules import DRAFTER_KINDS, imported_path, model_named, split_source
from autospec.runners import check_prompts
from autospec.sources import POCKET_PREFIX, resolve_source
from autospec.workloads import CountTokens, WorkloadSource, load_workload

if TYPE_CHECKING:
    from autospec.engine.decoder import SpeculativeDecoder
    from autospec.runners import Runner

POCKET_WORKLOAD = "pocket/workload"


def read_workload(source: WorkloadSource, count_tokens: CountTokens | None = None) -> Workload:
    """Read a workload; `pocket/workload` is the embedded one, `~` the home folder.

    Args:
        source: Where it is.
        count_tokens: For `max_prompt_tokens`; see `load_workload`.

    Raises:
        WorkloadError: It cannot be read or holds no usable prompt.
        ConfigError: It has no such category.
    """
    held_out = source.held_out_path
    return load_workload(
        replace(source, path=_located(source.path), held_out_path=None if held_out is None else _located(held_out)),
        count_tokens,
    )


def fit_workload(workload: Workload, source: WorkloadSource, decoder: SpeculativeDecoder) -> Workload:
    """Return a workload that a decoder can take.

    Where `max_prompt_tokens` is given, it is read again without longer prompts and without those that do not fit.

    Args:
        workload: As it was read before the decoder was loaded.
        source: Where it was read.
        decoder: The models.

    Raises:
        WorkloadError: Prompts do not fit the target, or too few are left.
    """
    if source.max_prompt_tokens is not None:
        room = decoder.target.usable_length - source.max_new_tokens
        limit = min(source.max_prompt_tokens, max(1, room))
        workload = read_workload(replace(source, max_prompt_tokens=limit), lambda prompt: len(decoder.render(prompt)))
    check_prompts(decoder, workload)
    return workload


def _located(path: str | Path) -> Path:
    return workload_path() if str(path) == POCKET_WORKLOAD else Path(path).expanduser()


def embedded_model(command: str) -> ModelSettings:
    """Return the settings of the embedded family, for commands that choose models only where none are named."""
    faults: list[str] = []
    model = typed(ModelSettings, compose_values(command, ["model=pocket"]).values["model"], faults, "model")
    assert model is not None, faults
    assert not faults, faults
    return model


def check_models(model: ModelSettings, faults: Faults, allow_import: Collection[str] = ()) -> None:
    """Look for every model without loading it; all that are missing become faults.

    A hub that cannot be reached is asked once, so that the answer comes within seconds. Factories of drafters are
    imported, where that is allowed.
    """
    quieten(_sources(model).values())
    from autospec.engine.location import locate, looks_like_path

    if not model.target:
        faults.found.append(
            "`model.target` must be given where settings of `model` are, or a choice such as model=pocket"
        )
    if model.compile:
        _check_compiler(model.device, faults)
    hub_failed = False
    for name, source in model.named_drafters.items():
        faults.attempt(partial(_check_data, source), f"model.drafters.{name}")
        faults.attempt(partial(_check_import, source, allow_import), f"model.drafters.{name}")
    for where, source in _sources(model).items():
        location = faults.attempt(partial(resolve_source, source), where)
        if location is None or (hub_failed and not looks_like_path(location)):
            continue
        if faults.attempt(partial(locate, location), where) is None:
            hub_failed = hub_failed or not looks_like_path(location)


def _sources(model: ModelSettings) -> dict[str, str]:
    """Return every model by the name of its setting; drafters that are built in have none."""
    named = {"model.target": model.target, "model.tokenizer": model.tokenizer or ""}
    for name, source in model.named_drafters.items():
        named[f"model.drafters.{name}"] = model_named(source)
    return {name: source for name, source in named.items() if source}


def _check_data(source: str) -> None:
    kind, path = split_source(source)
    if kind and DRAFTER_KINDS[kind].reads_data and path and not Path(path).expanduser().exists():
        raise ConfigError(f"what a drafter of kind {kind!r} reads must be a file or folder, but `{path}` is not there")


def _check_compiler(device: str, faults: Faults) -> None:
    from autospec.engine.device import resolve_device

    where = faults.attempt(partial(resolve_device, device), "model.device")
    compiler = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    if where is not None and where.type == "cpu" and shutil.which(compiler) is None:
        faults.found.append(
            "`model.compile`: compiling for a CPU needs a C++ compiler, "
            f"but `{compiler}` is not there (CXX names another)"
        )


def _check_import(source: str, allow_import: Collection[str]) -> None:
    if path := imported_path(source):
        let_import(allow_import)
        import_callable(path, allow_import)


def let_import(allow_import: Collection[str]) -> None:
    """Where something may be imported, look for it in the working folder too, however the command was started."""
    if allow_import and not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())


def quieten(sources: Iterable[str]) -> None:
    """Turn off the progress bars of loading where all files are local; must come before the first import."""
    if all(source.startswith(POCKET_PREFIX) or Path(source).expanduser().is_dir() for source in sources):
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def load_decoder(model: ModelSettings, allow_import: Collection[str] = ()) -> SpeculativeDecoder:
    """Load the models.

    Args:
        model: Which.
        allow_import: Modules whose code may make drafters.

    Raises:
        ModelError: One cannot be loaded or used.
    """
    quieten(_sources(model).values())
    from autospec.engine.decoder import SpeculativeDecoder

    return SpeculativeDecoder.from_pretrained(
        target=resolve_source(model.target),
        drafters={name: resolve_source(source) for name, source in model.named_drafters.items()},
        tokenizer=None if model.tokenizer is None else resolve_source(model.tokenizer),
        device=model.device,
        dtype=model.dtype,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        compile=model.compile,
        allow_import=allow_import,
    )


def make_runner(decoder: SpeculativeDecoder, workload: Workload) -> Runner:
    """Return what measures a decoder under the decoding settings of a workload."""
    from autospec.runners import LiveRunner

    return LiveRunner(decoder, workload.sampling, workload.max_new_tokens)


def spec_config(value: Any) -> SpecConfig:
    """Return the configuration that a command line or YAML file writes: `off`, or a table of fields.

    Raises:
        ConfigError: It is neither, or the fields cannot work.
    """
    if value in ("off", False, None):  # YAML reads a bare off as false
        return SpecConfig()
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"a configuration is off or a table such as {{drafter:draft,draft_length:4}}, but got {value!r}"
        )
    return SpecConfig.from_json(value)


def check_configs(configs: Iterable[SpecConfig], model: ModelSettings, faults: Faults) -> None:
    """Look for the drafter of every configuration among those of the model; unknown ones become faults."""
    known = sorted(model.named_drafters)
    for name in dict.fromkeys(name for config in configs for name in config.drafter_names):
        if name not in known:
            faults.found.append(f"`drafter` must be one of {known}, but got {name!r}{near(name, known)}")


def checked_root(root: str, setting: str = "output_root") -> Path:
    """Return a folder for outputs as an absolute path; refuse one that could not be made, without making it.

    Args:
        root: As it was given.
        setting: Where.

    Raises:
        ConfigError: Its nearest existing parent is no folder, or nothing can be written there.
    """
    path = Path(root).expanduser().absolute()
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    if not existing.is_dir():
        raise ConfigError(f"`{setting}` must be a folder or possible to make, but {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"`{setting}` must be in a folder that can be written to, but {existing} cannot")
    return path
