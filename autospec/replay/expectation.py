"""What a configuration does on average, where a replay cannot be exact: lossless rules that write other texts.

Every lossless rule writes texts of the target's law, and so did the target when the trace was recorded. Given such a
text y, rejection keeps a drafted y_i with probability min(1, draft / target); block verification the first i tokens
with min over j <= i of prod_(k <= j) draft_k / target_k (from 2403.10444); shared noise with the probability that both
choose alike. All factors stand behind the true text, so they may be multiplied; overlaps of whole rows may not,
because a token that was accepted is not distributed as the target's. A draft that is not drawn is kept as far as it is
the text. From there, steps are a Markov chain over positions, exact in distribution for chains.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from autospec.config import SpecConfig
from autospec.engine.costs import costs_of
from autospec.engine.termination import heuristic_length
from autospec.errors import ReplayError
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


@dataclass(frozen=True, slots=True)
class Expectation:
    """Counts on average over what is random besides the recorded texts: arrays [prompts].

    Args:
        config: What was asked about.
        num_steps: Target forwards behind the prefill.
        num_drafted: Draft tokens verified.
        num_accepted: Of them kept.
        calls: Forwards of draft models.
        is_exact: Whether nothing is random, so that these are the counts of a live run.
    """

    config: SpecConfig
    num_steps: Weights
    num_drafted: Weights
    num_accepted: Weights
    calls: Weights
    is_exact: bool


def expected(simulator: Simulator, config: SpecConfig) -> Expectation:
    """Return what a configuration does on average on the texts of a trace.

    Raises:
        ReplayError: A lossy rule; the adaptive stopping rule, whose state is no finite one; trees of drawn children,
            or of shared noise; a drafter whose probability of the recorded text is not known.
        ReplayMiss: See `Simulator.replay_all`.
    """
    trace, rule = simulator.trace, config.accept_rule
    if trace.sampling.is_greedy or config.is_off or rule == "exact":
        return _counted(simulator, config, is_exact=True)
    if not ACCEPT_RULES[rule].is_lossless:
        raise ReplayError(f"a rule whose counts are expected must be lossless, but got {rule!r}")
    if not _draws(simulator, config):
        return _counted(simulator, replace(config, accept_rule="exact"), is_exact=False)
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


def _counted(simulator: Simulator, config: SpecConfig, *, is_exact: bool) -> Expectation:
    replay = simulator.replay(config)
    steps, drafted, accepted, calls = (
        replay.per_prompt(of).astype(np.float64) for of in (None, replay.nodes, replay.accepted, replay.calls)
    )
    return Expectation(config, steps, drafted, accepted, calls, is_exact)


def _walked(simulator: Simulator, config: SpecConfig) -> Expectation:
    """Follow the chance of every position to be the beginning of a step, and of every state of the stopping rule."""
    route, trace, cap = simulator.route, simulator.trace, config.draft_length
    limits = list(range(1, cap + 1)) if config.stop_rule == "heuristic" else [cap]
    steps = [_step(simulator, config, limit) for limit in limits]
    survival = np.stack([one for one, _ in steps])  # [states, positions, cap + 1]: P(at least i accepted)
    table = StepTable.stack([one for _, one in steps])
    first = min(config.draft_length_start, cap) if config.stop_rule == "heuristic" else cap
    chance = np.zeros((len(limits), trace.num_positions))
    begins = route.beginnings
    chance[limits.index(first), begins[begins >= 0]] = 1.0
    exactly = survival - np.concatenate([survival[..., 1:], np.zeros((*survival.shape[:2], 1))], axis=2)
    longest = int(np.diff(trace.position_starts).max())
    for place in range(longest):
        at = route.starts[np.diff(trace.position_starts) > place] + place
        for state, limit in enumerate(limits):
            for count in range(cap + 1):
                moved = route.moved(at, np.full(len(at), count))
                weight = chance[state, at] * exactly[state, at, count]
                depth = table.depth[state, at].astype(np.int64)
                after = np.zeros(len(at), dtype=np.int64)
                if config.stop_rule == "heuristic":
                    after = heuristic_length(np.full(len(at), limit), depth, np.full(len(at), count), cap) - 1
                goes_on = (moved >= 0) & (weight > 0.0)
                np.add.at(chance, (after[goes_on], moved[goes_on]), weight[goes_on])
    per_position = (np.ones_like(chance), table.nodes, survival[..., 1:].sum(axis=2), table.calls)
    sums = ((chance * of).sum(axis=0) for of in per_position)
    prompts, num = trace.prompt_of, len(trace.prompts)
    total, drafted, accepted, calls = (np.bincount(prompts, one, minlength=num).astype(np.float64) for one in sums)
    return Expectation(config, total, drafted, accepted, calls, is_exact=False)


def _step(simulator: Simulator, config: SpecConfig, limit: int) -> tuple[Weights, StepTable]:
    """Return of a step at every position: P(at least i accepted) [positions, cap + 1], and what it drafts on average.

    Drafted is what the recorded draw drafts there: it was drawn without a look at the text behind it.
    """
    cap, places = config.draft_length, np.arange(config.draft_length + 1)
    survival: Weights | None = None
    table: StepTable | None = None
    for name in config.drafter_names:
        key = simulator.key_of(config, name)
        part = simulator.part(replace(config, accept_rule="exact"), name, limit)
        own = (places <= part.accepted[:, None]).astype(np.float64)
        if key is not None:
            if part.is_missing.any():
                raise ReplayError(
                    f"chains of {limit} tokens must be recorded to the end, but those of {name!r} are not"
                )
            own = np.concatenate([np.ones((len(own), 1)), _kept(simulator, config, key, limit)], axis=1)
        if survival is None or table is None:
            survival, table = own, part
        else:
            survival = np.where(table.nodes[:, None] > 0, survival, own)
            table = table.or_else(part)
    assert survival is not None and table is not None  # noqa: PT018  (for the type checker)
    assert survival.shape[1] == cap + 1
    return survival, table


def _kept(simulator: Simulator, config: SpecConfig, key: str, limit: int) -> Weights:
    """Return P(at least i of the drawn tokens are accepted), i = 1 .. draft length, given the text: [positions, i]."""
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
    reach = np.minimum(
        text.stops(config, costs_of(simulator.costs, config.drafter)), simulator.shelf.limits(key, limit)
    )
    return np.where(np.arange(1, cap + 1) <= reach[:, None], kept, 0.0)
