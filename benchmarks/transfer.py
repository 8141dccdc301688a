"""Policies for other situations from one trace: `python benchmarks/transfer.py [NUMBER_OF_A_SETTING ...]`.

The embedded pair is recorded once, in float32 with two threads, one prompt of a few hundred tokens at a time. For each
setting (threads, data type, prompts side by side, longer prompts), in a process of its own, a profile is measured
there, the best of the space `chain` and of `benchmarks/grid.yaml` is chosen by that profile and the one trace alone,
and then measured beside a sample of both spaces and the other settings' choices. The leaders of that are measured
again: the first half of the repeats says which is the best, the second how far the choice is behind it. Writes regrets
to `benchmarks/results/transfer.json`. Takes about half an hour; needs nothing but the package.

The pair reads 1,024 tokens. For prompts of up to 4,096 both models get angles stretched by YaRN (2309.00071), so
they are another pair, recorded behind the same short prompts; each long prompt is one of these behind other texts.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, say, write
from situated import Setting, Situated, all_candidates

from autospec.comparison import paired, speedup
from autospec.config import SpecConfig

RESULT = RESULTS / "transfer.json"
NUM_SAMPLED, NUM_LEADERS, AGAIN = 12, 4, 6
SETTINGS = (
    Setting(2, "float32"),
    Setting(1, "float32"),
    Setting(2, "bfloat16"),
    Setting(2, "float32", batch_size=8),
    Setting(2, "float32", prompt_length=4096),
)


class Processes:
    """Runs the jobs of settings, each in a process of its own.

    Args:
        folder: For what they share.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def run(self, job: str, setting: Setting, configs: Sequence[SpecConfig] = (), repeats: int = 1) -> Any:
        """Return what a job says."""
        asked = {"setting": asdict(setting), "configs": [one.to_json() for one in configs], "repeats": repeats}
        command = [sys.executable, __file__, "job", job, str(self._folder), json.dumps(asked)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return json.loads(done.stdout.splitlines()[-1])


def do(job: str, folder: Path, asked: dict[str, Any]) -> None:
    """Do a job, and say what comes of it."""
    here = Situated(Setting(**asked["setting"]), folder)
    if job == "record":
        here.record()
        say("{}")
    elif job == "choose":
        say(json.dumps(here.choose()))
    else:
        say(json.dumps(here.measure([SpecConfig.from_json(one) for one in asked["configs"]], asked["repeats"])))


def main(settings: Sequence[Setting]) -> None:
    """Choose for every setting, then measure in each; other rows of the JSON stay."""
    known = json.loads(RESULT.read_text())["settings"] if RESULT.is_file() else []
    rows = {Setting(**row["setting"]): row for row in known if "setting" in row}
    with tempfile.TemporaryDirectory() as place:
        processes = Processes(Path(place))
        for is_long in sorted({bool(one.prompt_length) for one in settings}):
            processes.run("record", next(one for one in SETTINGS if bool(one.prompt_length) == is_long))
        chosen = {setting: processes.run("choose", setting) for setting in settings}
        others = [row["chosen"] for setting, row in rows.items() if setting not in chosen]
        choices = [SpecConfig.from_json(one) for one in (*(one["chosen"] for one in chosen.values()), *others)]
        for setting in settings:
            rows[setting] = _row(setting, chosen[setting], choices, processes)
            write({"settings": [rows[one] for one in SETTINGS if one in rows]}, RESULT)


def _row(
    setting: Setting, chosen: dict[str, Any], choices: Sequence[SpecConfig], processes: Processes
) -> dict[str, Any]:
    """Return what one setting's choice lost against the best that was measured there."""
    candidates, own = all_candidates(), SpecConfig.from_json(chosen["chosen"])
    sample = np.random.default_rng(0).permutation(len(candidates))[:NUM_SAMPLED]
    usual = [*(SpecConfig("draft", length) for length in (1, 2, 4)), *(SpecConfig("ngram", one) for one in (3, 6, 10))]
    configs = list(dict.fromkeys([own, *choices, *(candidates[place] for place in sample), *usual]))
    once = processes.run("measure", setting, configs)
    values = {config: _mean(once[config.config_hash], slice(None)) for config in configs}
    leaders = sorted(configs, key=lambda config: -values[config])[:NUM_LEADERS]
    again = processes.run("measure", setting, list(dict.fromkeys([own, *leaders])), AGAIN)
    first, second = slice(0, AGAIN // 2), slice(AGAIN // 2, None)
    best = max(leaders, key=lambda config: _mean(again[config.config_hash], first))
    judged = {one: _of_repeats(again[one.config_hash], second) for one in (own, best)}
    behind, measured = paired(judged[own], judged[best]), speedup(judged[own])
    priced = [config for config in configs if config.config_hash in chosen["predicted"]]
    errors = [abs(np.expm1(chosen["predicted"][config.config_hash] - values[config])) for config in priced]
    predicted = float(np.exp(chosen["predicted"][own.config_hash]))
    say(
        f"{setting.name}: chose {own.short()}, predicted {predicted:.2f}, measured {measured.value:.2f} "
        f"[{measured.low:.2f}, {measured.high:.2f}]; best measured {best.short()} "
        f"{speedup(judged[best]).value:.2f}; regret {1 - behind.value:.1%}"
    )
    return {
        "setting": asdict(setting),
        "machine": chosen["machine"],
        "trace": chosen["trace"],
        "chosen": chosen["chosen"],
        "predicted_speedup": predicted,
        "measured_speedup": measured.to_json(),
        "best": best.to_json(),
        "best_speedup": speedup(judged[best]).to_json(),
        "regret": 1 - behind.value,
        "chosen_over_best": behind.to_json(),
        "tokens_per_second_mape": float(np.mean(errors)),
        "num_priced": chosen["num_priced"],
        "measured_once": {config.short(): float(np.exp(value)) for config, value in values.items()},
        "measured_again": {one.short(): float(np.exp(_mean(again[one.config_hash], slice(None)))) for one in leaders},
    }


def _of_repeats(by_prompt: dict[str, list[float]], repeats: slice) -> dict[str, list[float]]:
    return {prompt: values[repeats] for prompt, values in by_prompt.items()}


def _mean(by_prompt: dict[str, list[float]], repeats: slice) -> float:
    return float(np.mean([np.mean(values[repeats]) for values in by_prompt.values()]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["job"]:
        do(sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4]))
    else:
        main([SETTINGS[int(one)] for one in sys.argv[1:]] or SETTINGS)
