"""Engines behind one call, for `benchmarks/engines.py`: ours, transformers' `generate`, vLLM in a process of its own.

All take token ids, ignore the end-of-text token and return token ids; none turns them into text. Each is timed from
the outside of its own public call.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import torch

from autospec import SamplingParams, SpecConfig, SpeculativeDecoder, pocket
from autospec.clock import Clock

Ids = list[list[int]]
_WORKER = Path(__file__).with_name("vllm_worker.py")


class PeerError(Exception):
    """An engine cannot be started or does not answer."""


@dataclass(frozen=True)
class Timed:
    """Seconds of a call, and the new tokens of every prompt."""

    seconds: float
    token_ids: Ids


class Peer(Protocol):
    """An engine with its settings.

    Attributes:
        name: Of the settings, unique among those of one engine.
        most_rows: Prompts that it takes at a time.
    """

    name: str
    most_rows: int

    def generate(self, prompts: Ids, num_new: int, temperature: float, seed: int) -> Timed:
        """Generate for prompts, all at a time."""
        ...


class Ours:
    """The engine of this repository.

    Args:
        decoder: The models; without a tokenizer, so that nothing is turned into text.
        config: A configuration, a policy, or None for plain decoding.
        name: See `Peer`.
    """

    most_rows = 1 << 30

    def __init__(self, decoder: SpeculativeDecoder, config: Any, name: str = "") -> None:
        self._decoder, self._config, self._clock = decoder, config, Clock("cpu")
        self.name = name or ("plain" if config is None else config.short())

    def generate(self, prompts: Ids, num_new: int, temperature: float, seed: int) -> Timed:
        """Generate; see `Peer`."""
        started = self._clock.now()
        outputs = self._decoder.generate(
            prompts,
            config=self._config,
            sampling=SamplingParams(temperature=temperature, seed=seed),
            max_new_tokens=num_new,
            ignore_eos=True,
            batch_size=len(prompts),
        )
        return Timed(self._clock.now() - started, [list(output.token_ids) for output in outputs])


@dataclass(frozen=True)
class TransformersModels:
    """Target and assistant as transformers loads them, never ending at the end-of-text token."""

    target: Any
    assistant: Any

    @classmethod
    def load(cls) -> TransformersModels:
        """Load the embedded pair in float32."""
        from transformers import AutoModelForCausalLM

        loaded = []
        for path in (pocket.target_path(), pocket.draft_path()):
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
            model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
            loaded.append(model)
        return cls(*loaded)


class Transformers:
    """`generate` of transformers.

    Args:
        models: The pair.
        name: See `Peer`.
        assistant: Draft with the small model: None not at all, 0 at its defaults, else so many tokens a step.
        options: Further arguments of `generate`.
    """

    def __init__(self, models: TransformersModels, name: str, assistant: int | None = None, **options: Any) -> None:
        self.name, self._models, self._assistant, self._options = name, models, assistant, options
        self._clock = Clock("cpu")
        is_plain = assistant is None and not options
        self.most_rows = 1 << 30 if is_plain else 1  # assisted generation takes one prompt at a time

    @torch.inference_mode()
    def generate(self, prompts: Ids, num_new: int, temperature: float, seed: int) -> Timed:
        """Generate; see `Peer`. Shorter prompts are padded on the left."""
        options = dict(self._options)
        if self._assistant is not None:
            options["assistant_model"] = self._set_assistant()
        if temperature:
            torch.manual_seed(seed)
            options |= {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        else:
            options["do_sample"] = False
        started = self._clock.now()
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        output = self._models.target.generate(ids, attention_mask=mask, max_new_tokens=num_new, **options)
        return Timed(self._clock.now() - started, output[:, longest:].tolist())

    def _set_assistant(self) -> Any:
        """Return the assistant with its settings, which live in its own generation configuration."""
        assistant = self._models.assistant
        own, defaults = assistant.generation_config, type(assistant.generation_config)()
        own.num_assistant_tokens = self._assistant or defaults.num_assistant_tokens
        own.num_assistant_tokens_schedule = "constant" if self._assistant else defaults.num_assistant_tokens_schedule
        own.assistant_confidence_threshold = 0.0 if self._assistant else defaults.assistant_confidence_threshold
        return assistant


class Vllm:
    """vLLM on the CPU in a process of its own, which waits without taking time; see `vllm_worker.py`.

    Args:
        python: Of the environment that vLLM is in.
        name: See `Peer`.
        speculative: Its `speculative_config`; None is plain decoding.
        threads: Cores it is bound to, the first ones that this process may use.
        most_rows: `max_num_seqs`.
        log: Where it writes what it says.

    Raises:
        PeerError: It does not start.
    """

    def __init__(
        self,
        python: Path,
        name: str,
        speculative: dict[str, Any] | None,
        threads: int,
        most_rows: int,
        log: IO[bytes],
    ) -> None:
        self.name, self.most_rows = name, most_rows
        self._process = subprocess.Popen(
            [python, _WORKER],
            env=_environment(threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        options: dict[str, Any] = {
            "model": str(pocket.target_path()),
            "dtype": "float32",
            "max_model_len": 1024,
            "max_num_seqs": most_rows,
            "enable_prefix_caching": False,
            "disable_log_stats": True,
        }
        if speculative is not None:
            options["speculative_config"] = speculative
        try:
            loaded = self._ask({"do": "load", "options": options})
        except PeerError:
            self.close()
            raise
        self.version, self.load_seconds = loaded["version"], loaded["seconds"]

    def generate(self, prompts: Ids, num_new: int, temperature: float, seed: int) -> Timed:
        """Generate; see `Peer`. Timed by the worker, around the call of vLLM alone."""
        asked = {"do": "generate", "prompts": prompts, "num_new": num_new, "temperature": temperature, "seed": seed}
        answer = self._ask(asked)
        return Timed(answer["seconds"], answer["token_ids"])

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise PeerError(f"vLLM must answer, but its process ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(f"vLLM said: {answer['error']}")
        return answer


def _environment(threads: int) -> dict[str, str]:
    """Return what vLLM's process is started with; `vllm_worker.py` says what for."""
    cores = sorted(os.sched_getaffinity(0))[:threads] if hasattr(os, "sched_getaffinity") else range(threads)
    return {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
        "NUMBA_NUM_THREADS": str(threads),  # of its n-gram lookup
    }


def own_choices(decoder: SpeculativeDecoder, configs: Sequence[SpecConfig]) -> list[Peer]:
    """Return ours with each of some configurations."""
    return [Ours(decoder, config) for config in configs]


def vllm_choices() -> dict[str, dict[str, dict[str, Any] | None]]:
    """Return family to name to `speculative_config` of what is tried of vLLM."""
    draft = str(pocket.draft_path())
    return {
        "vllm plain": {"plain": None},
        "vllm draft_model": {
            f"draft_model x{length}": {"method": "draft_model", "model": draft, "num_speculative_tokens": length}
            for length in (2, 3, 4)
        },
        "vllm ngram": {
            f"ngram x{length} n1-3": {
                "method": "ngram",
                "num_speculative_tokens": length,
                "prompt_lookup_min": 1,
                "prompt_lookup_max": 3,
            }
            for length in (3, 4, 6)
        },
    }
