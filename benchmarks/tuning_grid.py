"""What `tuning_efficiency.py` measured, to be asked again, and the tuners that search it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna

from autospec.config import SpecConfig
from autospec.cost_model import Predictor
from autospec.errors import ConfigError
from autospec.profiling import load_profile
from autospec.replay import Simulator, Trace
from autospec.robust import deviation, location
from autospec.tuning import SearchSpace, StudySettings
from autospec.tuning.combining import combined
from autospec.tuning.guide import Guide
from autospec.tuning.pool import Pool
from autospec.tuning.study import GUIDED_PATIENCE

HERE = Path(__file__).parent
RESULT, KEPT = HERE / "results" / "tuning_efficiency.json", HERE / "results" / "tuning_efficiency"
NUM_PROMPTS, NUM_NEW, NUM_SEEDS, MAX_TRIALS = 12, 48, 20, 30
NUM_BEST, NUM_PREDICTED = 12, 4  # that are measured again: by the grid's own timings, and by prediction
NUM_SEEN, NUM_JUDGING = 1, 6  # fresh repeats: for tuners that measure again, and for judging them
GOALS = (0.97, 0.98)
OFF = SpecConfig()
RULES_OF_THUMB = {
    "constant 5": SpecConfig("draft", 5),
    "transformers' defaults (up to 20 tokens, confidence 0.4)": SpecConfig(
        "draft", 20, stop_rule="confidence", stop_threshold=0.4
    ),
    "heuristic (+2 / -1 from 5)": SpecConfig("draft", 20, stop_rule="heuristic", draft_length_start=5),
}


class Grid:
    """What was measured, to be asked again as often as one likes.

    Args:
        document: As it was recorded.
        order: Of the repeats of what was measured again: first that of trials, then that of trials that measure again,
            then those that judge. None: as they were recorded, the first being the grid's own.
    """

    def __init__(self, document: dict[str, Any], order: Sequence[int] | None = None) -> None:
        self.document, self.space = document, SearchSpace.load(HERE / "grid.yaml")
        rows = {SpecConfig.from_json(row["config"]): row for row in document["rows"]}
        taken = {config: order if order and len(row["seconds"]) > 1 else slice(None) for config, row in rows.items()}
        self.values = {config: np.array(row["log_speedups"])[taken[config]] for config, row in rows.items()}
        self.seconds = {config: np.array(row["seconds"])[taken[config]] for config, row in rows.items()}
        self.grid = [config for config in self.space.walk() if config in self.values]
        judging = {config: runs[1 + NUM_SEEN :] for config, runs in self.values.items()}
        self.again = [config for config in self.grid if len(judging[config])]
        num_judging = len(judging[self.again[0]])
        fresh = np.concatenate([judging[config] - np.median(judging[config], axis=0) for config in self.again])
        self._scale: float = deviation(fresh.ravel()) * np.sqrt(num_judging / (num_judging - 1))
        self.true = {
            config: self._typical(runs if len(runs) else self.values[config]) for config, runs in judging.items()
        }
        half = num_judging // 2
        first, second = (
            {config: self._typical(judging[config][part]) for config in self.again}
            for part in (slice(None, half), slice(half, None))
        )
        # The highest of many means is flattered by its luck, so one half of the repeats chooses and the other tells.
        self.best_value = (second[max(first, key=first.__getitem__)] + first[max(second, key=second.__getitem__)]) / 2
        self.best = max(self.again, key=lambda config: self.true[config])
        both = np.array([[half[config] for config in self.again] for half in (first, second)])
        known = [
            run - np.mean(self.values[config][1:], axis=0) for config in self.again for run in self.values[config][1:]
        ]
        repeats = NUM_SEEN + NUM_JUDGING
        self.trial_error = float(np.std([one.mean() for one in known]) * np.sqrt(repeats / (repeats - 1)))
        self.error = float(np.std(both[0] - both[1], ddof=1) / 2)  # standard error of a truth, all repeats together

    def _typical(self, runs: np.ndarray) -> float:
        return float(np.mean([location(repeats, self._scale) for repeats in runs.T]))

    def trial(self, config: SpecConfig, rows: np.ndarray) -> float:
        """Return what a trial says that drew these prompts."""
        return float(self.values[config][0][rows].mean())

    def reaches(self, config: SpecConfig, goal: float) -> bool:
        """Return whether a configuration is as good as so much of the best."""
        return not config.is_off and bool(self.true[config] >= self.best_value + np.log(goal))

    def measurements(self, config: SpecConfig, repeat: int, rows: np.ndarray) -> list[Any]:
        """Return as much of measurements as predictors and pools read."""
        ids, values = self.document["prompts"], self.values[config][repeat]
        return [SimpleNamespace(config=config, prompt_id=ids[row], log_speedup=float(values[row])) for row in rows]


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial of a tuner.

    Args:
        config: What it measured.
        repeat: Which of its recorded repeats.
        choice: What the tuner would name if it were asked now.
    """

    config: SpecConfig
    repeat: int
    choice: SpecConfig


Search = Callable[[Grid, int, np.ndarray], Iterator[Trial]]


def by_highest_mean(order: Callable[[Grid, int, np.ndarray], Iterator[SpecConfig]]) -> Search:
    """Return a search that names the highest mean it has seen."""

    def search(grid: Grid, seed: int, rows: np.ndarray) -> Iterator[Trial]:
        best, best_value = OFF, 0.0
        for config in order(grid, seed, rows):
            if (value := grid.trial(config, rows)) > best_value:
                best, best_value = config, value
            yield Trial(config, 0, best)

    return search


def random_order(grid: Grid, seed: int, rows: np.ndarray) -> Iterator[SpecConfig]:
    """Yield configurations in an order that is drawn."""
    yield from (grid.grid[place] for place in np.random.default_rng(seed).permutation(len(grid.grid)))


def sampler_order(
    make: Callable[[int], optuna.samplers.BaseSampler],
) -> Callable[[Grid, int, np.ndarray], Iterator[SpecConfig]]:
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
    """The product's own order and choice: predictions, corrected by every trial, then finalists measured afresh."""

    def __init__(self) -> None:
        (folder,) = sorted((KEPT / "trace").iterdir())
        self._simulator, self._profile = Simulator(Trace.load(folder)), load_profile(KEPT / "profile.json")

    def guide(self, configs: Sequence[SpecConfig]) -> Guide:
        """Return a guide that has learnt nothing yet."""
        return Guide(Predictor(self._simulator, self._profile), configs, True)

    def __call__(self, grid: Grid, seed: int, rows: np.ndarray) -> Iterator[Trial]:
        """Yield what a guided study tries."""
        guide, settings = self.guide(grid.grid), StudySettings()
        waiting, tried, seen = list(guide.opening()), list[SpecConfig](), list[Any]()
        choice, kept = OFF, 0
        while kept < GUIDED_PATIENCE:
            config = waiting.pop(0) if waiting else guide.next(tried, guide.believed(choice, 0.0) if tried else 0.0)
            if config is None:
                break
            tried.append(config)
            seen += grid.measurements(config, 0, rows)
            guide.learn(seen)
            best = self._believed_best(guide, tried)
            choice, kept = best, kept + 1 if best == choice else 0
            yield Trial(config, 0, choice)
        again = np.random.default_rng([seed, 2]).integers(0, NUM_PROMPTS, NUM_PROMPTS)
        finalists = sorted(tried, key=lambda config: -guide.believed(config, 0.0))[: settings.finalists]
        pool = Pool()
        for config in finalists:  # what has no fresh repeats is measured as the grid measured it
            for one in grid.measurements(config, int(config in grid.again), again):
                pool.add(one)
        prompts: list[Any] = [SimpleNamespace(prompt_id=grid.document["prompts"][row]) for row in np.unique(again)]
        values = combined(guide.beliefs(finalists), pool, finalists, prompts)
        for number, config in enumerate(finalists, start=1):
            named = max(values, key=values.__getitem__) if number == len(finalists) else choice
            yield Trial(config, int(config in grid.again), named)

    def _believed_best(self, guide: Guide, tried: Sequence[SpecConfig]) -> SpecConfig:
        best = max(tried, key=lambda config: guide.believed(config, 0.0))
        return best if guide.believed(best, 0.0) > 0.0 else OFF
