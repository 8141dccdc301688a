"""What the benchmark commands share: the embedded pair and its prompts, random models, medians, fits, files."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autospec import SpeculativeDecoder, WorkloadSource, load_workload, pocket
from autospec.clock import Clock
from autospec.engine.drafters import SmallModelDrafter
from autospec.engine.launching import CudaGraphs, Recorded

RESULTS = Path(__file__).parent / "results"
_NUM_RESAMPLES = 2000
_STEEP = 1.15  # fitted exponents of what is linear stay below


def say(line: str) -> None:
    """Write a line."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def arguments(description: str | None, name: str) -> argparse.ArgumentParser:
    """Return a parser that knows `--out`, by default `benchmarks/results/<name>.json`, and `--threads`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / f"{name}.json", help="where the JSON goes")
    parser.add_argument("--threads", type=int, default=2, help="threads of every engine, on a CPU")
    return parser


def begin(options: argparse.Namespace, device: str = "cpu", dtype: str = "float32") -> dict[str, Any]:
    """Set threads and precision; return the head of a document: the machine, and how busy it was."""
    from autospec.profiling import device_fingerprint

    torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    busy = [round(one, 2) for one in os.getloadavg()] if hasattr(os, "getloadavg") else None
    try:
        machine: dict[str, Any] = dict(device_fingerprint(device, dtype))
    except ImportError as error:  # psutil, which tells the memory of a CPU
        machine = {"device_kind": device, "dtype": dtype, "unknown": str(error)}
    return {"machine": machine, "load_average_before": busy}


def write(document: Mapping[str, Any], path: Path) -> None:
    """Write a document whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    waiting = path.with_name(path.name + ".part")
    waiting.write_text(json.dumps(document, indent=1, default=str) + "\n", encoding="utf-8")
    waiting.replace(path)


def pocket_decoder(
    device: str = "cpu", dtype: str = "float32", compile: bool = False, **others: str
) -> SpeculativeDecoder:
    """Return the embedded target with `draft`, `ngram` and other drafters, name to source."""
    sources = {"draft": str(pocket.draft_path()), "ngram": "ngram", **others}
    return SpeculativeDecoder.from_pretrained(
        pocket.target_path(), sources, device=device, dtype=dtype, compile=compile
    )


def in_form(decoder: SpeculativeDecoder, form: str) -> SpeculativeDecoder:
    """Say how the models of a new decoder run; compiled ones are loaded so.

    Args:
        decoder: That has decoded nothing yet.
        form: `eager` runs every operation by itself, `graphs` launches them together: captured on CUDA; elsewhere
            recorded, which says nothing about time. `compiled` is left as it is.
    """
    models = [decoder.target]
    models += [drafter.model for drafter in decoder.drafters.values() if isinstance(drafter, SmallModelDrafter)]
    for model in models if form != "compiled" else ():
        captures = CudaGraphs(model.device) if model.device.type == "cuda" else Recorded()
        model.launch_by(captures if form == "graphs" else None)
    return decoder


def pocket_prompts(decoder: SpeculativeDecoder, split: str, num_prompts: int) -> list[list[int]]:
    """Return rendered prompts of the embedded workload, as many of each category; `split` is tune or held_out."""
    workload = load_workload(WorkloadSource(pocket.workload_path(), name="pocket"))
    return [decoder.render(prompt) for prompt in getattr(workload, split)[:num_prompts]]


def random_llama(device: str, dtype: torch.dtype, vocab_size: int, **shape: Any) -> Any:
    """Return a Llama of random weights, made on the device; `shape` as in its configuration."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab_size, bos_token_id=None, eos_token_id=None, pad_token_id=None, torch_dtype=dtype, **shape
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device), torch.random.fork_rng():
            torch.manual_seed(0)
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return model.eval().requires_grad_(False)


def random_text(length: int, vocab_size: int, seed: int = 0) -> list[int]:
    """Return tokens that are drawn; none below 1."""
    return [int(one) for one in np.random.default_rng(seed).integers(1, vocab_size, length)]


def median_seconds(call: Callable[[], Any], clock: Clock, repeats: int, warm_ups: int = 2) -> float:
    """Return how long a call takes, warmed up."""
    for _ in range(warm_ups):
        call()
    seconds = []
    for _ in range(repeats):
        started = clock.now()
        call()
        seconds.append(clock.now() - started)
    return statistics.median(seconds)


def slope(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Return the exponent of a power law through the points, by least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(seconds, 1e-9)), 1)[0])


def growth(what: str, sizes: Sequence[float], seconds: Sequence[float], bound: float = 1.0) -> dict[str, Any]:
    """Return points with the exponents fitted to all and to the larger half, and a sentence.

    Args:
        what: Is measured against what, for the sentence.
        sizes: Ascending.
        seconds: Of each.
        bound: Exponent that is no surprise.
    """
    half = len(sizes) // 2 if len(sizes) > 3 else 0
    late = slope(sizes[half:], seconds[half:])
    verdict = f"superlinear, exponent {late:.2f} from {sizes[half]:g} to {sizes[-1]:g}"
    if late <= bound * _STEEP:
        verdict = f"not superlinear, exponent {late:.2f} from {sizes[half]:g} to {sizes[-1]:g}"
    say(f"{what}: {verdict}")
    return {
        "sizes": list(sizes),
        "seconds": list(seconds),
        "exponent": slope(sizes, seconds),
        "exponent_of_larger_half": late,
        "sentence": f"{what}: {verdict}",
    }


def interval(compute: Callable[[np.ndarray], float], num_units: int, seed: int = 0) -> dict[str, float | None]:
    """Return a value with its percentile bootstrap 95 % interval over units.

    Args:
        compute: Takes indices of units, drawn with replacement.
        num_units: How many there are; one says nothing about others, so there is no upper end.
        seed: Of the draws.
    """
    value = compute(np.arange(num_units))
    if num_units < 2:
        return {"value": value, "low": 0.0, "high": None}
    numbers = np.random.default_rng(seed)
    drawn = [compute(numbers.integers(0, num_units, num_units)) for _ in range(_NUM_RESAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"value": value, "low": float(low), "high": float(high)}


def shown(estimate: Mapping[str, float | None], digits: int = 2) -> str:
    """Return a value with its interval for a line."""
    value, low, high = (estimate[key] for key in ("value", "low", "high"))
    upper = "?" if high is None else f"{high:.{digits}f}"
    return f"{value:.{digits}f} [{low:.{digits}f}, {upper}]"
