"""`tune`: from models, prompts and a space to a policy. Checks what was asked for, and makes a task of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from autospec.profiling import device_fingerprint
from autospec.records import Workload
from autospec.runners import check_prompts, check_references, make_scorer
from autospec.tuning.events import NullTracker, OnEvent, Tracker, ignore
from autospec.tuning.result import TuningResult
from autospec.tuning.run import run_task
from autospec.tuning.settings import StudySettings
from autospec.tuning.space import SearchSpace
from autospec.tuning.task import Task

if TYPE_CHECKING:
    from autospec.engine.decoder import SpeculativeDecoder
    from autospec.profiling import HardwareProfile, ThreadChoice
    from autospec.tuning.preparing import Preparation


def tune(  # noqa: PLR0913  (the public contract)
    decoder: SpeculativeDecoder,
    workload: Workload,
    space: SearchSpace,
    *,
    output_dir: Path,
    settings: StudySettings | None = None,
    tracker: Tracker | None = None,
    on_event: OnEvent = ignore,
    command: str = "autospec.tune",
    hardware: HardwareProfile | Path | None = None,
    threads: ThreadChoice | None = None,
) -> TuningResult:
    """Find the fastest policy for a workload on this machine, and write it with its evidence.

    Writes `policy.json`, `result.json`, `measurements.jsonl` and `study.journal`. A folder that a killed or
    interrupted run of the same task left is gone on with: nothing is lost or measured twice. Ctrl-C ends a run with
    the best that is known: the result then has `stop_reason` `interrupted` and is not `finished`.

    Args:
        decoder: The models.
        workload: Prompts to tune on and to confirm on.
        space: What may be tried.
        output_dir: A folder of its own; made where it is missing.
        settings: Budget, sampler, when to stop.
        tracker: Where trials are logged; nowhere by default.
        on_event: Told what happens, as it happens.
        command: How the run was started, for the policy.
        hardware: Of a guided study, the profile to predict from, or the folder of outputs in which `profile` keeps
            those it measures; where there is none, a short one is measured.
        threads: By which numbers the number of threads of this process was chosen, for the record.

    Raises:
        ConfigError: The space does not fit the decoder, has lossy rules where no loss was named, a scorer cannot be
            had, or the folder belongs to another task or process.
        WorkloadError: Prompts do not fit the target's context, or its chat template refuses them; all are listed.
        MeasurementError: The baseline cannot be measured, or is too noisy under `strict`; a scorer raised.
    """
    from autospec.runners.live import LiveRunner  # brings torch

    check_prompts(decoder, workload)
    settings, target = settings or StudySettings(), decoder.target
    quality = settings.quality
    check_references(quality.scorer, workload)
    scorer = make_scorer(quality.scorer, quality.allow_import)
    runner = LiveRunner(decoder, workload.sampling, workload.max_new_tokens, scorer)
    if scorer is not None:
        runner.try_scorer(workload.tune[0])
    task = Task(
        decoder=decoder,
        runner=runner,
        workload=workload,
        space=space,
        settings=settings,
        output_dir=Path(output_dir),
        machine=device_fingerprint(target.device, target.dtype),
        tracker=tracker or NullTracker(),
        on_event=on_event,
        command=command,
        prepare=_preparing() if settings.guided else None,
        hardware=hardware,
        threads=threads,
    )
    return run_task(task)


def _preparing() -> Callable[..., Preparation | None]:
    from autospec.tuning.preparing import prepare  # brings torch and scikit-learn

    return prepare
