"""Stopping rules: when a drafter stops drawing before the cap.

Pure array functions over leading dimensions, so that a simulator can call the same ones; and `Stopping`, the small
state of one generation. Whether token i + 1 is drawn may depend on tokens already drawn and kept, never on itself: a
sampled token, once drawn, is verified.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from autospec.config import SpecConfig
from autospec.engine.costs import CONSTANT_COSTS, CostCurve

# Draft & Verify (2309.08168): how fast the threshold moves, and how fast its view of the past fades.
ADAPTIVE_STEP, ADAPTIVE_MEMORY, ADAPTIVE_INERTIA = 0.01, 0.5, 0.9


def stops_by_confidence(token_probs: ArrayLike, threshold: ArrayLike) -> NDArray[np.bool_]:
    """Tell after which drawn tokens drafting ends: those less probable than the threshold.

    The token itself is kept and verified (2405.04304, the unsupervised form).

    Args:
        token_probs: [...] draft probability of each drawn token.
        threshold: In [0, 1].
    """
    return np.asarray(np.asarray(token_probs) < threshold)


def stops_by_entropy(
    entropies: ArrayLike, threshold: ArrayLike, form: str = "svip", scale: float = 0.2
) -> NDArray[np.bool_]:
    """Tell after which drawn tokens drafting ends: those drawn where the drafter was unsure.

    `svip` (2411.18462): the root of the entropy is above the threshold. `adaedl` (2410.18351): the bound
    1 - sqrt(scale * entropy) of the acceptance is below it.

    Args:
        entropies: [...] of the row each token was drawn from, in nats.
        threshold: In [0, 1].
        form: `svip` or `adaedl`.
        scale: c_H of `adaedl`.
    """
    entropies, threshold = np.asarray(entropies), np.asarray(threshold)
    if form == "svip":
        return np.asarray(np.sqrt(entropies) > threshold)
    return np.asarray(1.0 - np.sqrt(scale * entropies) < threshold)


def stops_by_path(path_probs: ArrayLike, threshold: ArrayLike) -> NDArray[np.bool_]:
    """Tell behind which nodes drafting ends: those whose whole path is less probable than the threshold.

    Args:
        path_probs: [...] product of the draft probabilities from the root to each node.
        threshold: In [0, 1].
    """
    return np.asarray(np.asarray(path_probs) < threshold)


def stops_by_cost(
    next_worths: ArrayLike, num_drafted: ArrayLike, expected: ArrayLike, costs: CostCurve
) -> NDArray[np.bool_]:
    """Tell behind which nodes one more token is not worth its time.

    A token is worth drawing where the chance that it counts exceeds the tokens per second of the step so far times the
    seconds it adds; the rate comes from the cost curve, not a clock.

    Args:
        next_worths: [...] chance that the next token counts; see `next_worths`.
        num_drafted: [...] its tokens.
        expected: [...] tokens the step is expected to emit with it: 1 plus the path probabilities of its nodes.
        costs: What steps cost.
    """
    num_drafted = np.asarray(num_drafted)
    rate = np.asarray(expected) / (costs.target + num_drafted * costs.marginal)
    return np.asarray(np.asarray(next_worths) <= rate * costs.marginal)


def next_worths(path_probs: ArrayLike, chances: ArrayLike, costs: CostCurve) -> NDArray[np.float64]:
    """Return how likely the token behind each node counts, of which nothing is known but the path to it.

    The drafter's own probabilities give a bound, that of the path. Chances that a calibration makes are right, so that
    a bound would draft too much: there the next token is taken to be as likely as the last one.

    Args:
        path_probs: [...] product of the chances of the chain so far.
        chances: [...] that of its last token.
        costs: With the calibration, if there is one.
    """
    paths = np.asarray(path_probs, dtype=np.float64)
    return paths if costs.acceptance is None else np.asarray(paths * np.asarray(chances))


def heuristic_length(
    length: ArrayLike, num_drafted: ArrayLike, num_accepted: ArrayLike, cap: int
) -> NDArray[np.int64]:
    """Return the next draft length: 2 more after a draft that was accepted whole, 1 less after any other.

    The schedule of assisted generation in transformers. A step without a draft teaches nothing.

    Args:
        length: [...] current length.
        num_drafted: [...] most tokens that could be accepted in the step: the depth of its draft.
        num_accepted: [...] of which accepted.
        cap: Longest draft.
    """
    length, num_drafted = np.asarray(length), np.asarray(num_drafted)
    moved = np.where(np.asarray(num_accepted) == num_drafted, length + 2, length - 1)
    return np.where(num_drafted > 0, np.clip(moved, 1, cap), length).astype(np.int64)


def next_length(length: int, num_drafted: int, num_accepted: int, cap: int) -> int:
    """Return what `heuristic_length` does for one step; a replay that walks step by step has no time for arrays."""
    if num_drafted == 0:
        return length
    return min(max(length + 2 if num_accepted == num_drafted else length - 1, 1), cap)


def adapted_threshold(
    state: tuple[ArrayLike, ArrayLike], num_drafted: ArrayLike, num_accepted: ArrayLike, goal: float, cap: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return threshold and running acceptance after a step (Draft & Verify, 2309.08168).

    Below the goal the threshold rises; above it, it falls, unless the draft was as long as it may be. A step without a
    draft teaches nothing.

    Args:
        state: Threshold [...] and running acceptance [...].
        num_drafted: [...] tokens of the chain.
        num_accepted: [...] of which accepted.
        goal: Acceptance to steer to.
        cap: Longest draft.
    """
    threshold, running = (np.asarray(part, dtype=np.float64) for part in state)
    num_drafted = np.asarray(num_drafted)
    seen = np.asarray(num_accepted) / np.maximum(num_drafted, 1)
    moved_running = ADAPTIVE_MEMORY * running + (1.0 - ADAPTIVE_MEMORY) * seen
    step = np.where(moved_running < goal, ADAPTIVE_STEP, np.where(num_drafted == cap, 0.0, -ADAPTIVE_STEP))
    moved = ADAPTIVE_INERTIA * threshold + (1.0 - ADAPTIVE_INERTIA) * (threshold + step)
    learns = num_drafted > 0
    return np.where(learns, np.clip(moved, 0.0, 1.0), threshold), np.where(learns, moved_running, running)


class Drawn(Protocol):
    """How a token was drawn."""

    @property
    def prob(self) -> float:
        """Its probability."""
        ...

    @property
    def entropy(self) -> float:
        """Of what it was drawn from, in nats."""
        ...

    @property
    def best(self) -> tuple[float, float]:
        """The two highest probabilities there; 0 for one that is not there."""
        ...


class DrawnFrom:
    """Reads it where a rule asks: every number waits for the device.

    Args:
        row: [vocab] probabilities.
        token_id: Which token.
    """

    def __init__(self, row: Tensor, token_id: int) -> None:
        self._row, self._token_id = row, token_id

    @property
    def prob(self) -> float:
        """See `Drawn`."""
        return float(self._row[self._token_id])

    @property
    def entropy(self) -> float:
        """See `Drawn`."""
        return float(entropies(self._row))

    @property
    def best(self) -> tuple[float, float]:
        """See `Drawn`."""
        first, *second = self._row.topk(min(2, self._row.shape[-1])).values.tolist()
        return first, (second or [0.0])[0]


@dataclass(frozen=True, slots=True)
class KnownDrawn:
    """Knows it already; see `Drawn`."""

    prob: float
    entropy: float
    best: tuple[float, float]


def entropies(rows: Tensor) -> Tensor:
    """Return the entropies [...] of distributions [..., vocab], in nats."""
    return -torch.xlogy(rows, rows).sum(dim=-1)


class Stopping:
    """The stopping rule of one generation: what it knows of the draft being made, and what it learnt from steps.

    Args:
        config: The rule and its numbers.
        costs: For `cost_aware`.
    """

    def __init__(self, config: SpecConfig, costs: CostCurve = CONSTANT_COSTS) -> None:
        self._config, self._costs = config, costs
        self._length = config.draft_length
        if config.stop_rule == "heuristic":
            self._length = min(config.draft_length_start, config.draft_length)
        self._threshold, self._running = config.stop_threshold, 1.0
        self.reads_rows = config.stop_rule not in ("static", "heuristic")
        self.begin()

    @property
    def limit(self) -> int:
        """Longest path of the next draft."""
        return self._length

    @property
    def least_path_prob(self) -> float:
        """Probability below which a path of a tree is not drafted."""
        return self._threshold if self._config.stop_rule == "cumulative" else 0.0

    def begin(self) -> None:
        """Forget the last draft."""
        self._path_prob, self._num_drafted, self._expected = 1.0, 0, 1.0

    def ends(self, row: Tensor, token_id: int) -> bool:
        """Take in a token that was drawn and kept; tell whether the chain ends with it.

        Args:
            row: [vocab] the probabilities it was drawn from.
            token_id: Which it was.
        """
        return self.ends_with(DrawnFrom(row, token_id))

    def ends_with(self, drawn: Drawn) -> bool:
        """Do the same of a token of which it is known how it was drawn."""
        config, prob = self._config, drawn.prob
        self._num_drafted += 1
        worth = self._worth(drawn) if config.stop_rule == "cost_aware" else prob
        self._path_prob *= worth
        self._expected += self._path_prob
        match config.stop_rule:
            case "confidence" | "adaptive":
                return bool(stops_by_confidence(prob, self._threshold))
            case "entropy":
                form, scale = config.entropy_form, config.entropy_scale
                return bool(stops_by_entropy(drawn.entropy, self._threshold, form, scale))
            case "cumulative":
                return bool(stops_by_path(self._path_prob, self._threshold))
            case "cost_aware":
                following = next_worths(self._path_prob, worth, self._costs)
                return bool(stops_by_cost(following, self._num_drafted, self._expected, self._costs))
        return False

    def _worth(self, drawn: Drawn) -> float:
        """Return how likely a token counts, as the cost-aware rule takes it."""
        calibration = self._costs.acceptance
        if calibration is None:
            return drawn.prob
        with np.errstate(divide="ignore"):
            log_prob, first, second = np.log([drawn.prob, *drawn.best])
        return float(calibration.probs(log_prob, drawn.entropy, first - second, self._num_drafted))

    def observe(self, num_drafted: int, num_accepted: int) -> None:
        """Learn from a step whose draft was `num_drafted` deep."""
        config = self._config
        if config.stop_rule == "heuristic":
            self._length = next_length(self._length, num_drafted, num_accepted, config.draft_length)
        elif config.stop_rule == "adaptive":
            state = (self._threshold, self._running)
            moved = adapted_threshold(state, num_drafted, num_accepted, config.adaptive_goal, config.draft_length)
            self._threshold, self._running = float(moved[0]), float(moved[1])
