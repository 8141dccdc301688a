"""Records drafters that are language models over the target's tokens: positions of all texts are run together.

Where the target takes a candidate, the next position's row is the node behind it, so only drafts that leave the text
cost forwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
from autospec.replay.branching import plant_layers
from autospec.replay.budget import RecordingBudget, chain_shape
from autospec.replay.forest import DraftForest, Drawn, Ints, Rows
from autospec.replay.ranking import grow_paths
from autospec.replay.running import Roots, TextsRunner, draft_model, rows_of
from autospec.replay.shelf import wanted_of
from autospec.replay.trace import Trace

# Positions of each text whose drafts are run together: more make larger forwards, but every node is masked from the
# others, which costs as much as running it where a text has a few hundred tokens.
_AT_ONCE = 8
_TEXTS_AT_ONCE = 32  # whose keys and values are held


@dataclass(frozen=True, slots=True)
class _Adder:
    """Adds nodes to a forest; see `plant_layers`."""

    forest: DraftForest
    runner: TextsRunner
    roots: Roots
    sampling: SamplingParams

    def __call__(self, parents: Ints, ranks: Ints) -> None:
        width = self.forest.width
        parts = [
            rows_of(logits, width, self.sampling)
            for _, logits in self.runner.expand(self.forest, parents, ranks, self.roots)
        ]
        self.forest.add(parents, ranks, Rows.join(parts))


@dataclass(frozen=True, slots=True)
class _Group:
    """Texts that are run side by side.

    Args:
        rows: Of their prompts in the trace.
        runner: Of these texts.
        roots: [positions of the trace] where each stands; those of other texts count for nothing.
    """

    rows: range
    runner: TextsRunner
    roots: Roots

    def chunks(self, positions: NDArray[np.int64], trace: Trace) -> Iterator[NDArray[np.int64]]:
        """Yield those of ascending positions that are its own, a few of each text at a time."""
        prompts = trace.prompt_of[positions]
        own = positions[(prompts >= self.rows.start) & (prompts < self.rows.stop)]
        counts = np.bincount(trace.prompt_of[own], minlength=len(trace.prompts))
        place = np.arange(len(own)) - (np.cumsum(counts) - counts)[trace.prompt_of[own]]
        for start in range(0, int(counts.max(initial=0)), _AT_ONCE):
            yield own[(place >= start) & (place < start + _AT_ONCE)]
            self.runner.forget()


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
        caps = np.maximum(model.usable_length - trace.contexts + 1, 0).astype(np.int32)
        rows, groups = list[Rows](), list[_Group]()
        for group in self._groups(model):
            rows += [rows_of(logits, self.budget.width, sampling) for logits in self._read(group)]
            groups = [group] if len(group.rows) == len(trace.prompts) else []  # only so many texts are held at once
        forest = DraftForest.of_positions(Rows.join(rows), caps)
        has_next = np.ones(trace.num_positions, dtype=np.bool_)
        has_next[trace.position_starts[1:] - 1] = False
        forest.join_text(trace.next_tokens, has_next)
        trace.forests[key] = forest
        every = np.arange(trace.num_positions)
        self._plant(key, self.budget.shapes(), every, self.budget.max_depth, groups)
        if not sampling.is_greedy:
            self._record_drawn(key, sampling, self.budget.max_depth)

    def extend(self, key: str, configs: Sequence[SpecConfig], positions: NDArray[np.int64], limit: int) -> None:
        """Record what configurations draft at positions; see `Recorder.extend`."""
        sampling, shapes = configs[0].draft_sampling(self.trace.sampling), dict[SpecConfig, None]()
        for config in configs:
            if config.tree_shape != "chain":
                shapes[config] = None
            elif sampling.is_greedy:
                shapes[chain_shape(limit)] = None
        if any(config.tree_shape == "chain" for config in configs) and not sampling.is_greedy:
            self._record_drawn(key, sampling, limit)
        if shapes:
            self._plant(key, list(shapes), positions, limit)

    def _plant(
        self,
        key: str,
        configs: Sequence[SpecConfig],
        positions: NDArray[np.int64],
        limit: int,
        groups: Sequence[_Group] = (),
    ) -> None:
        """Grow trees at positions, and record all that they expand; groups of texts that were read may be given."""
        trace, forest = self.trace, self.trace.forests[key]
        limits = np.minimum(np.minimum(trace.left() - 1, limit), forest.caps)
        sampling = SpecConfig("x", 1, draft_temperature=_temperature(key)).draft_sampling(trace.sampling)
        layered = [config for config in configs if not config.tree_paths]
        for group in groups or self._groups(self._model(key)):
            adder = _Adder(forest, group.runner, group.roots, sampling)
            for places in group.chunks(positions, trace):
                if not group.runner.has_read:
                    for _ in self._read(group):
                        pass
                wanted = wanted_of(trace, places, limits)
                if layered:
                    plant_layers(forest, layered, wanted, limits[places], places, adder)
                for config in configs:
                    if config.tree_paths:
                        grow_paths(forest, config, wanted, limits[places], places, adder)

    def _groups(self, model: CausalLM) -> Iterator[_Group]:
        trace = self.trace
        for first in range(0, len(trace.prompts), _TEXTS_AT_ONCE):
            rows = range(first, min(first + _TEXTS_AT_ONCE, len(trace.prompts)))
            texts = [[*trace.prompt_ids(row), *trace.output_ids(row)] for row in rows]
            runner = TextsRunner(model, texts, self.decoder.target.vocab_size)
            yield _Group(rows, runner, Roots(trace.prompt_of - first, trace.contexts))

    def _read(self, group: _Group) -> Iterator[Tensor]:
        """Run the texts of a group; yield the drafter's logits behind the positions of each: [positions, vocab]."""
        starts, contexts = self.trace.position_starts, self.trace.contexts
        for place, row in enumerate(group.rows):
            yield group.runner.read(place, contexts[starts[row] : starts[row + 1]])

    def _model(self, key: str) -> CausalLM:
        name, _, exit_layer = key.partition("~")[0].partition("@")
        model = draft_model(self.decoder.drafters[name], self.decoder.target, int(exit_layer or 0))
        if model is None:
            raise ReplayError(f"a drafter run behind all positions must be a language model, but got {name!r}")
        return model

    def _record_drawn(self, key: str, sampling: SamplingParams, depth: int) -> None:
        """Draw chains behind all positions with the numbers of a live run, and look up the target's own tokens."""
        trace = self.trace
        tokens = np.full((trace.num_positions, depth), -1, dtype=np.int32)
        probs, entropies = (np.zeros((trace.num_positions, depth), dtype=np.float32) for _ in range(2))
        own, coupled = list[Tensor](), list[Tensor]()
        limits = np.minimum(np.minimum(trace.left() - 1, depth), trace.forests[key].caps)
        for group in self._groups(self._model(key)):
            first, parts = int(trace.position_starts[group.rows.start]), list[Tensor]()
            for row, logits in zip(group.rows, self._read(group), strict=True):
                start, end = trace.position_starts[row : row + 2].tolist()
                drafter, target = to_probs(logits, sampling), self._target_probs(row)
                wanted = torch.from_numpy(trace.next_tokens[start:end].astype(np.int64)).to(logits.device)
                own.append(drafter.gather(-1, wanted[:, None])[:, 0])
                coupled.append(_coupled(target, drafter, wanted))
                parts.append(drafter)
            rows = torch.cat(parts)
            for places in group.chunks(np.arange(first, first + len(rows)), trace):
                drawing = _Drawing(trace, places, group, sampling)
                drawn = drawing.draw(rows[torch.from_numpy(places - first)], limits[places])
                for whole, part in zip((tokens, probs, entropies), drawn, strict=True):
                    whole[places, : part.shape[1]] = part
        lengths = np.maximum(limits, 0).astype(np.int32)
        both = (torch.cat(parts).cpu().numpy().astype(np.float32) for parts in (own, coupled))
        trace.drawn[key] = Drawn(tokens, probs, entropies, lengths, *both)

    def _target_probs(self, row: int) -> Tensor:
        """Return the target's rows behind the positions of a text: [positions, vocab]."""
        text, first = [*self.trace.prompt_ids(row), *self.trace.output_ids(row)], self.trace.prompts[row].num_prompt
        logits = self.decoder.target.forward(torch.tensor([text]), KVCache(len(text)))[0]
        return to_probs(logits[first:-1], self.trace.sampling)


def _temperature(key: str) -> float:
    """Return the temperature under which a drafter was recorded; -1 is that of the target."""
    return float(key.partition("~")[2] or -1.0)


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
    """Chains drawn behind some positions of a group of texts."""

    trace: Trace
    places: NDArray[np.int64]
    group: _Group
    sampling: SamplingParams

    def draw(self, rows: Tensor, limits: NDArray[np.int64]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return tokens, probabilities and entropies [places, deepest limit] from the rows behind the positions."""
        num, depth = len(self.places), int(limits.max(initial=0))
        tokens, probs = np.full((num, depth), -1, dtype=np.int32), np.zeros((num, depth), dtype=np.float32)
        entropies = np.zeros((num, depth), dtype=np.float32)
        seeds = [self.trace.prompts[row].seed for row in self.trace.prompt_of[self.places].tolist()]
        contexts = self.trace.contexts[self.places]
        roots = Roots(self.group.roots.rows[self.places], contexts)
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
            behind = [logits for _, logits in self.group.runner.expand(scratch, parents, ranks, roots)]
            rows = to_probs(torch.cat(behind), self.sampling)
            scratch.add(parents, ranks, _row(np.zeros(len(parents), dtype=np.int32)))
            nodes = np.arange(first, first + len(parents))
        return tokens, probs, entropies


def _row(tokens: Ints) -> Rows:
    """Return rows of one candidate each."""
    return Rows(tokens[:, None], np.zeros((len(tokens), 1), np.float32), np.zeros(len(tokens), np.float32))
