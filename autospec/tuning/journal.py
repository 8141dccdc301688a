"""Opens the Optuna study of an output folder, also after the process that wrote it was killed.

Mends what a kill can leave: a torn last line, which the next append would make unreadable for ever, and a lock that
nobody holds, which would cost half a minute. Knows nothing of what the trials mean.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import WilcoxonPruner
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from autospec.tuning.goals import Direction
from autospec.tuning.log import cut_torn_line

MIN_PROMPTS = 4  # with fewer, no paired test can be significant
_WILCOXON_P = 0.1


def open_study(path: Path, directions: Sequence[Direction] = ("maximize",)) -> optuna.Study:
    """Open or make the study of a journal file.

    Only the holder of the measurement log may call this: then a lock of the journal has no living owner.

    Args:
        path: `study.journal` in the output folder.
        directions: Of the values of a trial.
    """
    for leftover in path.parent.glob(f"{path.name}.lock*"):
        leftover.unlink()
    cut_torn_line(path)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        pruner = WilcoxonPruner(p_threshold=_WILCOXON_P, n_startup_steps=MIN_PROMPTS)
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(os.fspath(path))),
        study_name="autospec",
        directions=list(directions),
        pruner=pruner,
        load_if_exists=True,
    )
