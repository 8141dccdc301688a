"""From chosen configurations and their measurements to a policy.

Decides nothing: which configuration won, and whether a category has earned its own, is known before it comes here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import autospec
from autospec.comparison import one_sided, speedup
from autospec.config import SpecConfig
from autospec.engine.costs import CostCurve
from autospec.policy.parts import Evidence, Quality, Reproduction, Row, TunedWorkload
from autospec.policy.policy import Policy
from autospec.records import Measurement, StepStats, Workload
from autospec.sources import ModelSource, drafter_source, loaded_source, portable_source, tokenizer_digest
from autospec.yardsticks import LATENCY

if TYPE_CHECKING:
    from autospec.engine.decoder import SpeculativeDecoder


@dataclass(frozen=True, slots=True)
class Choice:
    """A configuration that was chosen, and why; no evidence where nothing was measured."""

    config: SpecConfig
    evidence: Evidence | None = None


def build_policy(  # noqa: PLR0913  (a policy has so many parts)
    decoder: SpeculativeDecoder,
    workload: Workload,
    device: Mapping[str, str | int | float],
    overall: Choice,
    by_category: Mapping[str, Choice],
    reproduce: Reproduction,
    situations: Sequence[Row] = (),
) -> Policy:
    """Return a policy with one row for all and one for each category that has a configuration of its own.

    Both are for one prompt at a time, as they were measured: batches have rows of their own, or are off.

    Args:
        decoder: What was measured; models of the embedded family are stored under names that mean the same anywhere.
        workload: What it was tuned on.
        device: Fingerprint of the machine.
        overall: Best over all categories.
        by_category: Best of a category; one that equals `overall` is inherited and gets no row.
        reproduce: How it was made.
        situations: Rows for batches and lengths of prompts.
    """
    rows = [Row(overall.config, batch_size=1, evidence=overall.evidence)]
    rows += [
        Row(choice.config, batch_size=1, category=category, evidence=choice.evidence)
        for category, choice in sorted(by_category.items())
        if choice.config != overall.config
    ]
    rows += situations
    return Policy(
        target=loaded_source(decoder.target.name, decoder.target),
        drafters={name: drafter_source(drafter) for name, drafter in sorted(decoder.drafters.items())},
        dtype=str(decoder.target.dtype).removeprefix("torch."),
        device=dict(device),
        workload=TunedWorkload(workload.name, workload.content_hash, workload.categories),
        sampling=workload.sampling,
        rows=tuple(rows),
        reproduce=reproduce,
        tokenizer=_tokenizer(decoder),
        costs=_costs(decoder, rows),
        compile=decoder.target.compiles,
    )


def _costs(decoder: SpeculativeDecoder, rows: Sequence[Row]) -> dict[str, CostCurve]:
    """Return the costs that the rows' stopping rule read while they were measured; none where no row has it."""
    readers = {row.config.drafter for row in rows if row.config.stop_rule == "cost_aware"}
    return {name: decoder.costs[name] for name in sorted(readers) if name in decoder.costs}


def _tokenizer(decoder: SpeculativeDecoder) -> ModelSource | None:
    """Return where the tokenizer came from, or None where it is the target's own or does not know."""
    source = decoder.text.source if decoder.text is not None else ""
    if not source or portable_source(source) == portable_source(decoder.target.name):
        return None
    return ModelSource(portable_source(source), digest=tokenizer_digest(source))


def evidence_from(measurements: Sequence[Measurement]) -> Evidence:
    """Return what paired measurements of one configuration say.

    Raises:
        ValueError: There are none, or they are of several configurations.
    """
    if len({one.config for one in measurements}) != 1:
        raise ValueError(f"evidence is about one configuration, but got {len(measurements)} measurements of several")
    whole: defaultdict[str, list[float]] = defaultdict(list)
    decode: defaultdict[str, list[float]] = defaultdict(list)
    stats = StepStats()
    for one in measurements:
        whole[one.prompt_id].append(one.log_speedup)
        decode[one.prompt_id].append(one.log_decode_speedup)
        stats.merge(one.stats)
    return Evidence(
        baseline_tokens_per_second=sum(one.baseline_num_tokens for one in measurements)
        / sum(one.baseline_seconds for one in measurements),
        tokens_per_second=sum(one.num_tokens for one in measurements) / sum(one.seconds for one in measurements),
        speedup=speedup(whole),
        decode_speedup=speedup(decode),
        tokens_per_step=stats.tokens_per_step,
        acceptance_rate=stats.acceptance_rate,
        position_acceptance=stats.position_acceptance,
        num_prompts=len(whole),
        num_measurements=len(measurements),
        quality=quality_from(measurements),
        p95_latency_ratio=LATENCY.estimate(measurements) if all(one.has_gaps for one in measurements) else None,
    )


def quality_from(measurements: Sequence[Measurement], confidence: float = 0.95) -> Quality:
    """Return what was seen of the outputs of one configuration.

    The bound of the loss is on how far it is from 0, whichever way: text that the target finds likelier than its own,
    such as copied text that repeats itself under sampling, is not the target's either.

    Args:
        measurements: At least one; repeats of a prompt count as one.
        confidence: Of each one-sided bound.
    """
    compared = [one for one in measurements if one.identical is not None]
    num_unlike = sum(one.num_unlike for one in compared)
    verdict = "not compared" if not compared else "different" if num_unlike else "identical"
    losses: defaultdict[str, list[float]] = defaultdict(list)
    agreements: defaultdict[str, list[float]] = defaultdict(list)
    drops: defaultdict[str, list[float]] = defaultdict(list)
    for one in measurements:
        if one.quality is not None:
            losses[one.prompt_id].append(one.quality.loss)
            agreements[one.prompt_id].append(one.quality.agreement)
            if one.quality.score is not None and one.quality.baseline_score is not None:
                drops[one.prompt_id].append(one.quality.baseline_score - one.quality.score)
    return Quality(
        num_identical=sum(one.num_outputs for one in compared) - num_unlike,
        num_excused=sum(one.num_excused for one in measurements),
        verdict=verdict,
        loss=one_sided(losses, upper=True, confidence=confidence).either_way if losses else None,
        agreement=one_sided(agreements, upper=False, confidence=confidence) if agreements else None,
        score_drop=one_sided(drops, upper=True, confidence=confidence) if drops else None,
    )


def reproduction(command: str, seed: int) -> Reproduction:
    """Return how a policy is made now: the command, its seed, the version of autospec and the time."""
    return Reproduction(command, seed, autospec.__version__, datetime.now(UTC).isoformat(timespec="seconds"))
