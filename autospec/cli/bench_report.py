"""The outcome of a bench as a table for people and a document for programs. Judges nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from autospec.cli.console import ratio, table
from autospec.cli.contest import ALL, Comparison, Contender
from autospec.policy import quality_from
from autospec.records import Measurement, StepStats
from autospec.rules import ACCEPT_RULES


def report_lines(
    contenders: Sequence[Contender], alone: Sequence[Comparison], pairs: Sequence[Comparison]
) -> Iterator[str]:
    """Yield the tables: each against plain decoding, then each two against each other."""
    by_name = {contender.name: contender for contender in contenders}
    rows = [["", "prompts", "tok/s", "baseline", "speedup", "", "tokens/step", "accepted"]]
    for one in alone:
        total = _Total([m for m in _measurements(by_name[one.first]) if one.category in (ALL, m.category)])
        label = one.first if one.category == ALL else f"  {one.category}"
        rows.append(
            [
                label,
                str(one.claim.estimate.num_prompts),
                f"{total.tokens_per_second:.1f}",
                f"{total.baseline_tokens_per_second:.1f}",
                ratio(one.claim.estimate),
                one.verdict,
                f"{total.stats.tokens_per_step:.2f}",
                f"{total.stats.acceptance_rate:.0%}",
            ]
        )
    if len(rows) > 1:
        yield from ["", "against plain decoding"]
        yield from table(rows, right=(1, 2, 3, 6, 7))
    if pairs:
        yield from ["", "against each other"]
        cells = [
            [pair.first, pair.second, pair.category or "all", ratio(pair.claim.estimate), pair.verdict]
            for pair in pairs
        ]
        yield from table([["first", "second", "category", "first / second", "first is"], *cells])
    if alone:
        yield "intervals: 95 %, Student t over prompts, adjusted for the number of rows of a table (Holm)"
    for contender in contenders:
        yield from _lossy_lines(contender)
        if contender.failure:
            yield f"{contender.name} was taken out: {contender.failure}"


def _lossy_lines(contender: Contender) -> Iterator[str]:
    """Flag what changes the output, with what it was seen to lose."""
    lossy = [one for one in _measurements(contender) if not ACCEPT_RULES[one.config.accept_rule].is_lossless]
    if not lossy:
        return
    quality = quality_from(lossy)
    loss, agreement = quality.loss, quality.agreement
    lost = f": {loss.value:.3f} nats per token lost (at most {loss.bound:.3f})" if loss else ""
    own = f", {agreement.value:.0%} of its tokens are the target's own" if agreement else ""
    yield f"{contender.name} is lossy{lost}{own}"


def result_document(
    contenders: Sequence[Contender],
    alone: Sequence[Comparison],
    pairs: Sequence[Comparison],
) -> dict[str, Any]:
    """Return the part of `bench.json` that was measured."""
    return {
        "contenders": [
            {
                "name": contender.name,
                "failure": contender.failure,
                "is_lossless": all(
                    ACCEPT_RULES[one.config.accept_rule].is_lossless for one in _measurements(contender)
                ),
                "quality": _quality_json(contender),
                "configs": sorted({one.config.short() for one in _measurements(contender)}),
                **_Total(_measurements(contender)).to_json(),
            }
            for contender in contenders
        ],
        "against_baseline": [one.to_json() for one in alone],
        "against_each_other": [one.to_json() for one in pairs],
    }


def _quality_json(contender: Contender) -> dict[str, Any] | None:
    lossy = [one for one in _measurements(contender) if one.quality is not None]
    return quality_from(lossy).to_json() if lossy else None


def _measurements(contender: Contender) -> list[Measurement]:
    return [one for ones in contender.measurements.values() for one in ones]


class _Total:
    """Sums over measurements."""

    def __init__(self, measurements: Sequence[Measurement]) -> None:
        self._measurements = measurements
        self.stats = StepStats()
        for one in measurements:
            self.stats.merge(one.stats)

    @property
    def tokens_per_second(self) -> float:
        """Total tokens over total seconds."""
        seconds = sum(one.seconds for one in self._measurements)
        return sum(one.num_tokens for one in self._measurements) / seconds if seconds else 0.0

    @property
    def baseline_tokens_per_second(self) -> float:
        """The same for plain decoding beside it."""
        seconds = sum(one.baseline_seconds for one in self._measurements)
        return sum(one.baseline_num_tokens for one in self._measurements) / seconds if seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            "num_measurements": len(self._measurements),
            "tokens_per_second": self.tokens_per_second,
            "baseline_tokens_per_second": self.baseline_tokens_per_second,
            "tokens_per_step": self.stats.tokens_per_step,
            "acceptance_rate": self.stats.acceptance_rate,
            "position_acceptance": list(self.stats.position_acceptance),
        }
