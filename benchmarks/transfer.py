"""Policies for other machines from one trace: `python benchmarks/transfer.py [NUMBER_OF_A_SETTING]`.

Records the embedded pair once, in float32 with all threads, one prompt at a time. For each setting (threads, data
type, prompts side by side), in a process of its own, a profile is measured there, the best of the space `chain` and of
`benchmarks/grid.yaml` is chosen by that profile and the one trace alone, and then measured beside a sample of both
spaces and the other settings' choices. Writes regrets to `benchmarks/results/transfer.json`. Takes about twelve
minutes; needs nothing but the package.

Contexts beyond the pair's 1,024 tokens are not among the settings.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autospec import pocket
from autospec.comparison import paired, speedup
from autospec.config import SpecConfig
from autospec.cost_model import Predictor
from autospec.engine.decoder import SpeculativeDecoder
from autospec.profiling import ProfileSettings, device_fingerprint, profile
from autospec.records import Prompt
from autospec.replay import RecordedPrompt, Recorder, RecordingBudget, Simulator, Trace
from autospec.runners.live import LiveRunner
from autospec.tuning import SearchSpace
from autospec.tuning.situations import Situation
from autospec.workloads import WorkloadSource, load_workload

HERE = Path(__file__).parent
RESULT = HERE / "results" / "transfer.json"
NUM_PROMPTS, NUM_NEW, NUM_SAMPLED, REPEATS = 12, 48, 16, 1
Setting = tuple[int, str, int]
SETTINGS: tuple[Setting, ...] = ((2, "float32", 1), (1, "float32", 1), (2, "bfloat16", 1), (2, "float32", 8))
NUM_GROUPS = 6  # of prompts side by side


def say(line: str) -> None:
    """Write a line."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _decoder(dtype: str) -> SpeculativeDecoder:
    sources = {"draft": pocket.draft_path(), "ngram": "ngram"}
    return SpeculativeDecoder.from_pretrained(pocket.target_path(), sources, device="cpu", dtype=dtype)


def _prompts(batch_size: int = 1) -> list[Prompt]:
    """Return prompts, or groups of them that no trace has seen as such."""
    workload = load_workload(WorkloadSource(pocket.workload_path(), name="pocket", max_new_tokens=NUM_NEW))
    if batch_size == 1:
        return list(workload.tune[:NUM_PROMPTS])
    return Situation(batch_size).groups(workload.tune[: NUM_GROUPS * batch_size], lambda prompt: 0)


def _recorded(decoder: SpeculativeDecoder) -> list[RecordedPrompt]:
    return [RecordedPrompt(one.prompt_id, one.category, tuple(decoder.render(one))) for one in _prompts()]


def _candidates() -> list[SpecConfig]:
    spaces = (SearchSpace.load("chain").walk(), SearchSpace.load(HERE / "grid.yaml").walk())
    return list(dict.fromkeys(config for space in spaces for config in space if config.accept_rule == "exact"))


def choose(folder: Path, threads: int, dtype: str, batch_size: int) -> dict[str, Any]:
    """Profile here and choose by the trace alone; the first setting records it."""
    torch.set_num_threads(threads)
    decoder = _decoder(dtype)
    asked = _recorded(decoder)
    if not (folder / "trace").is_dir():
        Recorder(decoder, RecordingBudget(width=4)).record(asked, NUM_NEW).save(folder / "trace")
    (kept,) = sorted((folder / "trace").iterdir())
    trace = Trace.load(kept)
    low, high = int(trace.contexts.min()) - 1, int(trace.contexts.max()) - 1
    text = [token for one in asked for token in one.prompt_ids]
    contexts = tuple(sorted({low, (low + high) // 2, high}))
    sizes = (batch_size,) if batch_size > 1 else ()
    made = profile(decoder, text, ProfileSettings(budget_seconds=20.0, contexts=contexts, batch_sizes=sizes))
    predictor, candidates = Predictor(Simulator(trace, decoder.drafters), made), _candidates()
    if batch_size > 1:
        values = predictor.for_batches(batch_size).log_speedups(candidates)
    else:
        values = [one and one.log_speedup for one in predictor.predict(candidates)]
    prices = {config: value for config, value in zip(candidates, values, strict=True) if value is not None}
    best = max(prices, key=lambda config: prices[config])
    return {
        "fingerprint": device_fingerprint(decoder.target.device, decoder.target.dtype),
        "chosen": best.to_json(),
        "predicted_speedup": float(np.exp(prices[best])),
        "num_priced": len(prices),
        "predicted": {config.config_hash: value for config, value in prices.items()},
    }


def measure(configs: list[SpecConfig], threads: int, dtype: str, batch_size: int) -> dict[str, dict[str, list[float]]]:
    """Measure configurations here: hash to prompt to log speedups."""
    torch.set_num_threads(threads)
    decoder = _decoder(dtype)
    prompts = _prompts(batch_size)
    runner = LiveRunner(decoder, load_workload(WorkloadSource(pocket.workload_path())).sampling, NUM_NEW)
    for prompt in prompts[:3]:
        runner.measure(SpecConfig(), prompt, stage="warm_up", trial=-1, repeat=0)
    found: dict[str, dict[str, list[float]]] = {config.config_hash: {} for config in configs}
    for repeat in range(REPEATS):
        for prompt in prompts:
            for config in configs:
                one = runner.measure(config, prompt, stage="transfer", trial=-1, repeat=repeat)
                found[config.config_hash].setdefault(prompt.prompt_id, []).append(one.log_speedup)
    return found


def _in_process(job: str, folder: Path, threads: int, dtype: str, batch_size: int) -> Any:
    command = [sys.executable, __file__, job, str(folder), str(threads), dtype, str(batch_size)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(settings: tuple[Setting, ...]) -> None:
    """Choose for every setting, then measure every choice and a sample in each; other rows of the JSON stay."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        chosen = {setting: _in_process("choose", folder, *setting) for setting in settings}
        sample = np.random.default_rng(0).permutation(len(_candidates()))[:NUM_SAMPLED]
        configs = list(
            dict.fromkeys(
                [
                    *(SpecConfig.from_json(one["chosen"]) for one in chosen.values()),
                    *(_candidates()[place] for place in sample),
                    *(SpecConfig("draft", length) for length in (1, 2, 4)),
                    *(SpecConfig("ngram", length) for length in (3, 6, 10)),
                ]
            )
        )
        (folder / "configs.json").write_text(json.dumps([config.to_json() for config in configs]))
        rows = []
        for setting in settings:
            measured = _in_process("measure", folder, *setting)
            rows.append(_row(setting, chosen[setting], configs, measured))
    RESULT.parent.mkdir(exist_ok=True)
    known = json.loads(RESULT.read_text())["settings"] if RESULT.is_file() else []
    by_setting = {(row["threads"], row["dtype"], row["batch_size"]): row for row in (*known, *rows)}
    found = [by_setting[one] for one in SETTINGS if one in by_setting]
    RESULT.write_text(json.dumps({"settings": found}, indent=1) + "\n")


def _row(setting: Setting, chosen: dict[str, Any], configs: list[SpecConfig], measured: Any) -> dict[str, Any]:
    """Return what one setting's choice lost against the best that was measured there."""
    values = {
        config: float(np.mean([np.mean(one) for one in measured[config.config_hash].values()])) for config in configs
    }
    best, own = max(configs, key=lambda config: values[config]), SpecConfig.from_json(chosen["chosen"])
    estimate = speedup(measured[own.config_hash])
    behind = paired(measured[own.config_hash], measured[best.config_hash])
    say(
        f"{setting[0]} threads, {setting[1]}, batch {setting[2]}: chose {own.short()}, predicted "
        f"{chosen['predicted_speedup']:.2f}, "
        "measured "
        f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]; best measured {best.short()} "
        f"{np.exp(values[best]):.2f}; regret {1 - behind.value:.1%}"
    )
    known = [config for config in configs if config.config_hash in chosen["predicted"]]
    errors = [abs(np.expm1(chosen["predicted"][config.config_hash] - values[config])) for config in known]
    return {
        "threads": setting[0],
        "dtype": setting[1],
        "batch_size": setting[2],
        "fingerprint": chosen["fingerprint"],
        "chosen": chosen["chosen"],
        "predicted_speedup": chosen["predicted_speedup"],
        "measured_speedup": estimate.to_json(),
        "best": best.to_json(),
        "best_speedup": float(np.exp(values[best])),
        "regret": 1 - behind.value,
        "chosen_over_best": behind.to_json(),
        "tokens_per_second_mape": float(np.mean(errors)),
        "num_measured": len(configs),
        "measured": {config.short(): float(np.exp(value)) for config, value in values.items()},
    }


if __name__ == "__main__":
    if len(sys.argv) <= 2:
        main(SETTINGS if len(sys.argv) == 1 else (SETTINGS[int(sys.argv[1])],))
    else:
        job, place, threads, dtype, batch = sys.argv[1:]
        if job == "choose":
            say(json.dumps(choose(Path(place), int(threads), dtype, int(batch))))
        else:
            asked = [SpecConfig.from_json(one) for one in json.loads((Path(place) / "configs.json").read_text())]
            say(json.dumps(measure(asked, int(threads), dtype, int(batch))))
