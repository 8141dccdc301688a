"""The final choice: the best of the search, measured again on tune prompts, one chosen over all and one per category.

The search's own figures flatter whatever came out first, so what counts here are fresh measurements, and, where the
study was guided, what predictions and search together make likely. A category gets a configuration of its own only
where that beats the overall one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from autospec.comparison import paired
from autospec.config import SpecConfig
from autospec.records import Measurement, Prompt
from autospec.rules import ACCEPT_RULES
from autospec.tuning.combining import Beliefs, combined
from autospec.tuning.measuring import ConfigurationFailed, Measurer
from autospec.tuning.pool import OFF, Leaderboard, Pool

FINALISTS_PER_CATEGORY = 2  # a trial has few prompts of a category: its second may well be its best


@dataclass(frozen=True, slots=True)
class Finalists:
    """What goes into the final choice.

    Args:
        overall: Candidates for all categories, the best first.
        by_category: Candidates for one category.
    """

    overall: tuple[SpecConfig, ...]
    by_category: Mapping[str, tuple[SpecConfig, ...]]

    def of_prompt(self, prompt: Prompt) -> tuple[SpecConfig, ...]:
        """Return what is measured on a prompt."""
        return tuple(dict.fromkeys((*self.overall, *self.by_category.get(prompt.category, ()))))

    @property
    def configs(self) -> tuple[SpecConfig, ...]:
        """All distinct ones."""
        return tuple(dict.fromkeys((*self.overall, *(one for own in self.by_category.values() for one in own))))

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "overall": [config.to_json() for config in self.overall],
            "by_category": {name: [one.to_json() for one in own] for name, own in self.by_category.items()},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Build from `to_json`."""
        return cls(
            tuple(SpecConfig.from_json(one) for one in values["overall"]),
            {name: tuple(SpecConfig.from_json(one) for one in own) for name, own in values["by_category"].items()},
        )


@dataclass(frozen=True, slots=True)
class Chosen:
    """What is confirmed on held-out prompts.

    Args:
        overall: For all categories; may be off.
        by_category: Only those categories that have a configuration of their own.
        fallback: What takes the place of a lossy overall configuration that fails or loses too much: the best
            lossless one, or off.
        beside: Of a front, what is measured with them and never used.
    """

    overall: SpecConfig = OFF
    by_category: Mapping[str, SpecConfig] = field(default_factory=dict)
    fallback: SpecConfig = OFF
    beside: tuple[SpecConfig, ...] = ()

    def of_category(self, category: str) -> SpecConfig:
        """Return what a category uses."""
        return self.by_category.get(category, self.overall)

    def without(self, failed: Iterable[SpecConfig]) -> Chosen:
        """Return what is left: an overall configuration that failed becomes its fallback, a category's is dropped."""
        out = set(failed)
        fallback = OFF if self.fallback in out else self.fallback
        overall = fallback if self.overall in out else self.overall
        by_category = {name: one for name, one in self.by_category.items() if one not in out}
        return Chosen(overall, by_category, fallback, tuple(one for one in self.beside if one not in out))

    @property
    def configs(self) -> tuple[SpecConfig, ...]:
        """All distinct ones that are not off."""
        named = (self.overall, *self.by_category.values(), self.fallback, *self.beside)
        return tuple(one for one in dict.fromkeys(named) if not one.is_off)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "overall": self.overall.to_json(),
            "fallback": self.fallback.to_json(),
            "by_category": {name: config.to_json() for name, config in self.by_category.items()},
            "beside": [config.to_json() for config in self.beside],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Build from `to_json`."""
        own = {name: SpecConfig.from_json(one) for name, one in values["by_category"].items()}
        fallback = SpecConfig.from_json(values["fallback"]) if "fallback" in values else OFF
        beside = tuple(SpecConfig.from_json(one) for one in values.get("beside", ()))
        return cls(SpecConfig.from_json(values["overall"]), own, fallback, beside)


def pick_finalists(
    board: Leaderboard,
    num_overall: int,
    front: Sequence[SpecConfig] = (),
    believed: Callable[[SpecConfig, float], float] | None = None,
) -> Finalists:
    """Return the best complete configurations of the search, over all and by category; none that pruning ended.

    Where all of the best are lossy, the best lossless one goes with them, as what they fall back to.

    Args:
        board: The search's.
        num_overall: How many of the best.
        front: Of it as many go with them.
        believed: Configuration and mean log ratio to what is believed of it, by which the best over all are told;
            None takes the means.
    """
    standings = board.ranked(board.prompts)
    if believed is not None:
        standings.sort(key=lambda one: (-believed(one.config, one.value), one.config.config_hash))
    ranked = [one.config for one in standings]
    overall = tuple(dict.fromkeys((*ranked[:num_overall], *spread_over(front, num_overall))))
    if not any(map(_is_lossless, overall)):
        overall += tuple(one for one in ranked if _is_lossless(one))[:1]
    by_category = {}
    if len(board.categories) > 1:
        for name in board.categories:
            leaders = board.ranked(board.of_category(name))[:FINALISTS_PER_CATEGORY]
            by_category[name] = tuple(one.config for one in leaders)
    return Finalists(overall, by_category)


def spread_over(ordered: Sequence[SpecConfig], num_most: int) -> tuple[SpecConfig, ...]:
    """Return so many of a sequence, evenly spread, the first and the last among them."""
    if len(ordered) <= num_most or num_most < 2:
        return tuple(ordered[:num_most])
    step = (len(ordered) - 1) / (num_most - 1)
    return tuple(ordered[round(step * place)] for place in range(num_most))


def measure_all(
    measurer: Measurer, prompts: Sequence[Prompt], configs_of: Finalists | Chosen, stage: str, repeats: int
) -> tuple[list[Measurement], set[SpecConfig]]:
    """Measure configurations prompt by prompt, in an order that rotates, and return what was seen and what failed.

    Args:
        measurer: Runner and log.
        prompts: In order.
        configs_of: What is measured; of `Finalists` a prompt gets those of its category, of `Chosen` all.
        stage: `finalist` or `confirm`.
        repeats: How often.
    """
    measured, failed = list[Measurement](), set[SpecConfig]()
    for repeat in range(repeats):
        for index, prompt in enumerate(prompts):
            configs = configs_of.of_prompt(prompt) if isinstance(configs_of, Finalists) else configs_of.configs
            for config in _rotated(configs, index + repeat):
                if config not in failed:
                    try:
                        measured.append(measurer.measure(config, prompt, stage=stage, trial=-1, repeat=repeat))
                    except ConfigurationFailed:
                        failed.add(config)
    return measured, failed


def choose(
    finalists: Finalists,
    pool: Pool,
    prompts: Sequence[Prompt],
    failed: Iterable[SpecConfig],
    beliefs: Beliefs | None = None,
) -> Chosen:
    """Choose: the best over all, and for a category what beats it there (interval above 1.0).

    Args:
        finalists: The candidates.
        pool: Fresh measurements of them.
        prompts: On which these were made.
        failed: What is not chosen.
        beliefs: What was known of the candidates before, which counts too for the best over all.
    """
    out = set(failed)
    values = combined(beliefs or Beliefs(), pool, [one for one in finalists.overall if one not in out], prompts)
    overall = _highest(values)
    by_category = {}
    fallback = OFF
    if not _is_lossless(overall):
        fallback = _highest({one: value for one, value in values.items() if _is_lossless(one)})
    for category in finalists.by_category:
        own_prompts = [prompt for prompt in prompts if prompt.category == category]
        candidates = [
            one
            for one in finalists.configs
            if one not in out and len(pool.means(one, own_prompts)) == len(own_prompts) > 0
        ]
        best = _best(pool, candidates, own_prompts)
        if not best.is_off and best != overall and beats(pool, best, overall, own_prompts):
            by_category[category] = best
    return Chosen(overall, by_category, fallback)


def beats(pool: Pool, first: SpecConfig, second: SpecConfig, prompts: Sequence[Prompt]) -> bool:
    """Return whether the paired interval of two configurations lies above 1.0."""
    return paired(pool.ratios(first, prompts), pool.ratios(second, prompts)).low > 1.0


def _best(pool: Pool, candidates: Iterable[SpecConfig], prompts: Sequence[Prompt]) -> SpecConfig:
    """Return the candidate with the highest mean; off where none is above it."""
    return _highest(combined(Beliefs(), pool, candidates, prompts))


def _highest(values: Mapping[SpecConfig, float]) -> SpecConfig:
    """Return the configuration with the highest log ratio, the first of equals; off where none is above it."""
    best = max(values, key=lambda config: values[config], default=OFF)
    return best if values.get(best, 0.0) > 0.0 else OFF


def _is_lossless(config: SpecConfig) -> bool:
    return ACCEPT_RULES[config.accept_rule].is_lossless


def _rotated(configs: Sequence[SpecConfig], index: int) -> list[SpecConfig]:
    start = index % len(configs) if configs else 0
    return [*configs[start:], *configs[:start]]
