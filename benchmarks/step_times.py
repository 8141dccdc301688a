"""Where the time of a step goes on the embedded pair: `python benchmarks/step_times.py`.

Writes a row for each configuration (tokens and milliseconds a step, by phase), and how long the draft takes for four
tokens in a loop of its own and right behind a target forward. Needs nothing but the package.
"""

from __future__ import annotations

import json
import statistics
import sys

import torch

from autospec import pocket
from autospec.clock import Clock
from autospec.config import SamplingParams, SpecConfig
from autospec.engine.cache import KVCache
from autospec.engine.decoder import SpeculativeDecoder
from autospec.engine.drafters import DraftPlan
from autospec.engine.termination import Stopping
from autospec.records import StepStats

NUM_PROMPTS, NUM_NEW, CONTEXT, NUM_REPEATS = 12, 64, 256, 60
CONFIGS = (SpecConfig(), *(SpecConfig("draft", length) for length in (1, 2, 4)), SpecConfig("ngram", 10))


def say(line: str) -> None:
    """Write a line."""
    sys.stdout.write(line + "\n")


def step_rows(decoder: SpeculativeDecoder) -> None:
    """Write what a step of each configuration holds and takes."""
    rows = [json.loads(line) for line in pocket.workload_path().read_text(encoding="utf-8").splitlines()]
    prompts = [row["prompt"] for row in rows[:NUM_PROMPTS]]
    for config in CONFIGS:
        decoder.generate(prompts[:2], config=config, max_new_tokens=16)  # warm up
        outputs = decoder.generate(prompts, config=config, max_new_tokens=NUM_NEW, ignore_eos=True)
        total = StepStats()
        for output in outputs:
            total.merge(output.stats)
        phases = {
            name: 1e3 * getattr(total, f"{name}_seconds") / total.num_steps for name in ("draft", "verify", "accept")
        }
        times = ", ".join(f"{name} {value:.2f} ms" for name, value in phases.items())
        speed = total.num_new_tokens / total.total_seconds
        say(f"{config.short():<24} {total.tokens_per_step:.2f} tokens a step; {times}; {speed:.0f} tokens/s")


def draft_times(decoder: SpeculativeDecoder) -> None:
    """Write how long four drafted tokens take alone, and behind a target forward that used the caches."""
    target, drafter, config, clock = decoder.target, decoder.drafters["draft"], SpecConfig("draft", 4), Clock("cpu")
    text, cache = list(range(CONTEXT)), KVCache(CONTEXT + 8)
    drafter.start(text, DraftPlan(config, SamplingParams(), 0, 2 * CONTEXT, Stopping(config), cache))
    target.forward(torch.tensor([text]), cache)
    for behind_target in (False, True):
        seconds = []
        for _ in range(NUM_REPEATS):
            if behind_target:
                target.forward(torch.arange(5)[None], cache)
                cache.crop(0, CONTEXT)
            started = clock.now()
            drafter.propose(4)
            seconds.append(clock.now() - started)
        place = "right behind a target forward" if behind_target else "in a loop of its own"
        say(f"four drafted tokens {place}: {1e3 * statistics.median(seconds):.2f} ms")


if __name__ == "__main__":
    pair = SpeculativeDecoder.from_pretrained(
        pocket.target_path(), {"draft": pocket.draft_path(), "ngram": "ngram"}, device="cpu", dtype="float32"
    )
    step_rows(pair)
    draft_times(pair)
