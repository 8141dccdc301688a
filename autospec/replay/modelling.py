"""Records drafters that are language models over the target's tokens: all positions of a text are run together.

Where the target takes a candidate, the next position's row is the node behind it, so only drafts that leave the text
cost forwards.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.cache import KVCache
from autospec.engine.decoder import SpeculativeDecoder
from autospec.engine.model import CausalLM
from autospec.engine.sampling import Use, pick, to_probs, uniform
from autospec.errors import ReplayError
from autospec.replay.branching import grow_layers
from autospec.replay.forest import DraftForest, Drawn, Ints, Rows
from autospec.replay.ranking import grow_paths
from autospec.replay.running import TextRunner, draft_model, rows_of
from autospec.replay.shelf import wanted_of
from autospec.replay.trace import Trace

if TYPE_CHECKING:
    from autospec.replay.recorder import RecordingBudget

# Positions whose drafts are run together: more make larger forwards, but every node is masked from all others.
_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class _Adder:
    """Adds nodes to a forest; see `grow_layers`."""

    forest: DraftForest
    runner: TextRunner
    contexts: NDArray[np.int64]
    sampling: SamplingParams

    def __call__(self, parents: Ints, ranks: Ints) -> None:
        logits = self.runner.expand(self.forest, parents, ranks, self.contexts, self.forest.num_nodes)
        self.forest.add(parents, ranks, rows_of(logits, self.forest.width, self.sampling))


@dataclass(frozen=True, slots=True)
class Modelling:
    """Records into a trace.

    Args:
        decoder: Target and drafters.
        trace: With the texts.
        budget: How much.
    """

    decoder: SpeculativeDecoder
    trace: Trace
    budget: RecordingBudget

    def record(self, key: str, config: SpecConfig) -> None:
        """Record a drafter under a name; the configuration tells its temperature."""
        trace, model, sampling = self.trace, self._model(key), config.draft_sampling(self.trace.sampling)
        runners = [self._runner(model, row) for row in range(len(trace.prompts))]
        rows, starts = list[Rows](), trace.position_starts
        for row, runner in enumerate(runners):
            rows.append(rows_of(self._on_text(runner, row), self.budget.width, sampling))
        caps = np.maximum(model.usable_length - trace.contexts + 1, 0).astype(np.int32)
        forest = DraftForest.of_positions(Rows.join(rows), caps)
        has_next = np.ones(trace.num_positions, dtype=np.bool_)
        has_next[starts[1:] - 1] = False
        forest.join_text(trace.next_tokens, has_next)
        trace.forests[key] = forest
        chain = SpecConfig("x", 1, tree_shape="best_first", tree_width=1, tree_nodes=self.budget.max_depth)
        configs = [chain]
        if self.budget.max_nodes:
            configs.append(replace(chain, tree_width=forest.width, tree_nodes=self.budget.max_nodes))
        for row, runner in enumerate(runners):
            for start in range(starts[row], starts[row + 1], _AT_ONCE):
                positions = np.arange(start, min(start + _AT_ONCE, starts[row + 1]))
                for one in configs:
                    self._grow(key, one, positions, self.budget.max_depth, runner, sampling)
                runner.forget()
            if sampling.is_greedy:
                runners[row] = None  # type: ignore[call-overload]
        if not sampling.is_greedy:
            self._record_drawn(key, runners, sampling, self.budget.max_depth)

    def extend(self, key: str, config: SpecConfig, positions: NDArray[np.int64], limit: int) -> None:
        """Record what a configuration drafts at positions; see `Recorder.extend`."""
        trace, model, sampling = self.trace, self._model(key), config.draft_sampling(self.trace.sampling)
        if config.tree_shape == "chain" and not sampling.is_greedy:
            runners = [self._runner(model, row) for row in range(len(trace.prompts))]
            self._record_drawn(key, runners, sampling, limit)
            return
        grown = config
        if config.tree_shape == "chain":
            grown = SpecConfig("x", 1, tree_shape="best_first", tree_width=1, tree_nodes=limit)
        for row in np.unique(trace.prompt_of[positions]).tolist():
            runner, places = self._runner(model, row), positions[trace.prompt_of[positions] == row]
            for start in range(0, len(places), _AT_ONCE):
                self._grow(key, grown, places[start : start + _AT_ONCE], limit, runner, sampling)
                runner.forget()

    def _grow(
        self,
        key: str,
        config: SpecConfig,
        positions: NDArray[np.int64],
        limit: int,
        runner: TextRunner,
        sampling: SamplingParams,
    ) -> None:
        trace, forest = self.trace, self.trace.forests[key]
        limits = np.minimum(np.minimum(trace.left() - 1, limit), forest.caps)
        adder = _Adder(forest, runner, trace.contexts, sampling)
        grow = grow_paths if config.tree_paths else grow_layers
        grow(forest, config, wanted_of(trace, positions, limits), limits[positions], positions, adder)

    def _model(self, key: str) -> CausalLM:
        name, _, exit_layer = key.partition("~")[0].partition("@")
        model = draft_model(self.decoder.drafters[name], self.decoder.target, int(exit_layer or 0))
        if model is None:
            raise ReplayError(f"a drafter run behind all positions must be a language model, but got {name!r}")
        return model

    def _runner(self, model: CausalLM, row: int) -> TextRunner:
        text = [*self.trace.prompt_ids(row), *self.trace.output_ids(row)]
        return TextRunner(model, text, self.decoder.target.vocab_size)

    def _on_text(self, runner: TextRunner, row: int) -> Tensor:
        """Return the drafter's logits behind the positions of a text; those beyond its length are of no use."""
        starts, contexts = self.trace.position_starts, self.trace.contexts
        places = np.minimum(contexts[starts[row] : starts[row + 1]], runner.logits.shape[0]) - 1
        return runner.logits[torch.from_numpy(places)]

    def _record_drawn(self, key: str, runners: list[TextRunner], sampling: SamplingParams, depth: int) -> None:
        """Draw chains behind all positions with the numbers of a live run, and look up the target's own tokens."""
        trace = self.trace
        tokens = np.full((trace.num_positions, depth), -1, dtype=np.int32)
        probs, entropies = (np.zeros((trace.num_positions, depth), dtype=np.float32) for _ in range(2))
        own, coupled = list[Tensor](), list[Tensor]()
        limits = np.minimum(np.minimum(trace.left() - 1, depth), trace.forests[key].caps)
        for row, runner in enumerate(runners):
            first, end = trace.position_starts[row : row + 2].tolist()
            logits = self._on_text(runner, row)
            drafter, target = to_probs(logits, sampling), self._target_probs(row)
            wanted = torch.from_numpy(trace.next_tokens[first:end].astype(np.int64)).to(logits.device)
            own.append(drafter.gather(-1, wanted[:, None])[:, 0])
            coupled.append(_coupled(target, drafter, wanted))
            for start in range(first, end, _AT_ONCE):
                places = np.arange(start, min(start + _AT_ONCE, end))
                drawing = _Drawing(trace, places, runner, sampling)
                parts = drawing.draw(drafter[places - first], limits[places])
                for whole, part in zip((tokens, probs, entropies), parts, strict=True):
                    whole[places, : part.shape[1]] = part
                runner.forget()
        lengths = np.maximum(limits, 0).astype(np.int32)
        both = (torch.cat(parts).cpu().numpy().astype(np.float32) for parts in (own, coupled))
        trace.drawn[key] = Drawn(tokens, probs, entropies, lengths, *both)

    def _target_probs(self, row: int) -> Tensor:
        """Return the target's rows behind the positions of a text: [positions, vocab]."""
        text, first = [*self.trace.prompt_ids(row), *self.trace.output_ids(row)], self.trace.prompts[row].num_prompt
        logits = self.decoder.target.forward(torch.tensor([text]), KVCache(len(text)))[0]
        return to_probs(logits[first:-1], self.trace.sampling)


def _coupled(target: Tensor, drafter: Tensor, own: Tensor) -> Tensor:
    """Return how likely both choose alike with the same Gumbel noise, given the target's choice: [n].

    With the noise of a race, the token of both is y with probability 1 / sum over x of max(target_x / target_y,
    draft_x / draft_y); the target's alone with target_y.
    """
    target, drafter = target.double(), drafter.double()
    target_own, draft_own = (probs.gather(-1, own[:, None]) for probs in (target, drafter))
    total = torch.maximum(target, drafter * target_own / draft_own.clamp_min(1e-300)).sum(dim=-1)
    return torch.where(draft_own[:, 0] > 0.0, 1.0 / total, 0.0)


@dataclass(frozen=True, slots=True)
class _Drawing:
    """Chains drawn behind some positions of one text."""

    trace: Trace
    places: NDArray[np.int64]
    runner: TextRunner
    sampling: SamplingParams

    def draw(self, rows: Tensor, limits: NDArray[np.int64]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return tokens, probabilities and entropies [places, deepest limit] from the rows behind the positions."""
        num, depth = len(self.places), int(limits.max(initial=0))
        tokens, probs = np.full((num, depth), -1, dtype=np.int32), np.zeros((num, depth), dtype=np.float32)
        entropies = np.zeros((num, depth), dtype=np.float32)
        seeds = [self.trace.prompts[row].seed for row in self.trace.prompt_of[self.places].tolist()]
        contexts = self.trace.contexts[self.places]
        nothing = np.full(num, -1, dtype=np.int32)
        scratch = DraftForest(_row(np.zeros(num, dtype=np.int32)), nothing[:, None].copy(), nothing, nothing, nothing)
        alive, nodes = np.arange(num), np.arange(num)
        for level in range(depth):
            kept = limits[alive] > level
            alive, nodes, rows = alive[kept], nodes[kept], rows[torch.from_numpy(kept)]
            numbers = [uniform(seeds[one], int(contexts[one]) + level, Use.DRAFT, level) for one in alive.tolist()]
            drawn = pick(rows, torch.tensor(numbers, dtype=torch.float64))
            tokens[alive, level] = drawn.cpu().numpy()
            probs[alive, level] = rows.gather(-1, drawn[:, None])[:, 0].cpu().numpy()
            entropies[alive, level] = -torch.xlogy(rows, rows).sum(dim=-1).cpu().numpy()
            scratch.rows.tokens[nodes, 0] = tokens[alive, level]
            deeper = limits[alive] > level + 1
            if not deeper.any():
                break
            alive, parents = alive[deeper], nodes[deeper].astype(np.int32)
            ranks, first = np.zeros(len(parents), dtype=np.int32), scratch.num_nodes
            rows = to_probs(self.runner.expand(scratch, parents, ranks, contexts, first), self.sampling)
            scratch.add(parents, ranks, _row(np.zeros(len(parents), dtype=np.int32)))
            nodes = np.arange(first, first + len(parents))
        return tokens, probs, entropies


def _row(tokens: Ints) -> Rows:
    """Return rows of one candidate each."""
    return Rows(tokens[:, None], np.zeros((len(tokens), 1), np.float32), np.zeros(len(tokens), np.float32))
