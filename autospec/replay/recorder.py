"""Records traces: the target writes once, and every drafter drafts behind every position of what it wrote.

Where the target takes a candidate, the next position's row is the node behind it, so only drafts that leave the text
cost forwards, and those of all positions of a text are run together. Adds later what a replay misses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from autospec.clock import Clock
from autospec.config import SamplingParams, SpecConfig
from autospec.engine.cache import KVCache
from autospec.engine.decoder import SpeculativeDecoder
from autospec.engine.drafters import Drafter, EarlyExitDrafter
from autospec.engine.drafters.recycling import NUM_CANDIDATES
from autospec.engine.model import CausalLM
from autospec.errors import ConfigError, ReplayError
from autospec.replay.branching import grow_layers
from autospec.replay.forest import DraftForest, Ints, Rows
from autospec.replay.running import TextRunner, draft_model, rows_of
from autospec.replay.trace import Trace, TracePrompt

# Positions whose drafts are run together: more make larger forwards, but every node is masked from all others.
_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class RecordingBudget:
    """How much of a drafter's mind is recorded; what lies beyond is added when it is missed.

    Args:
        max_depth: Longest draft.
        width: Candidates of a node.
        max_nodes: Nodes of the best-first tree that is recorded at every position; 0 records chains only.
        exit_layers: Of a target that drafts itself.
        max_bytes: Most a trace may take.
    """

    max_depth: int = 16
    width: int = 8
    max_nodes: int = 16
    exit_layers: tuple[int, ...] = (0,)
    max_bytes: int = 1 << 30

    def estimate_bytes(self, num_tokens: int, num_positions: int, num_forests: int) -> int:
        """Return about how large a trace will be; half of the positions are taken to leave the text."""
        nodes = num_positions * (1 + (self.max_depth + self.max_nodes) // 2)
        return num_tokens * (4 + 8 * NUM_CANDIDATES) + num_forests * nodes * (12 * self.width + 12)


@dataclass(frozen=True, slots=True)
class RecordedPrompt:
    """A text to record.

    Args:
        prompt_id: Unique.
        category: Of the workload.
        prompt_ids: Its tokens.
        seed: For sampling.
    """

    prompt_id: str
    category: str
    prompt_ids: tuple[int, ...]
    seed: int = 0


@dataclass
class Recorder:
    """Makes a trace of a decoder's models, and adds to it.

    Args:
        decoder: Target and drafters.
        budget: How much.
    """

    decoder: SpeculativeDecoder
    budget: RecordingBudget = field(default_factory=RecordingBudget)

    def record(self, prompts: Sequence[RecordedPrompt], max_new_tokens: int) -> Trace:
        """Let the target write, greedily, and every drafter draft.

        Drafters that look text up are not recorded: what they draft is recomputed.

        Raises:
            ConfigError: Fewer than two tokens are to be written.
            ReplayError: The trace would be larger than the budget allows.
        """
        if max_new_tokens < 2:
            raise ConfigError(f"`max_new_tokens >= 2` must hold, for a step to record, but got {max_new_tokens}")
        keys = [key for name in self.decoder.drafters for key in self._keys(name)]
        self._check_size(prompts, max_new_tokens, len(keys))
        clock = Clock(self.decoder.target.device)
        started = clock.now()
        outputs = [
            self.decoder.generate([prompt.prompt_ids], max_new_tokens=max_new_tokens, ignore_eos=True)[0].token_ids
            for prompt in prompts
        ]
        seconds = {"plain": clock.now() - started}
        trace = self._of_target(prompts, outputs)
        seconds["target"] = clock.now() - started - seconds["plain"]
        for key in keys:
            started = clock.now()
            self._record_drafter(trace, key)
            seconds[key] = clock.now() - started
        trace.seconds.update(seconds)
        return trace

    def _check_size(self, prompts: Sequence[RecordedPrompt], max_new_tokens: int, num_forests: int) -> None:
        num_positions = len(prompts) * (max_new_tokens - 1)
        num_tokens = sum(len(prompt.prompt_ids) + max_new_tokens for prompt in prompts)
        num_bytes = self.budget.estimate_bytes(num_tokens, num_positions, num_forests)
        if num_bytes > self.budget.max_bytes:
            raise ReplayError(f"a trace must fit {self.budget.max_bytes} bytes, but would take about {num_bytes}")

    def _keys(self, name: str) -> Iterator[str]:
        """Yield under which names what a drafter drafts is recorded; none where it is recomputed, or cannot be."""
        drafter = self.decoder.drafters[name]
        if isinstance(drafter, EarlyExitDrafter) and not drafter.layers:
            total = self.decoder.target.num_layers
            yield from dict.fromkeys(f"{name}@{layer or (total + 1) // 2}" for layer in self.budget.exit_layers)
        elif draft_model(drafter, self.decoder.target, 0) is not None:
            yield name

    def _of_target(self, prompts: Sequence[RecordedPrompt], outputs: Sequence[Sequence[int]]) -> Trace:
        target, rows = self.decoder.target, list[Rows]()
        texts = [[*prompt.prompt_ids, *output] for prompt, output in zip(prompts, outputs, strict=True)]
        for text in texts:
            logits = target.forward(torch.tensor([text]), KVCache(len(text)))[0].float()
            rows.append(rows_of(logits, NUM_CANDIDATES))
        joined = Rows.join(rows)
        return Trace(
            target=target.name,
            sampling=SamplingParams(),
            prompts=tuple(
                TracePrompt(prompt.prompt_id, prompt.category, prompt.seed, len(prompt.prompt_ids), len(output))
                for prompt, output in zip(prompts, outputs, strict=True)
            ),
            text=np.concatenate([np.array(text, dtype=np.int32) for text in texts]),
            top_tokens=joined.tokens,
            top_logprobs=joined.logprobs,
            eos_token_ids=tuple(sorted(target.eos_token_ids)),
            sources={name: drafter.source for name, drafter in self.decoder.drafters.items()},
            default_exit=(target.num_layers + 1) // 2,
        )

    def _model(self, key: str) -> CausalLM:
        name, _, exit_layer = key.partition("@")
        drafter: Drafter | None = self.decoder.drafters.get(name)
        model = None if drafter is None else draft_model(drafter, self.decoder.target, int(exit_layer or 0))
        if model is None:
            raise ReplayError(f"a drafter that is recorded must run over the target's own tokens, but got {name!r}")
        return model

    def _record_drafter(self, trace: Trace, key: str) -> None:
        model, width = self._model(key), self.budget.width
        runners = [self._runner(trace, model, row) for row in range(len(trace.prompts))]
        starts, contexts = trace.position_starts, trace.contexts
        rows = list[Rows]()
        for row, runner in enumerate(runners):
            places = np.minimum(contexts[starts[row] : starts[row + 1]], runner.logits.shape[0]) - 1
            rows.append(rows_of(runner.logits[torch.from_numpy(places)], width))
        has_next = np.ones(trace.num_positions, dtype=np.bool_)
        has_next[starts[1:] - 1] = False
        forest = DraftForest.of_positions(Rows.join(rows), trace.next_tokens, has_next)
        trace.forests[key], trace.rooms[key] = forest, model.usable_length
        limits = np.minimum(trace.left() - 1, self.budget.max_depth)
        limits = np.clip(limits, 0, np.maximum(model.usable_length - contexts + 1, 0))
        chain = SpecConfig("x", 1, tree_shape="best_first", tree_width=1, tree_nodes=self.budget.max_depth)
        configs = [chain]
        if self.budget.max_nodes:
            configs.append(replace(chain, tree_width=width, tree_nodes=self.budget.max_nodes))
        for row, runner in enumerate(runners):
            adder = _Adder(forest, runner, contexts, width)
            for start in range(starts[row], starts[row + 1], _AT_ONCE):
                positions = np.arange(start, min(start + _AT_ONCE, starts[row + 1]))
                for config in configs:
                    wanted = wanted_of(trace, positions, limits)
                    grow_layers(forest, config, wanted, limits[positions], positions, adder)
                runner.forget()
            runners[row] = None  # type: ignore[call-overload]

    def _runner(self, trace: Trace, model: CausalLM, row: int) -> TextRunner:
        text = [*trace.prompt_ids(row), *trace.output_ids(row)]
        return TextRunner(model, text, self.decoder.target.vocab_size)

    def adders(self, trace: Trace, key: str) -> Mapping[int, _Adder]:
        """Return what records on demand, by row of the prompt; made when it is asked for."""
        return _Adders(self, trace, key)


@dataclass(frozen=True, slots=True)
class _Adder:
    forest: DraftForest
    runner: TextRunner
    contexts: np.ndarray
    width: int

    def __call__(self, parents: Ints, ranks: Ints) -> None:
        logits = self.runner.expand(self.forest, parents, ranks, self.contexts, self.forest.num_nodes)
        self.forest.add(parents, ranks, rows_of(logits, self.width))


class _Adders(dict[int, _Adder]):
    def __init__(self, recorder: Recorder, trace: Trace, key: str) -> None:
        self._recorder, self._trace, self._key = recorder, trace, key

    def __missing__(self, row: int) -> _Adder:
        forest, model = self._trace.forests[self._key], self._recorder._model(self._key)
        runner = self._recorder._runner(self._trace, model, row)
        self[row] = _Adder(forest, runner, self._trace.contexts, forest.width)
        return self[row]


def wanted_of(trace: Trace, positions: np.ndarray, limits: np.ndarray) -> Ints:
    """Return what the target writes from positions on: [positions, deepest limit]; -1 behind the last position."""
    depth = int(limits[positions].max(initial=0))
    padded = np.concatenate([trace.next_tokens, np.full(depth, -1, dtype=np.int32)])
    return np.asarray(padded[positions[:, None] + np.arange(depth)])
