"""How many live trials a tuner needs: `python benchmarks/tuning_efficiency.py [measure|judge|judge_gp]`.

`measure` measures every configuration of `benchmarks/grid.yaml` beside plain decoding, the best ten again, and what
recording, profiling and pricing take and predict; `judge` replays tuners on what was measured. Both write to
`benchmarks/results/tuning_efficiency.json`. Needs nothing but the package; measuring takes about fifteen minutes.
`judge_gp` adds Optuna's GP sampler, which takes hours: it asks for longer than a trial measures.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from autospec import pocket
from autospec.clock import Clock
from autospec.comparison import noise_floor
from autospec.config import SpecConfig
from autospec.cost_model import Predictor
from autospec.engine.decoder import SpeculativeDecoder
from autospec.errors import ConfigError
from autospec.profiling import ProfileSettings, device_fingerprint, load_profile, profile
from autospec.records import Measurement
from autospec.replay import RecordedPrompt, Recorder, RecordingBudget, Simulator, Trace
from autospec.runners.live import LiveRunner
from autospec.tuning import SearchSpace
from autospec.tuning.guide import Guide
from autospec.workloads import WorkloadSource, load_workload

HERE = Path(__file__).parent
RESULT, KEPT = HERE / "results" / "tuning_efficiency.json", HERE / "results" / "tuning_efficiency"
NUM_PROMPTS, NUM_NEW, NUM_AGAIN, NUM_SEEDS, MAX_TRIALS = 12, 48, 10, 20, 30
GOALS = (0.97, 0.98)  # the second lies inside the noise of a mean over twelve prompts
OFF = SpecConfig()
RULES_OF_THUMB = {
    "constant 5": SpecConfig("draft", 5),
    "transformers' defaults (up to 20 tokens, confidence 0.4)": SpecConfig(
        "draft", 20, stop_rule="confidence", stop_threshold=0.4
    ),
    "heuristic (+2 / -1 from 5)": SpecConfig("draft", 20, stop_rule="heuristic", draft_length_start=5),
}


def say(line: str) -> None:
    """Write a line."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def measure() -> None:
    """Measure the grid, the rules of thumb, the best again, and what predicting takes."""
    sources = {"draft": pocket.draft_path(), "ngram": "ngram"}
    decoder = SpeculativeDecoder.from_pretrained(pocket.target_path(), sources, device="cpu", dtype="float32")
    workload = load_workload(WorkloadSource(pocket.workload_path(), name="pocket", max_new_tokens=NUM_NEW))
    prompts, space = workload.tune[:NUM_PROMPTS], SearchSpace.load(HERE / "grid.yaml")
    grid = list(dict.fromkeys([*space.walk(), *RULES_OF_THUMB.values()]))
    runner, clock = LiveRunner(decoder, workload.sampling, NUM_NEW), Clock("cpu")
    for prompt in prompts[:3]:
        runner.measure(OFF, prompt, stage="warm_up", trial=-1, repeat=0)

    def measured(config: SpecConfig, repeat: int) -> list[Measurement]:
        return [runner.measure(config, prompt, stage="grid", trial=-1, repeat=repeat) for prompt in prompts]

    noise = noise_floor({one.prompt_id: [one.log_speedup] for one in measured(OFF, 0)})
    predicted = _predict(decoder, prompts, clock)
    started, rows = clock.now(), {}
    for number, config in enumerate(grid):
        rows[config] = [measured(config, 0)]
        say(f"{number + 1}/{len(grid)} {config.short()} {np.exp(_mean(rows[config][0])):.3f}")
    grid_seconds = clock.now() - started
    best = sorted(grid, key=lambda config: -_mean(rows[config][0]))[:NUM_AGAIN]
    for repeat in (1, 2):
        for config in best:
            rows[config].append(measured(config, repeat))
    document = {
        "machine": device_fingerprint(decoder.target.device, decoder.target.dtype),
        "prompts": [prompt.prompt_id for prompt in prompts],
        "noise_floor": noise,
        "grid_seconds": grid_seconds,
        "predicting_seconds": predicted,
        "rows": [
            {
                "config": config.to_json(),
                "seconds": [sum(one.seconds + one.baseline_seconds for one in run) for run in runs],
                "log_speedups": [[one.log_speedup for one in run] for run in runs],
            }
            for config, runs in rows.items()
        ],
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(document) + "\n")


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


def _mean(run: list[Measurement]) -> float:
    return float(np.mean([one.log_speedup for one in run]))


class Grid:
    """What was measured, to be asked again as often as one likes."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document, self.space = document, SearchSpace.load(HERE / "grid.yaml")
        self.values = {SpecConfig.from_json(row["config"]): np.array(row["log_speedups"]) for row in document["rows"]}
        self.seconds = {SpecConfig.from_json(row["config"]): row["seconds"][0] for row in document["rows"]}
        self.grid = [config for config in self.space.walk() if config in self.values]
        # A winner's first measurement flatters it: of the best ten only the fresh repeats count.
        self.true = {
            config: float((runs[1:] if len(runs) > 1 else runs).mean()) for config, runs in self.values.items()
        }
        again = [config for config in self.grid if len(self.values[config]) > 1]
        self.best = max(again, key=lambda config: self.true[config])

    def trial(self, config: SpecConfig, rows: np.ndarray) -> float:
        """Return what a trial says that drew these prompts."""
        return float(self.values[config][0][rows].mean())

    def reaches(self, config: SpecConfig, goal: float) -> bool:
        """Return whether a configuration is as good as so much of the best."""
        return self.true[config] >= self.true[self.best] + np.log(goal)


def random_search(grid: Grid, seed: int, rows: np.ndarray) -> Iterator[SpecConfig]:
    """Yield configurations in an order that is drawn."""
    yield from (grid.grid[place] for place in np.random.default_rng(seed).permutation(len(grid.grid)))


def sampler_search(make: Callable[[int], optuna.samplers.BaseSampler]) -> Callable[..., Iterator[SpecConfig]]:
    """Return a search by one of Optuna's samplers as it comes."""

    def search(grid: Grid, seed: int, rows: np.ndarray) -> Iterator[SpecConfig]:
        study = optuna.create_study(direction="maximize", sampler=make(seed))
        seen = set[SpecConfig]()
        while len(seen) < len(grid.grid):
            trial = study.ask()
            try:
                config = grid.space.suggest(trial)
            except ConfigError:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                continue
            study.tell(trial, grid.trial(config, rows))
            if config not in seen:
                seen.add(config)
                yield config

    return search


class Guided:
    """The product's own order: what is predicted to be best, corrected by every trial."""

    def __init__(self) -> None:
        (folder,) = sorted((KEPT / "trace").iterdir())
        self._simulator, self._profile = Simulator(Trace.load(folder)), load_profile(KEPT / "profile.json")

    def __call__(self, grid: Grid, seed: int, rows: np.ndarray) -> Iterator[SpecConfig]:
        """Yield what a guided study tries."""
        guide = Guide(Predictor(self._simulator, self._profile), grid.grid, True)
        tried, waiting, best = dict[SpecConfig, float](), list(guide.opening()), 0.0
        while len(tried) < len(grid.grid):
            config = waiting.pop(0) if waiting else guide.next(tried, best)
            if config is None:
                return
            yield config
            tried[config] = grid.trial(config, rows)
            best = max(best, tried[config])
            guide.learn(list(self._measurements(grid, tried, rows)))

    def _measurements(self, grid: Grid, tried: dict[SpecConfig, float], rows: np.ndarray) -> Iterator[Any]:
        for config in tried:
            for row in rows:
                yield _Known(config, grid.document["prompts"][row], float(grid.values[config][0][row]))


class _Known:
    """As much of a `Measurement` as predictors read."""

    def __init__(self, config: SpecConfig, prompt_id: str, log_speedup: float) -> None:
        self.config, self.prompt_id, self.log_speedup = config, prompt_id, log_speedup


def judge(with_gp: bool = False) -> None:
    """Let every tuner search the grid, for every seed on other prompts of it, and write when it gets there."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    document = json.loads(RESULT.read_text())
    grid = Grid(document)
    tuners: dict[str, Callable[..., Iterator[SpecConfig]]] = {
        "random": random_search,
        "TPE": sampler_search(lambda seed: optuna.samplers.TPESampler(seed=seed)),
        "ours": Guided(),
    }
    if with_gp:
        tuners["GP"] = sampler_search(
            lambda seed: optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False)
        )
    found = {
        f"{name}, {goal:.0%}": [_run(grid, tuner, name, seed, goal) for seed in range(NUM_SEEDS)]
        for name, tuner in tuners.items()
        for goal in GOALS
    }
    thumbs = {name: float(np.exp(grid.true[config])) for name, config in RULES_OF_THUMB.items()}
    document["judged"] = {
        "num_grid": len(grid.grid),
        "best": {"config": grid.best.to_json(), "speedup": float(np.exp(grid.true[grid.best]))},
        "tuners": found,
        "rules_of_thumb": thumbs,
        "prediction": _prediction(grid),
    }
    RESULT.write_text(json.dumps(document) + "\n")
    say(f"{len(grid.grid)} configurations in {document['grid_seconds']:.0f} s; best {grid.best.short()}: "
        f"{np.exp(grid.true[grid.best]):.3f}; noise of one timing {document['noise_floor']:.1%}")  # fmt: skip
    for name, runs in found.items():
        trials, seconds = (np.array([run[key] for run in runs], dtype=float) for key in ("trials", "seconds"))
        final = np.array([run["final"] for run in runs])
        say(
            f"{name:<12} trials: median {np.median(trials):.0f} ({np.quantile(trials, 0.1):.0f} to "
            f"{np.quantile(trials, 0.9):.0f}); seconds {np.median(seconds):.0f}, "
            f"{np.median(seconds) / document['grid_seconds']:.1%} of the grid; final {np.median(final):.3f}"
        )
    for name, value in thumbs.items():
        say(f"rule of thumb, {name}: {value:.3f}")
    say(f"prediction: {document['judged']['prediction']}")


def _run(
    grid: Grid, tuner: Callable[..., Iterator[SpecConfig]], name: str, seed: int, goal: float
) -> dict[str, float]:
    """Return after how many trials and seconds the best so far reaches a goal, and where the search ends."""
    rows = np.random.default_rng([seed, 1]).integers(0, NUM_PROMPTS, NUM_PROMPTS)
    seconds = sum(grid.document["predicting_seconds"].values()) if name == "ours" else 0.0
    best, best_value, reached, number = OFF, 0.0, (float("inf"), float("inf")), 0
    for number, config in enumerate(tuner(grid, seed, rows), start=1):
        seconds += grid.seconds[config]
        if (value := grid.trial(config, rows)) > best_value:
            best, best_value = config, value
        if reached[0] == float("inf") and not best.is_off and grid.reaches(best, goal):
            reached = (number, seconds)
        if number >= MAX_TRIALS:
            break
    missed = reached[0] == float("inf")
    return {
        "trials": MAX_TRIALS if missed else reached[0],
        "seconds": grid.document["grid_seconds"] if missed else reached[1],
        "searched": number,
        "final": float(np.exp(grid.true.get(best, 0.0))),
    }


def _prediction(grid: Grid) -> dict[str, float | None]:
    """Return how well the grid was predicted before anything was measured."""
    from autospec.cost_model.errors import mape, rank_correlation, regret

    guided = Guided()
    prices = Predictor(guided._simulator, guided._profile).predict(grid.grid)
    known = [(price.log_speedup, grid.true[price.config]) for price in prices if price is not None]
    predicted, measured = (np.array(side) for side in zip(*known, strict=True))
    return {
        "num_configs": len(known),
        "tokens_per_second_mape": mape(predicted - measured),
        "rank_correlation": rank_correlation(predicted, measured),
        "regret": regret(predicted, measured),
    }


if __name__ == "__main__":
    for step in sys.argv[1:] or ["measure", "judge"]:
        {"measure": measure, "judge": judge, "judge_gp": lambda: judge(with_gp=True)}[step]()
