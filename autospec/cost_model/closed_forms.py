"""The field's formulas for the tokens of a step, and how far what they assume is from what a trace shows.

They take every draft token to be accepted with a chance of its own, whatever came before it. A text has easy stretches
and hard ones: what follows an accepted token is accepted more often than what follows a rejected one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from autospec.config import SpecConfig
from autospec.errors import ConfigError, ReplayError
from autospec.replay import Simulator, acceptance_rows

LENGTHS = (1, 2, 3, 4, 6, 8)


def expected_tokens(acceptance: float, draft_length: int) -> float:
    """Return the tokens of a step with a chain: (1 - a^(n + 1)) / (1 - a), equation 1 of 2211.17192.

    Args:
        acceptance: Chance of every draft token, in [0, 1].
        draft_length: Of the chain.
    """
    _check([acceptance])
    return float(sum(acceptance**power for power in range(draft_length + 1)))


def expected_tokens_by_position(position_acceptance: Sequence[float]) -> float:
    """Return the tokens of a step with a chain whose token i is accepted with chance i, given all before it.

    The sum of 1 and of all products of the first chances; exact for any text where the chances are those of steps.
    """
    _check(position_acceptance)
    return float(1.0 + np.cumprod(position_acceptance).sum())


def expected_tokens_of_tree(rank_acceptance: Sequence[float], paths: Sequence[Sequence[int]]) -> float:
    """Return the tokens of a step with a tree: 1 and the chances of all its nodes (Sequoia, 2402.12374).

    Args:
        rank_acceptance: Chance that the target takes the candidate of each rank, at every depth.
        paths: Ranks from the root to every node.
    """
    _check(rank_acceptance)
    return float(1.0 + sum(np.prod([rank_acceptance[rank] for rank in path]) for path in paths))


def expected_speedup(acceptance: float, draft_length: int, cost: float) -> float:
    """Return the speedup over plain decoding, theorem 3.8 of Leviathan et al. (2211.17192).

    Args:
        acceptance: Chance of every draft token.
        draft_length: Of the chain.
        cost: Seconds of a draft token over those of a target forward, which takes no longer for several tokens.
    """
    return expected_tokens(acceptance, draft_length) / (draft_length * cost + 1.0)


def best_length(acceptance: float, cost: float, longest: int = 16) -> int:
    """Return the draft length of the largest `expected_speedup`; 0 where none is above 1."""
    return max(range(longest + 1), key=lambda length: expected_speedup(acceptance, length, cost))


def _check(chances: Sequence[float]) -> None:
    values = np.asarray(chances, dtype=np.float64)
    if not np.all((values >= 0.0) & (values <= 1.0)):
        raise ConfigError(f"`0 <= acceptance <= 1` must hold, but got {list(chances)}")


@dataclass(frozen=True, slots=True)
class IndependenceError:
    """What one length of a drafter's chains gives, beside what the formula makes of it.

    Args:
        draft_length: Of the chains.
        replayed: Tokens of a step, as they are.
        formula: `expected_tokens` of the chance of a first draft token, behind any token of the text.
        error: formula / replayed - 1.
    """

    draft_length: int
    replayed: float
    formula: float
    error: float


@dataclass(frozen=True, slots=True)
class Independence:
    """How far a drafter's acceptance on a workload is from being independent.

    Args:
        drafter: Its name.
        acceptance: Chance of the first token of a draft.
        after_accepted: Chance of the second one where the first was accepted; the same, were they independent.
        lengths: What chains of several lengths give.
    """

    drafter: str
    acceptance: float
    after_accepted: float | None
    lengths: tuple[IndependenceError, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**asdict(self), "lengths": [asdict(one) for one in self.lengths]}


def independence(simulator: Simulator, drafter: str, lengths: Sequence[int] = LENGTHS) -> Independence:
    """Compare the formula with a trace.

    Args:
        simulator: Over the trace.
        drafter: Recorded, or a lookup that its source makes; a step in which it finds nothing counts as one without
            acceptance.
        lengths: Of chains.

    Raises:
        ReplayError: The trace does not hold the drafter, or not so long drafts; or its tokens are drawn, while the
            formula is fed with the most probable ones.
    """
    if not simulator.trace.sampling.is_greedy and simulator.trace.key_of(drafter) is not None:
        raise ReplayError(
            f"what the formula is compared with must not be drawn, but under sampling {drafter!r} draws its chains"
        )
    rows, trace = acceptance_rows(simulator.trace, drafter), simulator.trace
    # Positions where something could be drafted: the last token of an output comes from the target.
    num_places = int((trace.left() > 1).sum())
    first = float(rows.is_accepted[rows.position == 1].sum() / max(num_places, 1))
    second = rows.is_accepted[(rows.position == 2) & rows.is_reached]
    replays = simulator.replay_all([SpecConfig(drafter, length) for length in lengths])
    found = []
    for length, replay in zip(lengths, replays, strict=True):
        replayed = float((replay.accepted + 1).sum() / max(len(replay.accepted), 1))
        formula = expected_tokens(first, length)
        found.append(IndependenceError(length, replayed, formula, formula / replayed - 1.0))
    return Independence(drafter, first, float(second.mean()) if len(second) else None, tuple(found))
