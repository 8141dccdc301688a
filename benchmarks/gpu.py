"""Everything that needs a GPU, in one command of less than ten minutes: `python benchmarks/gpu.py`.

On CUDA: the five laws in float32 without TF32, operation by operation, by captured graphs and by compiled code; plain
decoding of random 1B and 8B Llama shapes in bfloat16 against the measured copy bandwidth and against transformers'
`generate`; the cost of verifying up to 128 tokens; the draft loop as one graph and token by token; a sweep over batch
sizes; the embedded pair tuned; a profile of the device. Needs the repository with torch, transformers, numpy and
scikit-learn; tuning needs optuna too and is left out without it. A section that fails is recorded and the rest goes
on; the one JSON is written after each. Without CUDA, or with `--dry-run`, everything runs with small shapes on the CPU
in about a minute, and its numbers say nothing.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, os.fspath(Path(__file__).resolve().parents[1]))  # a checkout that is not installed

import torch
from common import arguments, begin, pocket_decoder, say, write
from gpu_laws import laws
from gpu_speed import batch_sweep, draft_loop, roofline, verification

import autospec
from autospec import pocket

Section = Callable[[str, bool, float], dict[str, Any]]  # device, whether small, when to end -> results


def tuned(device: str, is_small: bool, until: float) -> dict[str, Any]:
    """Tune the embedded pair for chains; left out without optuna."""
    try:
        space, settings = autospec.SearchSpace.load("chain"), autospec.StudySettings
    except ImportError as error:
        return {"left_out": f"tuning needs what is not installed: {error}"}
    workload = autospec.load_workload(
        autospec.WorkloadSource(
            pocket.workload_path(),
            name="pocket",
            max_prompts_per_category=2 if is_small else None,
            max_new_tokens=8 if is_small else 48,
        )
    )
    few = {"trials": 2, "prompts_per_trial": 2, "finalists": 1, "finalist_prompts": 2, "guided": False}
    minutes = max(0.1, (until - time.monotonic()) / 60)
    with tempfile.TemporaryDirectory() as folder:
        result = autospec.tune(
            pocket_decoder(device),
            workload,
            space,
            output_dir=Path(folder),
            settings=settings(minutes=minutes, **(few if is_small else {})),
        )
        return result.to_json() | {"policy": result.policy.to_json()}


def profiled(device: str, is_small: bool, until: float) -> dict[str, Any]:
    """Profile the device with the embedded pair."""
    budget = max(1.0, until - time.monotonic())
    small = {"contexts": (64,), "max_tokens": 16, "draft_lengths": (1, 2), "widths": (), "batch_sizes": ()}
    settings = autospec.ProfileSettings(budget_seconds=budget, **(small if is_small else {}))
    return autospec.profile(pocket_decoder(device), settings=settings).to_json()


SECTIONS: dict[str, tuple[Section, float]] = {  # and seconds that each may take
    "laws": (laws, 150.0),
    "roofline_1b": (lambda *where: roofline("1B", *where), 40.0),
    "roofline_8b": (lambda *where: roofline("8B", *where), 70.0),
    "verification": (verification, 30.0),
    "draft_loop": (draft_loop, 30.0),
    "batch_sweep": (batch_sweep, 60.0),
    "tuned": (tuned, 120.0),
    "profile": (profiled, 60.0),
}
SMALL_SECONDS = {"laws": 25.0, "tuned": 6.0, "profile": 3.0}


def run_section(name: str, device: str, is_small: bool) -> dict[str, Any]:
    """Run one section; an error becomes its result."""
    section, budget = SECTIONS[name]
    budget = SMALL_SECONDS.get(name, 5.0) if is_small else budget
    say(f"{name} (about {budget:.0f} s)")
    started = time.monotonic()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try:
        result = section(device, is_small, started + budget)
    except Exception as error:  # the other sections are worth having
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {error}"}
    result["section_seconds"] = time.monotonic() - started
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    return result


def main() -> int:
    """Run the sections; return 1 where one failed or a law does not hold."""
    parser = arguments(__doc__, "gpu")
    parser.add_argument("--dry-run", action="store_true", help="small shapes on the CPU")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    options: argparse.Namespace = parser.parse_args()
    is_small = options.dry_run or not torch.cuda.is_available()
    device = "cpu" if is_small else "cuda"
    started = time.monotonic()
    document = begin(options, device, "bfloat16") | {"is_dry_run": is_small, "sections": {}}
    for name in options.sections:
        document["sections"][name] = run_section(name, device, is_small)
        document["minutes"] = (time.monotonic() - started) / 60
        write(document, options.out)
    failed = [name for name, result in document["sections"].items() if "error" in result]
    failed += ["laws"] * (document["sections"].get("laws", {}).get("hold") is False)
    say(f"{document['minutes']:.1f} minutes; {'failed: ' + ', '.join(failed) if failed else 'all sections ran'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
