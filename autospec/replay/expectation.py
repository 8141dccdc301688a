"""What a configuration does on average, where a replay cannot be exact: lossless rules that write other texts.

Every lossless rule writes texts of the target's law, and so did the target when the trace was recorded. Given such a
text y, rejection keeps a drafted y_i with probability min(1, draft / target); block verification the first i tokens
with min over j <= i of prod_(k <= j) draft_k / target_k (from 2403.10444); shared noise with the probability that both
choose alike. All factors stand behind the true text, so they may be multiplied; overlaps of whole rows may not,
because a token that was accepted is not distributed as the target's. A draft that is not drawn is kept as far as it is
the text. From there, steps are a Markov chain over positions, exact in distribution for chains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from autospec.config import SpecConfig
from autospec.engine.costs import costs_of
from autospec.engine.termination import heuristic_length
from autospec.errors import ReplayError
from autospec.replay.replayed import Replay
from autospec.replay.simulator import Simulator
from autospec.replay.tables import Chains, StepTable
from autospec.rules import ACCEPT_RULES, draws_children

Weights = NDArray[np.float64]
# What a rule is on a chain.
_CHAIN_RULES = {
    "rejection": "rejection",
    "multi_candidate": "rejection",
    "block": "block",
    "traversal": "block",
    "coupled": "coupled",
    "exact": "exact",
}


# A step that is taken less often than this costs nothing that could be measured.
_LEAST_CHANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Expectation:
    """The steps of one configuration with their chances, over what is random besides the recorded texts.

    Arrays [steps], in any order; the properties are means over what is random, [prompts].

    Args:
        config: What was asked about.
        prompts: Row of the prompt in the trace.
        contexts: Tokens of the text when the step begins.
        nodes: Draft tokens verified.
        depth: Of the draft.
        calls: Forwards of draft models.
        run: Draft nodes that the forwards behind the first run, all together.
        chances: That the step is taken.
        firsts: That it is taken, and the first of its prompt to run a draft model.
        kept: Draft tokens that it keeps when it is taken, on average.
        num_prompts: Number of prompts in the trace.
        is_exact: Whether nothing is random, so that these are the steps of a live run and every chance is 0 or 1.
    """

    config: SpecConfig
    prompts: NDArray[np.int64]
    contexts: NDArray[np.int64]
    nodes: NDArray[np.int16]
    depth: NDArray[np.int16]
    calls: NDArray[np.int16]
    run: NDArray[np.int16]
    chances: Weights
    firsts: Weights
    kept: Weights
    num_prompts: int
    is_exact: bool

    @classmethod
    def of(cls, replay: Replay, config: SpecConfig, *, is_exact: bool) -> Self:
        """Return what was replayed, every step with chance 1."""
        return cls(
            config=config,
            prompts=replay.prompts,
            contexts=replay.contexts,
            nodes=replay.nodes,
            depth=replay.depth,
            calls=replay.calls,
            run=replay.run,
            chances=np.ones(len(replay.nodes)),
            firsts=replay.firsts,
            kept=replay.accepted.astype(np.float64),
            num_prompts=replay.num_prompts,
            is_exact=is_exact,
        )

    @property
    def num_steps(self) -> Weights:
        """Target forwards behind the prefill."""
        return self.sums(self.chances)

    @property
    def num_drafted(self) -> Weights:
        """Draft tokens verified."""
        return self.sums(self.chances * self.nodes)

    @property
    def num_accepted(self) -> Weights:
        """Of them kept."""
        return self.sums(self.chances * self.kept)

    @property
    def num_calls(self) -> Weights:
        """Forwards of draft models."""
        return self.sums(self.chances * self.calls)

    def sums(self, values: Weights) -> Weights:
        """Return the sums of values [steps] by prompt."""
        return np.bincount(self.prompts, values, minlength=self.num_prompts).astype(np.float64)


def expected(simulator: Simulator, config: SpecConfig) -> Expectation:
    """Return what a configuration does on average on the texts of a trace.

    Raises:
        ReplayError: A lossy rule; the adaptive stopping rule, whose state is no finite one; trees of drawn children,
            or of shared noise; a drafter whose probability of the recorded text is not known.
        ReplayMiss: See `Simulator.replay_all`.
    """
    trace, rule = simulator.trace, config.accept_rule
    if trace.sampling.is_greedy or config.is_off or rule == "exact":
        return Expectation.of(simulator.replay(config), config, is_exact=True)
    if not ACCEPT_RULES[rule].is_lossless:
        raise ReplayError(f"a rule whose counts are expected must be lossless, but got {rule!r}")
    if not _draws(simulator, config):
        return Expectation.of(simulator.replay(replace(config, accept_rule="exact")), config, is_exact=False)
    if config.tree_shape != "chain":
        raise ReplayError(
            f"trees whose children are drawn, or chosen with shared noise, have no expected counts, but got "
            f"{rule!r} on {config.tree_shape!r}"
        )
    if config.stop_rule == "adaptive":
        raise ReplayError("stop_rule 'adaptive' carries what was accepted from step to step, so it is only replayed")
    return _walked(simulator, config)


def _draws(simulator: Simulator, config: SpecConfig) -> bool:
    """Tell whether a draft depends on more than the text."""
    if config.draft_sampling(simulator.trace.sampling).is_greedy:
        return False
    if all(simulator.key_of(config, name) is None for name in config.drafter_names):
        return False
    rule = config.accept_rule
    return config.tree_shape == "chain" or rule == "coupled" or draws_children(rule, config.tree_shape)


def _walked(simulator: Simulator, config: SpecConfig) -> Expectation:
    """Follow the chance of every position to be the beginning of a step, under every state of the stopping rule."""
    cap, trace = config.draft_length, simulator.trace
    limits = list(range(1, cap + 1)) if config.stop_rule == "heuristic" else [cap]
    steps = _steps(simulator, config, limits)
    taken, uncalled = _chances(simulator, config, limits, steps)
    states, places = np.nonzero(taken > _LEAST_CHANCE)
    return Expectation(
        config=config,
        prompts=trace.prompt_of[places],
        contexts=trace.contexts[places],
        nodes=steps.table.nodes[states, places],
        depth=steps.table.depth[states, places],
        calls=steps.table.calls[states, places],
        run=steps.table.run[states, places],
        chances=taken[states, places],
        firsts=np.where(steps.table.calls > 0, uncalled, 0.0)[states, places],
        kept=steps.survival[states, places, 1:].sum(axis=1),
        num_prompts=len(trace.prompts),
        is_exact=False,
    )


@dataclass(frozen=True, slots=True)
class _Steps:
    """A step at every position, under every longest draft.

    Args:
        survival: [limits, positions, draft length + 1] chance that at least i tokens are kept.
        table: [limits, positions] what is drafted: what the recorded draw drafts there, which was drawn without a look
            at the text behind it.
    """

    survival: Weights
    table: StepTable


def _chances(
    simulator: Simulator, config: SpecConfig, limits: Sequence[int], steps: _Steps
) -> tuple[Weights, Weights]:
    """Return how likely a step begins: [limits, positions]; and that it does before a draft model has run."""
    route, trace, cap = simulator.route, simulator.trace, config.draft_length
    counts, moves = np.arange(cap + 1), np.arange(len(limits))[:, None, None]
    ends = np.zeros((*steps.survival.shape[:2], 1))
    exactly = steps.survival - np.concatenate([steps.survival[..., 1:], ends], axis=2)
    chances = np.zeros((2, len(limits), trace.num_positions))
    begins = route.beginnings[route.beginnings >= 0]
    first = min(config.draft_length_start, cap) if config.stop_rule == "heuristic" else cap
    chances[:, limits.index(first), begins] = 1.0
    is_uncalled = np.stack([np.ones_like(steps.table.calls, dtype=np.bool_), steps.table.calls == 0])
    lengths = np.diff(trace.position_starts)
    for place in range(int(lengths.max(initial=0))):
        at = route.starts[lengths > place] + place
        moved = route.moved(at[:, None], counts)
        if config.stop_rule == "heuristic":
            depth = steps.table.depth[:, at, None].astype(np.int64)
            moves = heuristic_length(np.array(limits)[:, None, None], depth, counts, cap) - 1
        weights = (chances[:, :, at] * is_uncalled[:, :, at])[..., None] * exactly[:, at] * (moved >= 0)
        np.add.at(chances, (np.arange(2)[:, None, None, None], moves, np.maximum(moved, 0)), weights)
    return chances[0], chances[1]


def _steps(simulator: Simulator, config: SpecConfig, limits: Sequence[int]) -> _Steps:
    """Return the steps of the drafters of a configuration, the later where the earlier have nothing."""
    places = np.arange(config.draft_length + 1)
    found: _Steps | None = None
    for name in config.drafter_names:
        key = simulator.key_of(config, name)
        parts = [simulator.part(replace(config, accept_rule="exact"), name, limit) for limit in limits]
        table = StepTable.stack(parts)
        survival = (places <= table.accepted[..., None]).astype(np.float64)
        if key is not None:
            if table.is_missing.any():
                raise ReplayError(
                    f"chains of {max(limits)} tokens must be recorded to the end, but those of {name!r} are not"
                )
            survival[..., 1:] = _kept(simulator, config, key, limits)
        if found is not None:
            survival = np.where(found.table.nodes[..., None] > 0, found.survival, survival)
            table = found.table.or_else(table)
        found = _Steps(survival, table)
    assert found is not None
    return found


def _kept(simulator: Simulator, config: SpecConfig, key: str, limits: Sequence[int]) -> Weights:
    """Return P(at least i drawn tokens are kept), i = 1 .. draft length, given the text: [limits, positions, i]."""
    trace, cap = simulator.trace, config.draft_length
    drawn, rule = trace.drawn[key], _CHAIN_RULES[config.accept_rule]
    if np.isnan(drawn.own).any():
        raise ReplayError(f"a drafter must be one that can be run along the recorded text, but {key!r} is not")
    along = np.minimum(np.arange(trace.num_positions)[:, None] + np.arange(cap), trace.num_positions - 1)
    probs = drawn.own[along]
    ratios = probs / trace.target_probs[along].astype(np.float64)
    match rule:
        case "rejection":
            kept = np.minimum(ratios, 1.0).cumprod(axis=1)
        case "block":
            kept = np.minimum.accumulate(np.minimum(ratios.cumprod(axis=1), 1.0), axis=1)
        case "coupled":
            kept = drawn.coupled[along].astype(np.float64).cumprod(axis=1)
        case _:
            kept = probs.astype(np.float64).cumprod(axis=1)
    # As far as the text goes, the stopping rule sees its tokens; one that is drafted behind it is never reached.
    entropies = drawn.entropies[:, 0][along]
    nothing = np.zeros(len(along), dtype=np.int32)
    text = Chains(trace.next_tokens[along], probs, entropies, nothing, nothing)
    longest = simulator.shelf.limits(key, np.array(limits)[:, None])
    reach = np.minimum(text.stops(config, costs_of(simulator.costs, config.drafter)), longest)
    return np.where(np.arange(1, cap + 1) <= reach[..., None], kept, 0.0)
