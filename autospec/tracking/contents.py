"""What a study becomes in MLflow: tags, parameters and metrics. Imports nothing of it."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import autospec
from autospec.comparison import Estimate
from autospec.records import Measurement
from autospec.yardsticks import LATENCY, SPEED

if TYPE_CHECKING:
    from autospec.policy import Quality
    from autospec.tuning.events import StudyPlan, TrialReport
    from autospec.tuning.result import TuningResult


def _commit() -> str:
    """Return the commit of this checkout, marked where it was changed; empty when installed from a package."""
    root = Path(autospec.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def study_tags(plan: StudyPlan) -> dict[str, str]:
    """Return the tags of a study's run and of its trials."""
    return {
        "autospec.device": str(plan.fingerprint.get("device_name", plan.device)),
        "autospec.target": plan.target,
        "autospec.drafters": json.dumps(dict(plan.drafters), sort_keys=True),
        "autospec.workload": plan.workload,
        "autospec.commit": _commit(),
    }


def study_params(plan: StudyPlan) -> dict[str, Any]:
    """Return the parameters of a study's run."""
    return {
        "target": plan.target,
        "dtype": plan.dtype,
        "compile": plan.compile,
        "workload": plan.workload,
        "workload_hash": plan.workload_hash,
        "categories": " ".join(plan.categories),
        "decoding": plan.decoding,
        "max_new_tokens": plan.max_new_tokens,
        "space_size": plan.space_size,
        **plan.settings.to_json(),
        **{f"device.{name}": value for name, value in plan.fingerprint.items()},
    }


def prompt_metrics(measurement: Measurement) -> dict[str, float]:
    """Return the metrics of one measured prompt, a step of a trial."""
    return {
        "log_speedup": measurement.log_speedup,
        "seconds": measurement.seconds,
        "baseline_seconds": measurement.baseline_seconds,
        "prompt_tokens_per_second": measurement.num_tokens / measurement.seconds,
        "acceptance_rate": measurement.stats.acceptance_rate,
        "tokens_per_step": measurement.stats.tokens_per_step,
        **({} if measurement.quality is None else {"loss": measurement.quality.loss}),
        **({"log_latency_ratio": measurement.log_latency_ratio} if measurement.has_gaps else {}),
        **({"footprint_bytes": float(measurement.footprint_bytes)} if measurement.footprint_bytes else {}),
    }


def _estimate_metrics(estimate: Estimate, name: str = SPEED.name) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def trial_metrics(report: TrialReport) -> dict[str, float]:
    """Return the metrics of a trial."""
    return {
        "tokens_per_second": report.tokens_per_second,
        "baseline_tokens_per_second": report.baseline_tokens_per_second,
        "num_measurements": float(len(report.measurements)),
        **{
            key: value for name, one in report.estimates.items() for key, value in _estimate_metrics(one, name).items()
        },
        **_quality_metrics(report.quality),
    }


def best_metrics(report: TrialReport) -> dict[str, float]:
    """Return the best so far, by what decides."""
    return {f"best_{report.yardstick.name}": report.best_ratio}


def _quality_metrics(quality: Quality | None) -> dict[str, float]:
    """Return what a lossy rule loses, and the bounds on it; nothing for lossless rules."""
    bounds = {} if quality is None else {name: getattr(quality, name) for name in ("loss", "agreement", "score_drop")}
    known = {name: bound for name, bound in bounds.items() if bound is not None}
    means = {f"mean_{name}": bound.value for name, bound in known.items()}
    return means | {f"{name}_bound": bound.bound for name, bound in known.items()}


def result_metrics(result: TuningResult) -> dict[str, float]:
    """Return the held-out figures, of all categories without a prefix and of each with its name before it."""
    metrics = {
        **_estimate_metrics(result.speedup),
        **_estimate_metrics(result.by(LATENCY).ratio, LATENCY.name),
        "decode_speedup": result.decode_speedup.value,
        "tokens_per_second": result.throughput.tokens_per_second,
        "baseline_tokens_per_second": result.throughput.baseline_tokens_per_second,
        "noise_floor": result.noise_floor,
        **_quality_metrics(result.quality),
    }
    for category, estimate in result.categories.items():
        allowed = re.sub(r"[^\w. /-]", "_", category)
        metrics |= {f"{allowed}.{name}": value for name, value in _estimate_metrics(estimate).items()}
    return metrics
