"""The pocket recipe: runs its stages in order, each of which skips itself when its result is already there.

`conf/recipe/pocket.yaml` holds the values; a run goes on where an earlier one in the same folder was stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from autospec.errors import ConfigError
from autospec.training import publish, stages
from autospec.training.settings import STAGES, PocketRecipe
from autospec.training.stages import Workspace

__all__ = ["PocketRecipe", "run_recipe"]

logger = logging.getLogger(__name__)

_STAGES: dict[str, Callable[[Workspace], bool]] = {
    "corpus": stages.make_corpus,
    "tokenizer": stages.make_tokenizer,
    "workload": stages.make_workload,
    "trunk": stages.train_trunk,
    "decay": stages.train_decay,
    "draft": stages.distil_draft,
    "evaluate": publish.evaluate,
    "export": publish.export,
}


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("`device=cuda` needs a CUDA device, but there is none")
    return torch.device(name)


def run_recipe(
    recipe: PocketRecipe, output_dir: Path, on_progress: Callable[[str], None] = logger.info
) -> dict[str, str]:
    """Run the recipe's stages in `output_dir`; return `done` or `already there` for each.

    Args:
        recipe: What to make.
        output_dir: Folder of all results; made where it is missing. The same folder resumes.
        on_progress: Told a line at a time what is going on.

    Raises:
        ConfigError: The device is not there or the folder cannot be made.
        TrainingError: A stage lacks the result of an earlier one, or its data cannot serve.
        KeyboardInterrupt: SIGINT came, or SIGTERM while training; what was trained so far is saved.
    """
    device = _device(recipe.device)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the output folder must be a folder that can be made, but {output_dir}: {error}") from error
    transformers_logging.disable_progress_bar()
    outcome = {}
    space = Workspace(recipe, output_dir, device, on_progress)
    for stage in [stage for stage in STAGES if stage in recipe.stages]:
        on_progress(f"stage {stage}")
        outcome[stage] = "done" if _STAGES[stage](space) else "already there"
        on_progress(f"stage {stage}: {outcome[stage]}")
    return outcome
