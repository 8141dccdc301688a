"""Several differences claimed together, so that none is claimed for being one of many (Holm 1979).

Knows ratios and their p values, and nothing of what they are of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autospec.comparison import Estimate, LogRatios, check_confidence, p_value, speedup


@dataclass(frozen=True, slots=True)
class Claim:
    """One of several differences claimed together.

    Args:
        estimate: The ratio; its interval excludes 1.0 exactly where the adjusted p value is below 1 - the
            confidence of the whole family.
        p_value: Two-sided, against 1.0, for this claim alone.
        adjusted_p_value: The same after Holm's adjustment.
        interval_confidence: Level of the interval, at least that of the family.
    """

    estimate: Estimate
    p_value: float
    adjusted_p_value: float
    interval_confidence: float


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p values in the order given: the k-th smallest of m is multiplied by m - k + 1.

    No adjusted value is smaller than that of a smaller p value, and none is above 1.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
    return adjusted


def claims(log_ratios_by_claim: Mapping[str, LogRatios], confidence: float = 0.95) -> dict[str, Claim]:
    """Judge several claims together, so that with probability `confidence` none is made falsely (Holm 1979).

    Intervals follow the steps of the procedure: with m claims and error 1 - confidence, the claim with the k-th
    smallest p value gets the level at which Holm tests it, 1 - error / (m - k + 1), up to and including the first
    that is not rejected; all later ones get that one's level. A t interval excludes 1.0 exactly where its t test
    rejects, so interval and adjusted decision always agree. What holds for the whole family is the decision against
    1.0; the ends of an interval hold with at least `confidence` for each claim, not for all at once. (Bounds that do,
    and agree with Holm, say nothing beyond 1.0 for a claim unless all are made: Strassburger and Bretz 2008.)

    Args:
        log_ratios_by_claim: Name of the claim to its log ratios by prompt.
        confidence: Of the whole family.
    """
    check_confidence(confidence)
    names = list(log_ratios_by_claim)
    p_values = {name: p_value(log_ratios_by_claim[name]) for name in names}
    adjusted = dict(zip(names, holm(list(p_values.values())), strict=True))
    error = 1.0 - confidence
    num_rejected = sum(value < error for value in adjusted.values())
    results = {}
    for rank, name in enumerate(sorted(names, key=p_values.__getitem__)):
        level = 1.0 - error / (len(names) - min(rank, num_rejected))
        estimate = speedup(log_ratios_by_claim[name], level)
        results[name] = Claim(estimate, p_values[name], adjusted[name], level)
    return {name: results[name] for name in names}
