"""The end of a tuning run in words: figures by category, what the policy holds, what to believe. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from autospec.cli.console import minutes, ratio, table
from autospec.comparison import Bound, Estimate, verdict
from autospec.config import SpecConfig
from autospec.policy import Row
from autospec.tuning import TuningResult
from autospec.tuning.result import TokenIdentity
from autospec.yardsticks import LATENCY, SPEED


def summary_lines(result: TuningResult, folder: Path) -> Iterator[str]:
    """Yield the lines that end a tuning run."""
    yield ""
    where = "held-out prompts" if result.finished else "tune prompts of the search, not confirmed"
    yield f"result, on {where}; looked for: {result.objective}"
    yield from table(list(_rows(result)), right=(1, 2, 3))
    yield f"without the prefills: {ratio(result.decode_speedup)}; total tokens over total seconds: {_total(result)}"
    yield from _other_lines(result)
    yield from _situation_lines(result)
    yield from _cross_checks(result)
    yield ""
    yield "the policy holds"
    yield from _policy_lines(result)
    yield from _lossy_lines(result)
    yield from _front_lines(result)
    yield ""
    identity = result.identity
    num_equal = identity.num_compared - identity.num_different
    yield (
        f"tokens equal plain decoding's in {num_equal} of {identity.num_compared} outputs that must "
        f"({identity.num_tokens:,} tokens, {identity.num_excused} differences excused by a tie)"
    )
    if identity.divergence_rate:
        yield (
            f"outputs that diverge from plain decoding's: {identity.divergence_rate:.1%}; how close another token was "
            f"there: {_gaps(identity)}"
        )
    yield (
        f"noise of one timing {result.noise_floor:.1%}; {result.num_live_trials} trials with the baseline's; search "
        f"ended by: {result.stop_reason}"
    )
    yield from _prediction_lines(result)
    yield "time: " + ", ".join(f"{phase} {minutes(seconds)}" for phase, seconds in result.wall_seconds.items())
    yield ""
    yield f"policy: {folder / 'policy.json'}"


def _rows(result: TuningResult) -> Iterator[list[str]]:
    """Yield the head, the policy over all prompts, and each category."""
    yield ["", "prompts", "baseline tok/s", "policy tok/s", result.yardstick.title, "verdict", "configuration"]
    throughput, decided = result.throughput, result.confirmation.ratio
    yield [
        "all",
        str(decided.num_prompts),
        f"{throughput.baseline_tokens_per_second:.1f}",
        f"{throughput.tokens_per_second:.1f}",
        ratio(decided),
        _verdict(decided),
        "by category" if len(_configs(result)) > 1 else next(iter(_configs(result))).short(),
    ]
    for name, row in result.confirmation.categories.items():
        baseline, own = _speeds(result, name, row.config)
        yield [
            f"  {name}",
            str(row.ratio.num_prompts),
            f"{baseline:.1f}" if baseline else "-",
            f"{own:.1f}" if own else "-",
            ratio(row.ratio),
            _verdict(row.ratio),
            row.config.short(),
        ]


def _configs(result: TuningResult) -> set[SpecConfig]:
    confirmation = result.confirmation
    return {row.config for row in confirmation.categories.values()} or {confirmation.overall.config}


def _verdict(estimate: Estimate) -> str:
    return verdict(estimate) if estimate.low != estimate.high else "as plain decoding"


def _speeds(result: TuningResult, category: str, config: SpecConfig) -> tuple[float, float]:
    """Return tokens per second of the baseline and under `config` on the confirmed prompts of a category."""
    confirmed = [one for one in result.measurements if one.stage == "confirm" and one.category == category]
    own = [one for one in confirmed if one.config == config] or confirmed
    if not own:
        return 0.0, 0.0
    baseline = sum(one.baseline_num_tokens for one in own) / sum(one.baseline_seconds for one in own)
    if config.is_off:
        return baseline, baseline
    return baseline, sum(one.num_tokens for one in own) / sum(one.seconds for one in own)


def _total(result: TuningResult) -> str:
    throughput = result.throughput
    return (
        f"{throughput.baseline_tokens_per_second:.1f} -> {throughput.tokens_per_second:.1f} tok/s "
        f"({throughput.ratio:.2f}x)"
    )


def _other_lines(result: TuningResult) -> Iterator[str]:
    """Show what did not decide beside what did."""
    latency = result.latency
    if latency.seconds:
        yield (
            f"p95 inter-token latency: {1e3 * latency.baseline_seconds:.2f} -> {1e3 * latency.seconds:.2f} ms, "
            f"by prompt {ratio(result.by(LATENCY).ratio)} (above 1 is shorter; tokens of a step come together)"
        )
    if result.yardstick != SPEED:
        yield f"speedup, which did not decide: {ratio(result.speedup)}"


def _situation_lines(result: TuningResult) -> Iterator[str]:
    """Show what batches and lengths of prompts gave."""
    if not result.situations:
        return
    yield ""
    rows = [["", "groups", "baseline tok/s", "tok/s", result.yardstick.title, "configuration"]]
    for one in result.situations:
        known = one.evidence
        rows.append(
            [
                one.situation.name,
                str(one.ratio.num_prompts),
                f"{known.baseline_tokens_per_second:.1f}" if known else "-",
                f"{known.tokens_per_second:.1f}" if known and not one.config.is_off else "-",
                ratio(one.ratio),
                one.config.short() + (f" ({one.tried.short()} was not faster)" if one.config != one.tried else ""),
            ]
        )
    yield from table(rows, right=(1, 2, 3))


def _cross_checks(result: TuningResult) -> Iterator[str]:
    for check in result.confirmation.cross_checks:
        yield (
            f"on {check.category}, {check.config.short()} is {ratio(check.ratio)} of {check.other_category}'s "
            f"{check.other_config.short()}: {verdict(check.ratio)}"
        )


def _policy_lines(result: TuningResult) -> Iterator[str]:
    rows = result.policy.rows
    for row in rows:
        yield f"  {_situation(row):<16} {row.config.short()}"
    if all(row.config.is_off for row in rows):
        yield f"  speculation off: {_why_off(result)}"
    for failure in result.failures:
        yield f"  {failure}"


def _situation(row: Row) -> str:
    """Name what a row speaks about; one prompt at a time goes without saying."""
    words = [row.category] if row.category else []
    words += [f"batch to {row.batch_size}"] if row.batch_size != 1 and row.batch_size is not None else []
    words += [f"context to {row.context_length}"] if row.context_length is not None else []
    return ", ".join(words) or "all"


def _lossy_lines(result: TuningResult) -> Iterator[str]:
    """Say what lossy rules of the policy lose."""
    for row in result.policy.rows:
        quality = row.evidence and row.evidence.quality
        if quality and quality.loss:
            agreement = "" if quality.agreement is None else f", agreement {_bounded(quality.agreement, 'at least')}"
            drop = "" if quality.score_drop is None else f", score lost {_bounded(quality.score_drop, 'at most')}"
            loss = f"{_bounded(quality.loss, 'at most')} nats per token"
            yield f"  {row.category or 'all'} is lossy: it loses {loss}{agreement}{drop}"


def _front_lines(result: TuningResult) -> Iterator[str]:
    """Show the Pareto set, where it is more than the fastest."""
    if all(row.quality is None for row in result.pareto) and not result.weighs_memory:
        return
    axes = "speed, quality and memory" if result.weighs_memory else "speed and quality"
    yield ""
    yield f"{axes}: what nothing else beats in all of them (figures of tune prompts flatter)"
    rows = [["prompts", "number", "speedup", "loss, nats/token", "memory", "allowed", "configuration"]]
    for one in result.pareto:
        loss = _bounded(one.loss, "at most") if one.quality else "none"
        allowed, memory = "yes" if one.is_allowed else "no", f"{one.memory_bytes / 1e6:.1f} MB"
        counted = [one.stage, str(one.speedup.num_prompts), ratio(one.speedup)]
        rows.append([*counted, loss, memory, allowed, one.config.short()])
    yield from table(rows, right=(1, 4))
    yield "memory: weights and caches of what a configuration itself runs"


def _bounded(bound: Bound, words: str) -> str:
    return f"{bound.value:.3f} ({words} {bound.bound:.3f})"


def _why_off(result: TuningResult) -> str:
    """Say why nothing is used: what failed has not been beaten by plain decoding."""
    late = {one.config for one in result.failures if one.stage in ("finalist", "confirm")}
    if late:
        return f"failed after the search: {', '.join(config.short() for config in late)}; see below"
    rule = "beat plain decoding with an interval above 1.0"
    if not result.failures:
        return f"no configuration {rule}"
    num_failed = len({one.config for one in result.failures})
    return f"{num_failed} configurations failed, see below; none of the others {rule}"


def _prediction_lines(result: TuningResult) -> Iterator[str]:
    """Say how far predictions were off, where there were some."""
    predicted = result.predicted
    for one in () if predicted is None else predicted.acceptance:
        if one.model is not None and one.acceptance is not None:
            learnt, rate = one.model.calibrated, one.model.frequency
            yield (
                f"chances of acceptance of {one.drafter}, which stop_rule cost_aware reads: log loss "
                f"{learnt.log_loss:.3f} on prompts left out, {rate.log_loss:.3f} of their constant rate"
            )
    if predicted is None or predicted.error is None:
        return
    error, num = predicted.error.uncorrected, predicted.error.uncorrected.num_pairs
    rank = "" if error.rank_correlation is None else f", rank correlation {error.rank_correlation:.2f}"
    yield (
        f"predictions of {num} measured configurations: off by {error.tokens_per_second_mape:.1%} "
        f"(noise {predicted.noise:.1%}){rank}, the first choice {error.regret:.1%} behind the best"
    )


def _gaps(identity: TokenIdentity) -> str:
    if identity.median_gap is None or identity.largest_gap is None:
        return "not recorded"
    return f"median {identity.median_gap:.1e}, largest {identity.largest_gap:.1e}"
