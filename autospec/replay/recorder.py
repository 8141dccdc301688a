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
from autospec.engine.model import CausalLM
from autospec.engine.sampling import to_probs
from autospec.errors import ConfigError, ReplayError
from autospec.replay.asking import Asking
from autospec.replay.budget import NODE_COST, RecordingBudget, num_nodes, plain_generations
from autospec.replay.forest import Rows
from autospec.replay.modelling import Modelling
from autospec.replay.running import draft_model, rows_of
from autospec.replay.texts import TracePrompt
from autospec.replay.textual import TEXT_DRAFTERS
from autospec.replay.trace import Trace
from autospec.replay.windowing import record_windows
from autospec.sources import portable_source

_LOGGER = logging.getLogger(__name__)


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
        budgets = self._budgets([key for _, key, _ in self._entries(sampling)])
        for name, key, temperature in self._entries(sampling):
            started = clock.now()
            config = SpecConfig(name, self.budget.max_depth, draft_temperature=temperature)
            if key in budgets:
                Modelling(self.decoder, trace, budgets[key]).record(key, config)
            else:
                Asking(self.decoder, trace).record(key, config, self.budget.width, self.budget.max_nodes)
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
        num_bytes = len(positions) * num_nodes(configs, limit) * (12 * self.budget.width + 12)
        self._check_size(trace.num_bytes + num_bytes)
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

    def seconds_to_extend(self, trace: Trace, key: str, configs: Sequence[SpecConfig]) -> float:
        """Return about how long `extend` takes everywhere, going by what plain decoding of the texts took."""
        model, plain = self._model(key.partition("~")[0].partition("@")[0], key), trace.seconds.get("plain", 0.0)
        if model is None:  # asked position by position, for every configuration
            return plain * len(configs)
        return plain * plain_generations(self._relative_size(model), configs)

    def seconds_to_look_ahead(self, trace: Trace, size: int, depth: int) -> float:
        """Return about how long `add_windows` takes."""
        num_tokens = len(trace.text) / size * sum(range(size, size + depth))
        return trace.seconds.get("plain", 0.0) * NODE_COST * num_tokens / trace.num_positions

    def add_windows(self, trace: Trace, size: int, depth: int) -> None:
        """Add the windows of lookahead decoding to a trace; see `autospec.replay.windowing`.

        Args:
            trace: Changed.
            size: Tokens of a window.
            depth: Iterations.

        Raises:
            ReplayError: The trace would become larger than the budget allows.
        """
        self._check_size(trace.num_bytes + 4 * len(trace.text) * depth)
        record_windows(self.decoder.target, trace, size, depth)

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self.budget.max_bytes:
            raise ReplayError(f"a trace must fit {self.budget.max_bytes} bytes, but would take about {num_bytes}")

    def _model(self, name: str, key: str) -> CausalLM | None:
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

    def _budgets(self, keys: Sequence[str]) -> dict[str, RecordingBudget]:
        """Return what is recorded of each drafter that is a language model."""
        found = [(key, self._model(key.partition("~")[0].partition("@")[0], key)) for key in keys]
        sizes = {key: self._relative_size(model) for key, model in found if model is not None}
        return self.budget.shared(sizes)

    def _relative_size(self, model: CausalLM) -> float:
        return _num_weights(model) / _num_weights(self.decoder.target)


def _num_weights(model: CausalLM) -> int:
    return sum(weight.numel() for weight in model.model.parameters())
