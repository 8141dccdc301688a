"""From what a step does at every position to the steps of whole outputs: which positions a configuration visits.

Knows arrays only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autospec.config import SpecConfig
from autospec.engine.termination import adapted_threshold, heuristic_length
from autospec.replay.tables import Chains, StepTable


@dataclass(frozen=True, slots=True)
class Route:
    """The texts that are walked along.

    Args:
        starts: [prompts] first position of each.
        left: [positions] tokens still to be written there; 0 or fewer behind the end.
        ends: [positions] the first position at which the output has ended.
    """

    starts: NDArray[np.int64]
    left: NDArray[np.int64]
    ends: NDArray[np.int64]

    @property
    def beginnings(self) -> NDArray[np.int64]:
        """The first position of each output that has a step, -1 of others: [prompts]."""
        return np.where((self.left[self.starts] > 0) & (self.starts < self.ends[self.starts]), self.starts, -1)

    def begins(self, start: int) -> bool:
        """Tell whether an output whose first position this is has a step."""
        return bool(self.left[start] > 0 and start < self.ends[start])

    def after(self, place: int, accepted: int) -> int:
        """Return the next place behind one step; -1 where the output has ended."""
        after = place + accepted + 1
        return after if accepted + 1 < self.left[place] and after < self.ends[place] else -1

    def moved(self, places: NDArray[np.int64], accepted: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the same for many."""
        after = places + accepted + 1
        goes_on = accepted + 1 < self.left[places]
        return np.where(goes_on & (after < self.ends[places]), after, -1)


def walk_plain(accepted: NDArray[np.int16], route: Route) -> NDArray[np.bool_]:
    """Return which positions are visited where a step depends on its position alone.

    Args:
        accepted: [configurations, positions].
        route: The texts.

    Returns:
        [configurations, positions].
    """
    visited, every = np.zeros(accepted.shape, dtype=np.bool_), np.arange(accepted.shape[1])
    beginnings = route.beginnings.tolist()
    for row, counts in enumerate(accepted):
        # Where a step leads is told of all positions at once; then a list is followed faster than an array.
        after, places = route.moved(every, counts.astype(np.int64)).tolist(), list[int]()
        for place in beginnings:
            while place >= 0:
                places.append(place)
                place = after[place]
        visited[row, places] = True
    return visited


def walk_heuristic(tables: StepTable, config: SpecConfig, route: Route) -> NDArray[np.int64]:
    """Return under which draft length each position is visited, -1 where it is not: [positions].

    Args:
        tables: [draft_length + 1, positions] the steps under every length.
        config: Its cap and where it begins.
        route: The texts.
    """
    chosen = np.full(len(route.left), -1, dtype=np.int64)
    places = route.beginnings[route.beginnings >= 0]
    lengths = np.full(len(places), min(config.draft_length_start, config.draft_length), dtype=np.int64)
    while len(places):
        chosen[places] = lengths
        accepted = tables.accepted[lengths, places].astype(np.int64)
        lengths = heuristic_length(lengths, tables.depth[lengths, places], accepted, config.draft_length)
        places = route.moved(places, accepted)
        alive = places >= 0
        places, lengths = places[alive], lengths[alive]
    return chosen


def walk_adaptive(chains: Chains, limits: NDArray[np.int64], config: SpecConfig, route: Route) -> NDArray[np.int64]:
    """Return the length of the chain at each visited position, -1 elsewhere: [positions].

    Args:
        chains: What would be drafted.
        limits: [positions] most tokens.
        config: The rule's numbers.
        route: The texts.
    """
    chosen = np.full(len(route.left), -1, dtype=np.int64)
    places = route.beginnings[route.beginnings >= 0]
    threshold, running = np.full(len(places), config.stop_threshold), np.ones(len(places))
    while len(places):
        below = chains.probs[places] < threshold[:, None]
        stop = np.where(below.any(axis=1), below.argmax(axis=1) + 1, below.shape[1] + 1)
        count = np.minimum(stop, limits[places])
        chosen[places] = count
        accepted = np.minimum(chains.matches[places], count)
        state = adapted_threshold((threshold, running), count, accepted, config.adaptive_goal, config.draft_length)
        places = route.moved(places, accepted)
        alive = places >= 0
        places, threshold, running = places[alive], state[0][alive], state[1][alive]
    return chosen
