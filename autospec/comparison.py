"""Whether one way to decode is faster than another, and how sure that is.

Everything that claims a difference asks here. Works on log ratios by prompt: a prompt is the unit that varies, repeats
of one prompt are averaged first and do not count as further evidence. Knows no engine, no trial and no file.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from autospec.errors import ConfigError, MeasurementError

NOISE_WARNING = 0.10
NOISE_REPEATS = 0.20
_LARGEST_LOG = 700.0  # exp of it still fits a float
_NORMAL_MEDIAN_DEVIATION = 0.6744897501960817  # median of |x| for a standard normal x

LogRatios = Mapping[str, Sequence[float]]
Verdict = Literal["faster", "slower", "cannot be told apart"]
NoiseAction = Literal["none", "warn", "add repeats"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A ratio with its interval; 1.0 is no difference.

    Args:
        value: Geometric mean over prompts.
        low: Lower end; 0.0 where nothing is known.
        high: Upper end; infinite where nothing is known, which is null in JSON.
        num_prompts: How many prompts it rests on.
    """

    value: float
    low: float
    high: float
    num_prompts: int

    def to_json(self) -> dict[str, float | int | None]:
        """Return the fields as JSON values; an infinite `high` becomes None."""
        high = None if math.isinf(self.high) else self.high
        return {"value": self.value, "low": self.low, "high": high, "num_prompts": self.num_prompts}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Build from `to_json`; anything else is a `ConfigError`."""
        names = ["value", "low", "high", "num_prompts"]
        if not isinstance(values, Mapping) or sorted(values) != sorted(names):
            raise ConfigError(f"an estimate must have exactly the entries {names}, but got {values!r:.120}")
        numbers = {**values, "high": math.inf if values["high"] is None else values["high"]}
        counts = type(numbers["num_prompts"]) is int
        if not counts or any(type(number) not in (int, float) for number in numbers.values()):
            raise ConfigError(f"the entries of an estimate must be numbers, but got {values!r:.120}")
        if not 0.0 <= numbers["low"] <= numbers["high"] or not math.isfinite(numbers["value"]):
            raise ConfigError(f"`0 <= low <= high` and a finite value must hold, but got {values!r:.120}")
        return cls(float(numbers["value"]), float(numbers["low"]), float(numbers["high"]), numbers["num_prompts"])


@dataclass(frozen=True, slots=True)
class Bound:
    """A mean over prompts with a one-sided bound on it.

    Args:
        value: Mean over prompts.
        bound: What it lies below (or above, where the bound is a lower one) with the confidence asked for; infinite
            where nothing is known, which is null in JSON.
        num_prompts: How many prompts it rests on.
    """

    value: float
    bound: float
    num_prompts: int

    @property
    def either_way(self) -> Self:
        """The same mean with a bound on how far it is from 0, whichever way; that of an upper bound or a lower one."""
        return replace(self, bound=abs(self.value) + abs(self.bound - self.value))

    def to_json(self) -> dict[str, float | int | None]:
        """Return the fields as JSON values."""
        known = self.bound if math.isfinite(self.bound) else None
        return {"value": self.value, "bound": known, "num_prompts": self.num_prompts}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], unknown: float = math.inf) -> Self:
        """Build from `to_json`; a bound of None becomes `unknown`."""
        bound = unknown if values["bound"] is None else float(values["bound"])
        return cls(float(values["value"]), bound, int(values["num_prompts"]))


def one_sided(values_by_prompt: LogRatios, *, upper: bool, confidence: float = 0.95) -> Bound:
    """Bound the mean over prompts from one side, by Student's t on the per-prompt means of repeats.

    One prompt says nothing about others: its bound is infinite. Prompts that all agree exactly are their own bound.

    Args:
        values_by_prompt: Prompt id to the values of its repeats.
        upper: Whether the mean shall lie below the bound, or else above it.
        confidence: Of the bound.

    Raises:
        MeasurementError: No prompts, a prompt without repeats, or a number that is not finite.
        ConfigError: `confidence` is not between 0 and 1.
    """
    means = list(_prompt_means(values_by_prompt).values())
    check_confidence(confidence)
    center, sign = statistics.fmean(means), 1.0 if upper else -1.0
    if len(means) == 1:
        return Bound(center, sign * math.inf, 1)
    from scipy.special import stdtrit

    return Bound(
        center, center + sign * float(stdtrit(len(means) - 1, confidence)) * _standard_error(means), len(means)
    )


def speedup(log_ratios_by_prompt: LogRatios, confidence: float = 0.95) -> Estimate:
    """Estimate a speedup from log ratios (baseline seconds per token over seconds per token).

    Student's t on the per-prompt means of repeats, two-sided. One prompt says nothing about others: its interval is
    0 to infinity. Prompts that all agree exactly give an interval of no width.

    Args:
        log_ratios_by_prompt: Prompt id to the log ratios of its repeats.
        confidence: Level of the interval.

    Raises:
        MeasurementError: No prompts, a prompt without repeats, or a number that is not finite.
        ConfigError: `confidence` is not between 0 and 1.
    """
    means = list(_prompt_means(log_ratios_by_prompt).values())
    check_confidence(confidence)
    center = statistics.fmean(means)
    if len(means) == 1:
        return Estimate(_exp(center), 0.0, math.inf, 1)
    from scipy.special import stdtrit

    quantile = float(stdtrit(len(means) - 1, 1.0 - (1.0 - confidence) / 2.0))
    half_width = quantile * _standard_error(means)
    return Estimate(_exp(center), _exp(center - half_width), _exp(center + half_width), len(means))


def p_value(log_ratios_by_prompt: LogRatios) -> float:
    """Return the two-sided p value of Student's t test against a ratio of 1.0; 1.0 for one prompt.

    Prompts that all agree exactly give 0.0, or 1.0 where they agree on no difference.
    """
    means = list(_prompt_means(log_ratios_by_prompt).values())
    if len(means) == 1:
        return 1.0
    center, error = statistics.fmean(means), _standard_error(means)
    if error == 0.0:
        return float(center == 0.0)
    from scipy.special import stdtr

    return min(1.0, 2.0 * float(stdtr(len(means) - 1, -abs(center) / error)))


def bootstrap_interval(
    log_ratios_by_prompt: LogRatios, confidence: float = 0.95, *, seed: int = 0, num_resamples: int = 4000
) -> Estimate:
    """Estimate a speedup by the studentised bootstrap over prompts: a check of `speedup` that assumes no normality.

    A resample in which one prompt was drawn every time has no spread and an infinite t; with three prompts or fewer
    these are so many that the interval is 0 to infinity.

    Args:
        log_ratios_by_prompt: Prompt id to the log ratios of its repeats.
        confidence: Level of the interval.
        seed: Seed of the resampling.
        num_resamples: How often prompts are drawn.
    """
    means = list(_prompt_means(log_ratios_by_prompt).values())
    check_confidence(confidence)
    center = statistics.fmean(means)
    if len(means) == 1:
        return Estimate(_exp(center), 0.0, math.inf, 1)
    import numpy as np

    draws = np.random.default_rng(seed).choice(np.array(means), size=(num_resamples, len(means)))
    shifts = draws.mean(axis=1) - center
    errors = draws.std(axis=1, ddof=1) / math.sqrt(len(means))
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = np.sort(np.where(shifts == 0.0, 0.0, shifts / errors))
    tail = int((1.0 - confidence) / 2.0 * num_resamples)
    error = _standard_error(means)
    low, high = (center - error * float(scores[index]) if error else center for index in (-1 - tail, tail))
    return Estimate(_exp(center), _exp(low), _exp(high), len(means))


def paired(first: LogRatios, second: LogRatios, confidence: float = 0.95) -> Estimate:
    """Estimate how much faster `first` is than `second`, both measured against one baseline on the same prompts.

    Raises:
        MeasurementError: The prompts differ, or what `speedup` refuses.
    """
    first_means, second_means = _prompt_means(first), _prompt_means(second)
    unpaired = sorted(first_means.keys() ^ second_means.keys())
    if unpaired:
        raise MeasurementError(f"a paired comparison needs the same prompts on both sides, but {unpaired} are on one")
    return speedup({prompt: [mean - second_means[prompt]] for prompt, mean in first_means.items()}, confidence)


def verdict(estimate: Estimate) -> Verdict:
    """Say what an interval allows to be said."""
    if estimate.low > 1.0:
        return "faster"
    return "slower" if estimate.high < 1.0 else "cannot be told apart"


def noise_floor(log_ratios_by_prompt: LogRatios) -> float:
    """Return the coefficient of variation of one timing, from baseline-against-baseline log ratios.

    Both sides of such a ratio are the same prompt, so it holds noise within a prompt and no difference between
    prompts, and its truth is known to be 0: deviations are taken from there, and an effect of the order of the two
    runs counts as noise. The median absolute deviation, scaled to a normal's standard deviation, keeps a few stalls of
    the machine from deciding; a ratio varies by the square root of 2 more than a timing.

    Raises:
        MeasurementError: No prompts, a prompt without repeats, or a number that is not finite.
    """
    _check_ratios(log_ratios_by_prompt)
    deviations = [abs(ratio) for ratios in log_ratios_by_prompt.values() for ratio in ratios]
    return statistics.median(deviations) / _NORMAL_MEDIAN_DEVIATION / math.sqrt(2.0)


def noise_action(noise: float) -> NoiseAction:
    """Say what a noise floor calls for: over 10 % a warning, over 20 % further repeats as well."""
    if noise > NOISE_REPEATS:
        return "add repeats"
    return "warn" if noise > NOISE_WARNING else "none"


def _check_ratios(log_ratios_by_prompt: LogRatios) -> None:
    if not log_ratios_by_prompt:
        raise MeasurementError("a comparison needs at least one prompt, but got none")
    for prompt, ratios in log_ratios_by_prompt.items():
        if not ratios or not all(abs(ratio) < _LARGEST_LOG for ratio in ratios):
            raise MeasurementError(f"a prompt needs finite log ratios, but {prompt!r} has {list(ratios)}")


def _prompt_means(log_ratios_by_prompt: LogRatios) -> dict[str, float]:
    _check_ratios(log_ratios_by_prompt)
    return {prompt: statistics.fmean(ratios) for prompt, ratios in log_ratios_by_prompt.items()}


def _standard_error(means: list[float]) -> float:
    return statistics.stdev(means) / math.sqrt(len(means))


def check_confidence(confidence: float) -> None:
    """Refuse a confidence that is none.

    Raises:
        ConfigError: It is not between 0 and 1.
    """
    if not 0.0 < confidence < 1.0:
        raise ConfigError(f"`0 < confidence < 1` must hold, but got {confidence}")


def _exp(log_ratio: float) -> float:
    """Return the exponential; infinite where a float cannot hold it."""
    return math.exp(log_ratio) if log_ratio < _LARGEST_LOG else math.inf
