"""Records traces: the target writes once, and every drafter drafts behind every position of what it wrote.

A drafter that is a language model over the target's tokens is run behind all positions of a text together; any other
is asked position by position. What looks text up is not recorded. Adds later what a replay misses.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from autospec.clock import Clock
from autospec.config import SamplingParams, SpecConfig
from autospec.engine.cache import KVCache
from autospec.engine.decoder import SpeculativeDecoder
from autospec.engine.drafters import EarlyExitDrafter
from autospec.engine.drafters.recycling import NUM_CANDIDATES
from autospec.engine.sampling import to_probs
from autospec.errors import ConfigError, ReplayError
from autospec.replay.asking import Asking
from autospec.replay.forest import Rows
from autospec.replay.modelling import Modelling, chain_shape
from autospec.replay.running import draft_model, rows_of
from autospec.replay.textual import TEXT_DRAFTERS
from autospec.replay.trace import Trace, TracePrompt
from autospec.sources import portable_source

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RecordingBudget:
    """How much of a drafter's mind is recorded; what lies beyond is added when it is missed.

    Args:
        max_depth: Longest draft.
        width: Candidates of a node.
        max_nodes: Nodes of the trees that are recorded at every position; smaller ones of the same shape and width are
            part of them. 0 records chains only.
        tree_widths: Children of a node in best-first trees, one tree for each, because these do not nest; none takes
            `width`.
        beam_widths: Of beams, likewise; none records no beam.
        exit_layers: Of a target that drafts itself.
        draft_temperatures: Of drafters, under sampling; -1 is that of the target.
        max_bytes: Most a trace may take, whatever is added to it.
    """

    max_depth: int = 16
    width: int = 8
    max_nodes: int = 16
    tree_widths: tuple[int, ...] = ()
    beam_widths: tuple[int, ...] = ()
    exit_layers: tuple[int, ...] = (0,)
    draft_temperatures: tuple[float, ...] = (-1.0,)
    max_bytes: int = 1 << 30

    def shapes(self) -> list[SpecConfig]:
        """Return what is grown at every position: chains, best-first trees, beams."""
        chain = chain_shape(self.max_depth)
        if not self.max_nodes:
            return [chain]
        kinds = [("best_first", width) for width in self.tree_widths or (self.width,)]
        kinds += [("beam", width) for width in self.beam_widths]
        return [
            chain,
            *(replace(chain, tree_shape=kind, tree_width=width, tree_nodes=self.max_nodes) for kind, width in kinds),
        ]

    def estimate_bytes(self, num_tokens: int, num_positions: int, num_forests: int) -> int:
        """Return about how large a trace will be.

        Half of the positions are taken to leave the text, and every shape to expand an eighth of its budget that none
        before it did.
        """
        others = max(len(self.shapes()) - 2, 0) * self.max_nodes // 4
        nodes = num_positions * (1 + (self.max_depth + self.max_nodes + others) // 2)
        drawn = num_positions * (12 * self.max_depth + 16)
        return num_tokens * (4 + 8 * NUM_CANDIDATES) + num_forests * (nodes * (12 * self.width + 12) + drawn)


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

    def record(
        self, prompts: Sequence[RecordedPrompt], max_new_tokens: int, sampling: SamplingParams | None = None
    ) -> Trace:
        """Let the target write and every drafter draft.

        Drafters that look text up are not recorded: what they draft is recomputed.

        Args:
            prompts: To write behind.
            max_new_tokens: Of each; an end-of-text token does not end them.
            sampling: Greedy by default; each prompt has a seed of its own.

        Raises:
            ConfigError: Fewer than two tokens are to be written.
            ReplayError: The trace would be larger than the budget allows.
        """
        if max_new_tokens < 2:
            raise ConfigError(f"`max_new_tokens >= 2` must hold, for a step to record, but got {max_new_tokens}")
        sampling = replace(sampling or SamplingParams(), seed=0)
        num_bytes = self.estimate_bytes(prompts, max_new_tokens, sampling)
        _LOGGER.info("a trace of %d prompts will take about %.1f MB", len(prompts), num_bytes / 1e6)
        self._check_size(num_bytes)
        clock = Clock(self.decoder.target.device)
        started = clock.now()
        outputs = [
            self.decoder.generate(
                [prompt.prompt_ids],
                max_new_tokens=max_new_tokens,
                ignore_eos=True,
                sampling=replace(sampling, seed=prompt.seed),
            )[0].token_ids
            for prompt in prompts
        ]
        seconds = {"plain": clock.now() - started}
        trace = self._of_target(prompts, outputs, sampling)
        seconds["target"] = clock.now() - started - seconds["plain"]
        for name, key, temperature in self._entries(sampling):
            started = clock.now()
            self._record_drafter(trace, name, key, temperature)
            seconds[key] = seconds.get(key, 0.0) + clock.now() - started
        trace.seconds.update(seconds)
        return trace

    def estimate_bytes(
        self, prompts: Sequence[RecordedPrompt], max_new_tokens: int, sampling: SamplingParams | None = None
    ) -> int:
        """Return about how large the trace of `record` will be; nothing is run."""
        num_positions = len(prompts) * (max_new_tokens - 1)
        num_tokens = sum(len(prompt.prompt_ids) + max_new_tokens for prompt in prompts)
        num_entries = len(list(self._entries(sampling or SamplingParams())))
        return self.budget.estimate_bytes(num_tokens, num_positions, num_entries)

    def extend(
        self, trace: Trace, key: str, configs: Sequence[SpecConfig], positions: NDArray[np.int64], limit: int
    ) -> None:
        """Add to a trace what configurations draft, all of them at once.

        Args:
            trace: Changed.
            key: Under which the drafter was recorded, or its name where it shows no probabilities.
            configs: What is drafted.
            positions: Where.
            limit: Longest path.

        Raises:
            ReplayError: The trace would become larger than the budget allows, or the decoder has no such drafter.
        """
        self._check_size(trace.num_bytes + len(positions) * _num_nodes(configs, limit) * (12 * self.budget.width + 12))
        name = key.partition("~")[0].partition("@")[0]
        if name not in self.decoder.drafters:
            raise ReplayError(f"a draft is added by a decoder with its drafter, {name!r}, but it was not given")
        if self._model(name, key) is not None:
            Modelling(self.decoder, trace, self.budget).extend(key, configs, positions, limit)
            return
        for config in configs:
            if key in trace.forests:
                Asking(self.decoder, trace).extend(key, config, positions, limit)
            else:
                Asking(self.decoder, trace).store(name, config, positions, limit)

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self.budget.max_bytes:
            raise ReplayError(f"a trace must fit {self.budget.max_bytes} bytes, but would take about {num_bytes}")

    def _model(self, name: str, key: str) -> object:
        _, _, exit_layer = key.partition("~")[0].partition("@")
        return draft_model(self.decoder.drafters[name], self.decoder.target, int(exit_layer or 0))

    def _entries(self, sampling: SamplingParams) -> Iterator[tuple[str, str, float]]:
        """Yield name, key and temperature of everything that is recorded."""
        temperatures = (-1.0,) if sampling.is_greedy else self.budget.draft_temperatures
        for name, drafter in self.decoder.drafters.items():
            if isinstance(drafter, TEXT_DRAFTERS):
                continue
            bases = [name]
            if isinstance(drafter, EarlyExitDrafter) and not drafter.layers:
                half = (self.decoder.target.num_layers + 1) // 2
                bases = [
                    f"{name}@{layer}" for layer in dict.fromkeys(exit or half for exit in self.budget.exit_layers)
                ]
            for base in bases:
                for one in temperatures:
                    yield name, base if one < 0.0 else f"{base}~{one:g}", one

    def _of_target(
        self, prompts: Sequence[RecordedPrompt], outputs: Sequence[Sequence[int]], sampling: SamplingParams
    ) -> Trace:
        target, rows, probs = self.decoder.target, list[Rows](), list[np.ndarray]()
        texts = [[*prompt.prompt_ids, *output] for prompt, output in zip(prompts, outputs, strict=True)]
        for prompt, text in zip(prompts, texts, strict=True):
            logits = target.forward(torch.tensor([text]), KVCache(len(text)))[0].float()
            rows.append(rows_of(logits, NUM_CANDIDATES))
            first = len(prompt.prompt_ids)
            wanted = torch.tensor(text[first + 1 :], device=logits.device)
            own = to_probs(logits[first:-1], sampling).gather(-1, wanted[:, None])[:, 0]
            probs.append(own.cpu().numpy().astype(np.float32))
        joined = Rows.join(rows)
        return Trace(
            target=portable_source(target.name),
            sampling=sampling,
            prompts=tuple(
                TracePrompt(prompt.prompt_id, prompt.category, prompt.seed, len(prompt.prompt_ids), len(output))
                for prompt, output in zip(prompts, outputs, strict=True)
            ),
            text=np.concatenate([np.array(text, dtype=np.int32) for text in texts]),
            top_tokens=joined.tokens,
            top_logprobs=joined.logprobs,
            eos_token_ids=tuple(sorted(target.eos_token_ids)),
            sources={name: portable_source(one.source) for name, one in self.decoder.drafters.items()},
            target_probs=np.concatenate(probs),
            default_exit=(target.num_layers + 1) // 2,
        )

    def _record_drafter(self, trace: Trace, name: str, key: str, temperature: float) -> None:
        config = SpecConfig(name, self.budget.max_depth, draft_temperature=temperature)
        if self._model(name, key) is not None:
            Modelling(self.decoder, trace, self.budget).record(key, config)
        else:
            Asking(self.decoder, trace).record(key, config, self.budget.width, self.budget.max_nodes)


def _num_nodes(configs: Sequence[SpecConfig], limit: int) -> int:
    """Return about how many nodes configurations expand at a position; those of one shape and width share theirs."""
    sizes: dict[tuple[str, int], int] = {}
    for config in configs:
        own = 0 if config.tree_shape == "chain" else max(config.tree_nodes, len(config.tree_paths))
        kind = config.tree_shape, config.tree_width
        sizes[kind] = max(sizes.get(kind, 0), own + limit)
    return sum(sizes.values())
