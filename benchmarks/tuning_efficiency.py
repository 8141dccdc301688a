"""How many live trials a tuner needs: `python benchmarks/tuning_efficiency.py record|judge|judge_gp [options]`.

`record` measures every configuration of `benchmarks/grid.yaml` beside plain decoding, and what recording, profiling
and pricing take and predict; then, prompt by prompt in turns, those that did best and those that were predicted to be
best, seven times more. It takes about fifteen minutes, or several calls of `record --seconds 100`, each of which goes
on where the one before stopped. `judge` lets tuners search what was recorded (`--from FILE`), for 20 seeds, each on
other draws of the 12 prompts; `judge_gp` adds Optuna's GP sampler, which takes hours: it asks for longer than a trial
measures. Both write to `benchmarks/results/tuning_efficiency.json`. Needs nothing but the package.

What counts:

* A trial is one configuration on the 12 prompts of a seed, each beside its plain decoding. Measuring one again is a
  trial, too, and takes its time: ours ends with its finalists measured afresh, and chooses by the product's code.
* Of the seven fresh repeats of what was measured again, drawn anew for every seed, trials see the first, trials that
  measure again the second, and the other five, which no tuner saw, judge the choice. Of all others there is only the
  grid's own timing, which flatters what was chosen by it, though none of them was among the best.
* The best is chosen by one half of the judging repeats and timed by the other, then the other way round: the highest
  of all means would mostly be the luckiest. The truth of a configuration is the mean over prompts of what each of them
  typically took. Where no seed is named, all fresh repeats but the first judge.
* A goal is reached at the first trial after which the tuner, asked for its choice, would name a configuration that is
  as good as 98 % of the best. Other tuners name the highest mean they have seen, ours what it believes to be best.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from common import say
from tuning_grid import (
    GOALS,
    HERE,
    KEPT,
    MAX_TRIALS,
    NUM_BEST,
    NUM_JUDGING,
    NUM_NEW,
    NUM_PREDICTED,
    NUM_PROMPTS,
    NUM_SEEDS,
    NUM_SEEN,
    OFF,
    RESULT,
    RULES_OF_THUMB,
    Grid,
    Guided,
    Search,
    by_highest_mean,
    random_order,
    sampler_order,
)

from autospec import pocket
from autospec.clock import Clock
from autospec.comparison import noise_floor
from autospec.config import SpecConfig
from autospec.cost_model import Predictor
from autospec.engine.decoder import SpeculativeDecoder
from autospec.profiling import ProfileSettings, device_fingerprint, profile
from autospec.replay import RecordedPrompt, Recorder, RecordingBudget, Simulator
from autospec.runners.live import LiveRunner
from autospec.tuning import SearchSpace
from autospec.tuning.guide import Guide
from autospec.workloads import WorkloadSource, load_workload


def record(seconds: float) -> None:
    """Measure the grid, the rules of thumb, what predicting takes, and the best again; go on where a call stopped.

    Args:
        seconds: After which to stop, between two measurements.
    """
    sources = {"draft": pocket.draft_path(), "ngram": "ngram"}
    decoder = SpeculativeDecoder.from_pretrained(pocket.target_path(), sources, device="cpu", dtype="float32")
    workload = load_workload(WorkloadSource(pocket.workload_path(), name="pocket", max_new_tokens=NUM_NEW))
    prompts, space = workload.tune[:NUM_PROMPTS], SearchSpace.load(HERE / "grid.yaml")
    runner, clock = LiveRunner(decoder, workload.sampling, NUM_NEW), Clock("cpu")
    for prompt in prompts[:3]:
        runner.measure(OFF, prompt, stage="warm_up", trial=-1, repeat=0)
    end, document = clock.now() + seconds, json.loads(RESULT.read_text()) if RESULT.exists() else {}
    if document.get("finished", True):
        baseline = [runner.measure(OFF, prompt, stage="grid", trial=-1, repeat=0) for prompt in prompts]
        document = {
            "finished": False,
            "machine": device_fingerprint(decoder.target.device, decoder.target.dtype),
            "prompts": [prompt.prompt_id for prompt in prompts],
            "noise_floor": noise_floor({one.prompt_id: [one.log_speedup] for one in baseline}),
            "predicting_seconds": _predict(decoder, prompts, clock),
            "rows": [],
        }
    recording = _Recording(document, runner, prompts)
    grid = list(dict.fromkeys([*space.walk(), *RULES_OF_THUMB.values()]))
    while clock.now() < end and recording.go_on(grid):
        pass
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(document) + "\n")
    say(f"finished: {document['finished']}")


class _Recording:
    """Fills a document, a configuration of the grid or a prompt of a fresh repeat at a time."""

    def __init__(self, document: dict[str, Any], runner: LiveRunner, prompts: Sequence[Any]) -> None:
        self._document, self._runner, self._prompts = document, runner, prompts
        self._rows = {SpecConfig.from_json(row["config"]): row for row in document["rows"]}

    def go_on(self, grid: Sequence[SpecConfig]) -> bool:
        """Measure what comes next; return False where nothing is left."""
        for config in grid:
            if config not in self._rows:
                row: dict[str, Any] = {"config": config.to_json(), "seconds": [], "log_speedups": []}
                for prompt in self._prompts:
                    self._measure(row, config, prompt, 0)
                self._rows[config] = row
                self._document["rows"].append(row)
                self._document["grid_seconds"] = sum(one["seconds"][0] for one in self._document["rows"])
                say(f"{len(self._rows)}/{len(grid)} {config.short()} {np.exp(np.mean(row['log_speedups'][0])):.3f}")
                return True
        again = self._again(grid)
        for repeat in range(1, 1 + NUM_SEEN + NUM_JUDGING):
            done = self._rows[again[0]]["log_speedups"][repeat:]
            place = len(done[0]) if done else 0
            if place < len(self._prompts):
                turn = (place + repeat) % len(again)
                for config in (*again[turn:], *again[:turn]):
                    self._measure(self._rows[config], config, self._prompts[place], repeat)
                say(f"repeat {repeat}, prompt {place + 1}/{len(self._prompts)}")
                return True
        self._document["finished"] = True
        return False

    def _measure(self, row: dict[str, Any], config: SpecConfig, prompt: Any, repeat: int) -> None:
        one = self._runner.measure(config, prompt, stage="grid", trial=-1, repeat=repeat)
        if len(row["seconds"]) == repeat:
            row["seconds"].append(0.0)
            row["log_speedups"].append([])
        row["seconds"][repeat] += one.seconds + one.baseline_seconds
        row["log_speedups"][repeat].append(one.log_speedup)

    def _again(self, grid: Sequence[SpecConfig]) -> list[SpecConfig]:
        """Return what is measured again: chosen once, when the grid is done."""
        if "again" not in self._document:
            best = sorted(grid, key=lambda one: -float(np.mean(self._rows[one]["log_speedups"][0])))[:NUM_BEST]
            predicted = [one.config for one in Guided().guide(grid).ranked()[:NUM_PREDICTED]]
            self._document["again"] = [one.to_json() for one in dict.fromkeys((*best, *predicted))]
        return [SpecConfig.from_json(one) for one in self._document["again"]]


def _predict(decoder: SpeculativeDecoder, prompts: Any, clock: Clock) -> dict[str, float]:
    """Record, profile and price, keep trace and profile, and return the seconds of each."""
    started = clock.now()
    asked = [RecordedPrompt(one.prompt_id, one.category, tuple(decoder.render(one))) for one in prompts]
    recorder = Recorder(decoder, RecordingBudget(max_depth=20, width=4))
    trace = recorder.record(asked, NUM_NEW)
    recorded = clock.now()
    low, high = int(trace.contexts.min()) - 1, int(trace.contexts.max()) - 1
    contexts = tuple(sorted({low, (low + high) // 2, high}))
    text = [token for one in asked for token in one.prompt_ids]
    made = profile(decoder, text, ProfileSettings(budget_seconds=15.0, contexts=contexts, batch_sizes=()))
    profiled = clock.now()
    Guide(Predictor(Simulator(trace, recorder=recorder), made), SearchSpace.load(HERE / "grid.yaml").walk(), True)
    priced = clock.now()
    shutil.rmtree(KEPT / "trace", ignore_errors=True)
    trace.save(KEPT / "trace")
    made.save(KEPT / "profile.json")
    return {"record": recorded - started, "profile": profiled - recorded, "price": priced - profiled}


def judge(source: Path, with_gp: bool = False) -> None:
    """Let every tuner search the grid, for every seed on other prompts of it, and write when it gets there."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    document = json.loads(source.read_text())
    grid = Grid(document)
    tuners: dict[str, Search] = {
        "random": by_highest_mean(random_order),
        "TPE": by_highest_mean(sampler_order(lambda seed: optuna.samplers.TPESampler(seed=seed))),
        "ours": Guided(),
    }
    if with_gp:
        tuners["GP"] = by_highest_mean(
            sampler_order(lambda seed: optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False))
        )
    runs = {name: [_run(document, tuner, name, seed) for seed in range(NUM_SEEDS)] for name, tuner in tuners.items()}
    thumbs = {name: float(np.exp(grid.true[config])) for name, config in RULES_OF_THUMB.items()}
    document["judged"] = {
        "num_grid": len(grid.grid),
        "best": {
            "speedup": float(np.exp(grid.best_value)),
            "highest": {"config": grid.best.to_json(), "speedup": float(np.exp(grid.true[grid.best]))},
            "highest_once": float(np.exp(max(runs[0].mean() for runs in grid.values.values()))),
            "standard_error": grid.error,
            "num_within_2_percent": sum(grid.reaches(config, 0.98) for config in grid.again),
        },
        "trial_error": grid.trial_error,
        "tuners": runs,
        "rules_of_thumb": thumbs,
        "prediction": _prediction(grid),
    }
    RESULT.write_text(json.dumps(document) + "\n")
    _tell(document, grid)


def _tell(document: dict[str, Any], grid: Grid) -> None:
    judged = document["judged"]
    best = judged["best"]
    say(f"{len(grid.grid)} configurations in {document['grid_seconds']:.0f} s; best {best['speedup']:.3f} "
        f"(+- {best['standard_error']:.1%}), which {grid.best.short()} has with {best['highest']['speedup']:.3f}; "
        f"{best['num_within_2_percent']} of {len(grid.again)} measured again reach 98 % of it; "
        f"the highest mean of the grid's own timings was {best['highest_once']:.3f}; "
        f"noise of one timing {document['noise_floor']:.1%}, of a trial {judged['trial_error']:.1%}")  # fmt: skip
    for name, runs in judged["tuners"].items():
        final = np.array([run["final"] for run in runs])
        searched = np.median([run["searched"] for run in runs])
        share = np.median([run["of_best"] for run in runs])
        say(f"{name}: ends with {np.median(final):.3f} ({final.min():.3f} to {final.max():.3f}), {share:.1%} of the "
            f"best, after {searched:.0f} trials")  # fmt: skip
        for goal in GOALS:
            trials = np.array([run["reached"][f"{goal:.0%}"]["trials"] for run in runs], dtype=float)
            seconds = np.array([run["reached"][f"{goal:.0%}"]["seconds"] for run in runs])
            say(f"  {goal:.0%} of the best after {np.median(trials):.0f} trials "
                f"({np.quantile(trials, 0.1):.0f} to {np.quantile(trials, 0.9):.0f}), {np.median(seconds):.0f} s, "
                f"{np.median(seconds) / document['grid_seconds']:.1%} of the grid; "
                f"held to the end by {np.mean([run['kept'][f'{goal:.0%}'] for run in runs]):.0%}")  # fmt: skip
    for name, value in judged["rules_of_thumb"].items():
        say(f"rule of thumb, {name}: {value:.3f}")
    say(f"prediction: {judged['prediction']}")


def _run(document: dict[str, Any], tuner: Search, name: str, seed: int) -> dict[str, Any]:
    """Return after how many trials and seconds the choice reaches the goals, and where the search ends."""
    drawn = np.random.default_rng([seed, 1])
    rows = drawn.integers(0, NUM_PROMPTS, NUM_PROMPTS)
    grid = Grid(document, [1 + int(one) for one in drawn.permutation(NUM_SEEN + NUM_JUDGING)])
    seconds = sum(grid.document["predicting_seconds"].values()) if name == "ours" else 0.0
    missed = {"trials": MAX_TRIALS + 1, "seconds": grid.document["grid_seconds"]}
    reached, choice, number = {f"{goal:.0%}": dict(missed) for goal in GOALS}, OFF, 0
    for number, trial in enumerate(tuner(grid, seed, rows), start=1):
        seconds, choice = seconds + grid.seconds[trial.config][trial.repeat], trial.choice
        for goal in GOALS:
            if reached[f"{goal:.0%}"]["trials"] > MAX_TRIALS and grid.reaches(choice, goal):
                reached[f"{goal:.0%}"] = {"trials": number, "seconds": seconds}
        if number >= MAX_TRIALS:
            break
    return {
        "reached": reached,
        "searched": number,
        "seconds": seconds,
        "final": float(np.exp(grid.true.get(choice, 0.0))),
        "of_best": float(np.exp(grid.true.get(choice, 0.0) - grid.best_value)),
        "kept": {f"{goal:.0%}": grid.reaches(choice, goal) for goal in GOALS},
    }


def _prediction(grid: Grid) -> dict[str, float | None]:
    """Return how well the grid was predicted before anything was measured."""
    from autospec.cost_model.errors import mape, rank_correlation

    ranked = Guided().guide(grid.grid).ranked()
    predicted = np.array([price.log_speedup for price in ranked])
    measured = np.array([grid.true[price.config] for price in ranked])
    return {
        "num_configs": len(ranked),
        "tokens_per_second_mape": mape(predicted - measured),
        "rank_correlation": rank_correlation(predicted, measured),
        "regret": float(-np.expm1(measured[0] - grid.best_value)),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", nargs="*", default=["record", "judge"], help="record, judge or judge_gp")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which `record` stops")
    parser.add_argument("--from", dest="source", type=Path, default=RESULT, help="what `judge` judges")
    asked = parser.parse_args()
    for step in asked.step:
        if step == "record":
            record(asked.seconds)
        else:
            judge(asked.source, with_gp=step == "judge_gp")
