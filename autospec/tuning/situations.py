"""Situations beside one prompt at a time: batches of several, and contexts up to a length.

What a situation measures is a group of prompts decoded side by side, which stands in the log as one prompt. The best
of the search and shorter drafts of the same kind are tried, the best of them is judged once on held-out groups, and
what does not stand there is off: the table of a policy then says where speculation shrinks and where it stops.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from autospec.claims import claims
from autospec.comparison import Estimate, verdict
from autospec.config import SpecConfig
from autospec.policy import Evidence, Row, evidence_from
from autospec.records import Measurement, Prompt, Workload
from autospec.tuning.budget import affordable
from autospec.tuning.events import OnEvent, PhaseStarted, Warned
from autospec.tuning.finalists import Chosen, measure_all
from autospec.tuning.measuring import Measurer
from autospec.tuning.pool import OFF, Pool
from autospec.yardsticks import SPEED, Yardstick

if TYPE_CHECKING:
    from autospec.engine.decoder import SpeculativeDecoder

CHOICE, JUDGEMENT = "situation", "situation_confirm"  # stages of the log
LEAST_GROUPS = 3  # of which a judgement can be made
_MOST_GROUPS = 12  # for each choice
_CHOICE_SHARE = 0.4  # of the time of a situation
_PREDICTED = 2  # predictions of the situation that are tried
_SHORTER = (2, 4)  # parts of the longest draft that are tried besides

Lengths = Callable[[Prompt], int]


@dataclass(frozen=True, slots=True)
class Situation:
    """What a row of a policy speaks about.

    Args:
        batch_size: Prompts side by side.
        context_length: Longest prompt, in tokens; None is any.
        above: Prompts must be longer than so many tokens.
    """

    batch_size: int = 1
    context_length: int | None = None
    above: int = 0

    @property
    def name(self) -> str:
        """For people and for the log."""
        if self.context_length is None:
            return f"batch {self.batch_size}"
        return f"prompts to {self.context_length}" + (f", batch {self.batch_size}" if self.batch_size > 1 else "")

    def groups(self, prompts: Iterable[Prompt], lengths: Lengths) -> list[Prompt]:
        """Return groups of prompts in order, each as its first prompt with companions; what is over is left out.

        Args:
            prompts: Of which those of fitting length are taken.
            lengths: Tokens of a prompt.
        """
        fitting = [one for one in prompts if self._holds(one, lengths)]
        size = self.batch_size
        return [self._group(fitting[start : start + size]) for start in range(0, len(fitting) - size + 1, size)]

    def prompt_length(self, prompts: Iterable[Prompt], lengths: Lengths) -> int | None:
        """Return the middle length of the prompts that it speaks about; None where it speaks about any, or has none.

        Args:
            prompts: Of which those of fitting length are taken.
            lengths: Tokens of a prompt.
        """
        found = (
            sorted(length for length in map(lengths, prompts) if self.above < length <= self.context_length)
            if self.context_length is not None
            else []
        )
        return found[len(found) // 2] if found else None

    def _holds(self, prompt: Prompt, lengths: Lengths) -> bool:
        return self.context_length is None or self.above < lengths(prompt) <= self.context_length

    def _group(self, members: Sequence[Prompt]) -> Prompt:
        first, *others = members
        return replace(first, prompt_id=f"{first.prompt_id} ({self.name})", companions=tuple(others))


def lengths_of(decoder: SpeculativeDecoder) -> Lengths:
    """Return what counts the tokens of a prompt; each is rendered once."""
    return cache(lambda prompt: len(decoder.render(prompt)))


def situations_of(workload: Workload) -> tuple[Situation, ...]:
    """Return what a workload asks to be judged beside its prompts one at a time."""
    sizes = [Situation(size) for size in workload.batch_sizes if size > 1]
    edges = (0, *workload.context_lengths)
    buckets = [Situation(1, edge, above) for above, edge in itertools.pairwise(edges)]
    return (*sizes, *buckets)


@dataclass(frozen=True, slots=True)
class SituationRow:
    """What stands in a situation.

    Args:
        situation: Which.
        config: What to use there.
        ratio: Against plain decoding of the same groups, by the yardstick of the run; exactly 1.0 for off.
        tried: What was judged; off where nothing was found to be faster.
        evidence: What was measured of that on held-out groups; None where nothing was.
    """

    situation: Situation
    config: SpecConfig
    ratio: Estimate
    tried: SpecConfig = OFF
    evidence: Evidence | None = None

    @property
    def policy_row(self) -> Row:
        """What the table of a policy says."""
        situation, own = self.situation, None if self.config.is_off else self.evidence
        return Row(self.config, situation.batch_size, situation.context_length, evidence=own)

    def to_json(self) -> dict[str, Any]:
        """Return what `result.json` holds."""
        return {
            "batch_size": self.situation.batch_size,
            "context_length": self.situation.context_length,
            "config": self.config.to_json(),
            "ratio": self.ratio.to_json(),
            "tried": self.tried.to_json(),
            "evidence": self.evidence and self.evidence.to_json(),
        }


def candidates(ranked: Iterable[SpecConfig], predicted: Sequence[SpecConfig] = ()) -> tuple[SpecConfig, ...]:
    """Return what a situation tries: the best, shorter drafts of its drafter, the best of another drafter.

    Verifying costs more where more prompts share a forward, so drafts that pay there are shorter. What is predicted
    of the situation itself comes first.

    Args:
        ranked: The best first, one prompt at a time.
        predicted: The best first, in the situation.
    """
    known = [config for config in ranked if not config.is_off]
    if not known:
        return ()
    best = known[0]
    wanted: list[Callable[[SpecConfig], bool]] = [
        *(
            lambda one, part=part: one.drafter == best.drafter and one.draft_length <= best.draft_length // part
            for part in _SHORTER
        ),
        lambda one: one.drafter != best.drafter,
    ]
    found = [
        *_different(predicted)[:_PREDICTED],
        best,
        *(next((one for one in known if fits(one)), best) for fits in wanted),
    ]
    return tuple(dict.fromkeys(found))


def _different(configs: Sequence[SpecConfig]) -> list[SpecConfig]:
    """Return the first of those that draft as long by the same drafter and rule: others are hardly told apart."""
    kinds: dict[tuple[str, str, str, int], SpecConfig] = {}
    for one in configs:
        kinds.setdefault((one.drafter, one.tree_shape, one.stop_rule, one.draft_length), one)
    return list(kinds.values())


@dataclass(frozen=True, slots=True)
class Situations:
    """Judges the situations of a task.

    Args:
        workload: Prompts, and which situations.
        measurer: Runner and log.
        lengths: Tokens of a prompt.
        seconds_per_prompt: One prompt under plain decoding twice.
        on_event: Told what happens.
        yardstick: By which configurations are compared.
        predicted: Configurations by what is predicted of batches of a size and prompts of a length, the best first.
    """

    workload: Workload
    measurer: Measurer
    lengths: Lengths
    seconds_per_prompt: float
    on_event: OnEvent
    yardstick: Yardstick = SPEED
    predicted: Callable[[int, int | None], Sequence[SpecConfig]] = lambda batch_size, prompt_length: ()

    def judge(self, ranked: Sequence[SpecConfig], seconds: float) -> tuple[SituationRow, ...]:
        """Measure every situation and judge all of them together (Holm).

        Args:
            ranked: What the search knows, the best first.
            seconds: Time for all of them; infinite without a limit.
        """
        asked = situations_of(self.workload)
        chosen, ratios = dict[Situation, SpecConfig](), dict[str, dict[str, list[float]]]()
        measured = dict[str, list[Measurement]]()
        for number, situation in enumerate(asked):
            left = max(0.0, seconds - self.measurer.seconds(CHOICE)) / (len(asked) - number)
            chosen[situation] = self._choose(situation, ranked, left * _CHOICE_SHARE)
            if not chosen[situation].is_off:
                own = self._confirm(situation, chosen[situation], left * (1 - _CHOICE_SHARE))
                by_group = Pool(own, self.yardstick).ratios(chosen[situation], _groups_of(own))
                if len(by_group) >= LEAST_GROUPS:
                    measured[situation.name], ratios[situation.name] = own, by_group
        judged = {name: claim.estimate for name, claim in claims(ratios).items()}
        return tuple(_row(one, chosen[one], judged.get(one.name), measured.get(one.name, ())) for one in asked)

    def _choose(self, situation: Situation, ranked: Sequence[SpecConfig], seconds: float) -> SpecConfig:
        """Return the best candidate on groups of tune prompts; off where none is faster than plain decoding."""
        groups = situation.groups(self.workload.tune, self.lengths)
        if self._has_too_few(situation, groups, "tune", 1):
            return OFF

        def decided() -> dict[str, Any]:
            known = set(ranked)
            length = situation.prompt_length(self.workload.tune, self.lengths)
            predicted = self.predicted(situation.batch_size, length)
            found = candidates(ranked, [one for one in predicted if one in known])
            num_groups = self._num_groups(situation, groups, len(found), seconds)
            return {"configs": [one.to_json() for one in found], "num_groups": num_groups}

        recorded = self.measurer.log.decide(f"candidates of {situation.name}", decided)
        tried = tuple(SpecConfig.from_json(one) for one in recorded["configs"])
        if not tried:
            return OFF
        groups = groups[: recorded["num_groups"]]
        self.on_event(PhaseStarted(f"{CHOICE}: {situation.name}", len(groups) * len(tried), tried))
        measured, failed = self._measured(tried, groups, CHOICE)
        pool = Pool(measured, self.yardstick)
        values = {one: pool.value(one, groups) or 0.0 for one in tried if one not in failed}
        best = max(values, key=lambda one: values[one], default=OFF)
        chosen = best if values.get(best, 0.0) > 0.0 else OFF
        return SpecConfig.from_json(self.measurer.log.decide(f"chosen for {situation.name}", lambda: chosen.to_json()))

    def _confirm(self, situation: Situation, config: SpecConfig, seconds: float) -> list[Measurement]:
        """Measure held-out groups; none where there are too few."""
        groups = situation.groups(self.workload.held_out, self.lengths)
        if self._has_too_few(situation, groups, "held-out", LEAST_GROUPS):
            return []
        num_groups = self.measurer.log.decide(
            f"groups of {situation.name}", lambda: self._num_groups(situation, groups, 1, seconds)
        )
        groups = groups[:num_groups]
        self.on_event(PhaseStarted(f"{JUDGEMENT}: {situation.name}", len(groups), (config,)))
        measured, failed = self._measured((config,), groups, JUDGEMENT)
        return [] if failed else measured

    def _num_groups(self, situation: Situation, groups: Sequence[Prompt], num_configs: int, seconds: float) -> int:
        """Return how many groups fit into the time, at least as many as a judgement needs."""
        cost = self.seconds_per_prompt * situation.batch_size * max(1, num_configs)
        return affordable(min(len(groups), _MOST_GROUPS * (1 if num_configs > 1 else 2)), LEAST_GROUPS, cost, seconds)

    def _measured(
        self, configs: tuple[SpecConfig, ...], groups: Sequence[Prompt], stage: str
    ) -> tuple[list[Measurement], set[SpecConfig]]:
        first, *rest = configs
        every = Chosen(first, {str(number): one for number, one in enumerate(rest)})
        with self.measurer.phase(CHOICE):
            return measure_all(self.measurer, groups, every, stage, repeats=1)

    def _has_too_few(self, situation: Situation, groups: Sequence[Prompt], kind: str, least: int) -> bool:
        if len(groups) >= least:
            return False
        self.on_event(
            Warned(
                f"{situation.name} is off: at least {least} groups of {situation.batch_size} {kind} prompts are "
                f"needed, but there are {len(groups)}"
            )
        )
        return True


def _groups_of(measured: Iterable[Measurement]) -> list[Prompt]:
    return [Prompt(prompt_id, "") for prompt_id in dict.fromkeys(one.prompt_id for one in measured)]


def _row(
    situation: Situation, tried: SpecConfig, judged: Estimate | None, measured: Sequence[Measurement]
) -> SituationRow:
    if judged is None:
        return SituationRow(situation, OFF, Estimate(1.0, 1.0, 1.0, 0), tried)
    evidence = evidence_from(measured)
    if verdict(judged) != "faster":
        return SituationRow(situation, OFF, Estimate(1.0, 1.0, 1.0, judged.num_prompts), tried, evidence)
    return SituationRow(situation, tried, judged, tried, evidence)
