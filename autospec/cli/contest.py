"""Several ways to decode, measured side by side on the same prompts and judged against plain decoding and each other.

A contender picks a configuration for every prompt: a policy by category and length, a fixed configuration always the
same. Knows no file and prints nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from autospec.claims import Claim, claims
from autospec.comparison import verdict
from autospec.config import SpecConfig
from autospec.errors import BaselineError, DrafterError, MeasurementError
from autospec.records import Measurement, Prompt
from autospec.runners.base import Runner

ALL = ""  # the category that stands for all of them
STAGE = "bench"

Pick = Callable[[Prompt], SpecConfig]


@dataclass(slots=True)
class Contender:
    """One way to decode, and what was seen of it.

    Args:
        name: For people.
        pick: Which configuration it uses on a prompt.
        measurements: By prompt id, one for each repeat.
        failure: Why it was taken out; empty while it is in.
    """

    name: str
    pick: Pick
    measurements: defaultdict[str, list[Measurement]] = field(default_factory=lambda: defaultdict(list))
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How much faster one way is than another in a category, and what may be said of it.

    Args:
        first: Name of a contender.
        second: Name of another, or empty for plain decoding.
        category: Name, or empty for all.
        claim: The ratio; its interval holds for all comparisons of its kind together.
    """

    first: str
    second: str
    category: str
    claim: Claim

    @property
    def verdict(self) -> str:
        """`faster`, `slower` or `cannot be told apart`."""
        return verdict(self.claim.estimate)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "first": self.first,
            "second": self.second or "baseline",
            "category": self.category or "all",
            "speedup": self.claim.estimate.to_json(),
            "p_value": self.claim.p_value,
            "adjusted_p_value": self.claim.adjusted_p_value,
            "verdict": self.verdict,
        }


def measure(
    contenders: Sequence[Contender],
    prompts: Sequence[Prompt],
    runner: Runner,
    repeats: int,
    on_measured: Callable[[Measurement], None],
) -> None:
    """Measure every contender on every prompt, each beside plain decoding, in an order that rotates.

    Contenders that pick the same configuration for a prompt share its measurement. One whose configuration fails is
    taken out with the reason.

    Raises:
        BaselineError: Plain decoding cannot be measured on a prompt.
    """
    for repeat in range(repeats):
        for index, prompt in enumerate(prompts):
            by_config: dict[SpecConfig, list[Contender]] = {}
            for contender in contenders:
                if not contender.failure:
                    by_config.setdefault(contender.pick(prompt), []).append(contender)
            configs = list(by_config)
            start = (index + repeat) % max(1, len(configs))
            for config in [*configs[start:], *configs[:start]]:
                try:
                    measured = runner.measure(config, prompt, stage=STAGE, trial=-1, repeat=repeat)
                except BaselineError:
                    raise  # of no contender
                except (DrafterError, MeasurementError) as error:
                    for contender in by_config[config]:
                        contender.failure = str(error)
                    continue
                on_measured(measured)
                for contender in by_config[config]:
                    contender.measurements[prompt.prompt_id].append(measured)


def against_baseline(contenders: Sequence[Contender], prompts: Sequence[Prompt]) -> list[Comparison]:
    """Judge each contender against plain decoding, over all and by category; prompts not measured are left out."""
    found = {}
    for contender in contenders:
        for category, group in _groups(prompts):
            ratios = _ratios(contender, group)
            if ratios:
                found[contender.name, "", category] = ratios
    return _judged(found)


def against_each_other(contenders: Sequence[Contender], prompts: Sequence[Prompt]) -> list[Comparison]:
    """Judge every two contenders, over all and by category, on the prompts that both were measured on."""
    found = {}
    for first, second in combinations(contenders, 2):
        for category, group in _groups(prompts):
            ours, theirs = _means(first, group), _means(second, group)
            ratios = {prompt: [ours[prompt] - theirs[prompt]] for prompt in ours if prompt in theirs}
            if ratios:
                found[first.name, second.name, category] = ratios
    return _judged(found)


def _groups(prompts: Sequence[Prompt]) -> Iterator[tuple[str, list[Prompt]]]:
    """Yield all prompts, and those of each category where there are several."""
    yield ALL, list(prompts)
    categories = sorted({prompt.category for prompt in prompts})
    if len(categories) > 1:
        for category in categories:
            yield category, [prompt for prompt in prompts if prompt.category == category]


def _ratios(contender: Contender, prompts: Sequence[Prompt]) -> dict[str, list[float]]:
    measured = {prompt.prompt_id: contender.measurements.get(prompt.prompt_id, []) for prompt in prompts}
    return {prompt: [one.log_speedup for one in ones] for prompt, ones in measured.items() if ones}


def _means(contender: Contender, prompts: Sequence[Prompt]) -> dict[str, float]:
    return {prompt: sum(values) / len(values) for prompt, values in _ratios(contender, prompts).items()}


def _judged(ratios: Mapping[tuple[str, str, str], Mapping[str, Sequence[float]]]) -> list[Comparison]:
    """Judge all of them together, so that an interval above 1.0 is not owed to their number."""
    names = {str(index): key for index, key in enumerate(ratios)}
    judged = claims({index: ratios[key] for index, key in names.items()}) if ratios else {}
    return [Comparison(*names[index], claim) for index, claim in judged.items()]
