"""Records any drafter by asking it behind every position: rows where it shows what it thought, else whole drafts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from autospec.config import MAX_DRAFT_LENGTH, SpecConfig
from autospec.engine.decoder import SpeculativeDecoder
from autospec.engine.drafters import Drafter
from autospec.engine.tree import TokenTree
from autospec.replay.forest import DraftForest, Drawn
from autospec.replay.grafting import Grafts, Seen, can_watch, watched
from autospec.replay.live import LiveText
from autospec.replay.running import rows_of
from autospec.replay.trace import Trace


@dataclass(frozen=True, slots=True)
class Asking:
    """Records into a trace.

    Args:
        decoder: Target and drafters.
        trace: With the texts.
    """

    decoder: SpeculativeDecoder
    trace: Trace

    def record(self, key: str, config: SpecConfig, width: int, max_nodes: int) -> None:
        """Record a drafter.

        Args:
            key: Under which name.
            config: Chains as deep as they are recorded, and the temperature.
            width: Candidates of a node.
            max_nodes: Of the best-first tree; 0 records chains only.
        """
        drafter, every = self._drafter(key), np.arange(self.trace.num_positions)
        if not can_watch(drafter):
            shape = "chain" if "chain" in drafter.shapes else drafter.shapes[0]
            if shape not in ("static", "optimal"):  # those are nothing without their paths
                self.store(key, replace(config, tree_shape=shape), every, config.draft_length)
            return
        self._plant(key, config, width)
        if max_nodes:
            grown = replace(config, tree_shape="best_first", tree_width=width, tree_nodes=max_nodes)
            self.extend(key, grown, every, config.draft_length)
        if not config.draft_sampling(self.trace.sampling).is_greedy:
            self._draw(key, config)

    def extend(self, key: str, config: SpecConfig, positions: NDArray[np.int64], limit: int) -> None:
        """Record the rows that a configuration's drafts look at; see `Recorder.extend`."""
        sampling = config.draft_sampling(self.trace.sampling)
        if config.tree_shape == "chain" and not sampling.is_greedy:
            self._draw(key, replace(config, draft_length=limit))
            return
        forest = self.trace.forests[key]
        forest.caps = forest.caps.copy()  # those of a loaded trace cannot be written to
        grafts, row = Grafts(forest, sampling), -1
        whole = config if config.stop_rule == "cumulative" else replace(config, stop_rule="static")
        for position, tree, seen in self._drafts(self._drafter(key), whole, positions, limit):
            if self.trace.prompt_of[position] != row:
                grafts.join()
                row = int(self.trace.prompt_of[position])
            if config.tree_shape == "chain" and tree.depth < limit and whole.stop_rule == "static":
                forest.caps[position] = min(int(forest.caps[position]), tree.depth)
            grafts.add(position, seen)
        grafts.join()

    def store(self, name: str, config: SpecConfig, positions: NDArray[np.int64], limit: int) -> None:
        """Keep whole drafts, of that length and of what is left of the output; see `Recorder.extend`."""
        config = replace(config, drafter=name)
        known, most = self.trace.stored(config), np.minimum(self.trace.left() - 1, limit)
        asked = positions[most[positions] > 0]
        for position, tree, _ in self._drafts(self._drafter(name), config, asked, most):
            known[position, int(most[position])] = tree.token_ids.tolist(), list(tree.parents)

    def _drafter(self, key: str) -> Drafter:
        return self.decoder.drafters[key.partition("~")[0].partition("@")[0]]

    def _drafts(
        self, drafter: Drafter, config: SpecConfig, positions: NDArray[np.int64], limit: int | NDArray[np.int64]
    ) -> Iterator[tuple[int, TokenTree, Seen]]:
        """Yield position, draft, and what was seen while it grew, in order; limits may be by position."""
        trace, wanted = self.trace, set(positions.tolist())
        limits = np.broadcast_to(limit, trace.num_positions)
        config = replace(config, drafter="x", draft_length=max(config.draft_length, int(limits.max(initial=0))))
        for row in np.unique(trace.prompt_of[positions]).tolist():
            text = [*trace.prompt_ids(row), *trace.output_ids(row)]
            live = LiveText(self.decoder.target, text, trace.prompts[row].num_prompt, drafter.needs)
            sampling, first = config.draft_sampling(trace.sampling), int(trace.position_starts[row])
            for known in live.walk(drafter, config, sampling, trace.prompts[row].seed):
                if (position := first + known - 1) not in wanted:
                    continue
                with watched(drafter) if can_watch(drafter) else nullcontext(Seen()) as seen:
                    tree = drafter.propose(int(limits[position]))
                yield position, tree, seen

    def _plant(self, key: str, config: SpecConfig, width: int) -> None:
        """Make a forest of the rows behind the text, and put the chains into it."""
        sampling, every = config.draft_sampling(self.trace.sampling), np.arange(self.trace.num_positions)
        chains = list(self._drafts(self._drafter(key), config, every, config.draft_length))
        # A draft that was as long as was asked for may go on; a shorter one shows how deep the drafter goes.
        lengths = np.array([tree.num_nodes for _, tree, _ in chains])
        caps = np.where(lengths < config.draft_length, lengths, MAX_DRAFT_LENGTH).astype(np.int32)
        nothing = torch.zeros(self.decoder.target.vocab_size)
        roots = torch.stack([seen.rows.get(-1, nothing) for _, _, seen in chains])
        self.trace.forests[key] = DraftForest.of_positions(rows_of(roots, width, sampling), caps)
        grafts = Grafts(self.trace.forests[key], sampling)
        for position, _, seen in chains:
            grafts.add(position, seen)
        grafts.join()

    def _draw(self, key: str, config: SpecConfig) -> None:
        """Record the chains that are drawn under sampling, with the numbers of a live run."""
        trace, depth, every = self.trace, config.draft_length, np.arange(self.trace.num_positions)
        tokens = np.full((trace.num_positions, depth), -1, dtype=np.int32)
        probs, entropies = (np.zeros((trace.num_positions, depth), dtype=np.float32) for _ in range(2))
        lengths = np.zeros(trace.num_positions, dtype=np.int32)
        plain = replace(config, accept_rule="exact", stop_rule="static")
        for position, tree, _ in self._drafts(self._drafter(key), plain, every, depth):
            num = lengths[position] = tree.num_nodes
            if num:
                assert tree.draft_probs is not None
                rows = tree.draft_probs
                tokens[position, :num] = tree.token_ids.cpu().numpy()
                probs[position, :num] = rows.gather(-1, tree.token_ids.to(rows.device)[:, None])[:, 0].cpu().numpy()
                entropies[position, :num] = -torch.xlogy(rows, rows).sum(dim=-1).cpu().numpy()
        unknown = np.full(trace.num_positions, np.nan, dtype=np.float32)
        trace.drawn[key] = Drawn(tokens, probs, entropies, lengths, unknown, unknown)
