"""How fast configurations are replayed, and what recording takes: `python benchmarks/replay_speed.py`.

Draws 2,000 different configurations of `search_spaces/full.yaml` and writes seconds, configurations a minute, and
recording over plain decoding. Recording what is missed is timed apart: a second simulator replays on the trace that
has it all. Needs nothing but the package.
"""

from __future__ import annotations

import json
import sys
from collections import Counter

import numpy as np

from autospec import pocket
from autospec.clock import Clock
from autospec.config import SamplingParams
from autospec.engine.decoder import SpeculativeDecoder
from autospec.replay import RecordedPrompt, Recorder, RecordingBudget, Simulator
from autospec.tuning import SearchSpace

NUM_PROMPTS, NUM_NEW, NUM_CONFIGS = 24, 64, int(sys.argv[1]) if len(sys.argv) > 1 else 2000


def say(line: str) -> None:
    """Write a line."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Record, replay, and write how long both took."""
    sources = {"draft": pocket.draft_path(), "early_exit": "early_exit"}
    sources |= {name: name for name in ("ngram", "suffix", "recycling", "lookahead")}
    decoder = SpeculativeDecoder.from_pretrained(pocket.target_path(), sources, device="cpu", dtype="float32")
    assert decoder.text is not None
    rows = [json.loads(line) for line in pocket.workload_path().read_text(encoding="utf-8").splitlines()]
    prompts = [
        RecordedPrompt(row["id"], row["category"], tuple(decoder.text.encode(row["prompt"])))
        for row in rows[:: len(rows) // NUM_PROMPTS][:NUM_PROMPTS]
    ]
    widths = (2, 3, 4, 5, 6)
    budget = RecordingBudget(width=6, max_nodes=32, tree_widths=widths, beam_widths=widths, exit_layers=(1, 2, 4, 6))
    trace = Recorder(decoder, budget).record(prompts, NUM_NEW)
    plain = trace.seconds["plain"]
    say(f"plain decoding {plain:.2f} s; {trace.num_bytes / 1e6:.1f} MB")
    for key, seconds in trace.seconds.items():
        say(f"recording {key}: {seconds:.2f} s, {seconds / plain:.2f} plain")
    numbers, space = np.random.default_rng(0), SearchSpace.load("full").under(SamplingParams())
    drawn = filter(None, (space.draw(numbers) for _ in range(2 * NUM_CONFIGS)))
    configs = list(dict.fromkeys(space.config(params) for params in drawn))[:NUM_CONFIGS]
    clock = Clock("cpu")
    started, adding = clock.now(), Simulator(trace, recorder=Recorder(decoder, budget))
    adding.record(configs)  # all at once; what walks along the texts miss is added as they go
    for config in configs:
        adding.replay(config)
    seconds = clock.now() - started
    say(f"all once, with what was missed recorded: {seconds:.1f} s; {trace.num_bytes / 1e6:.1f} MB")
    simulator = Simulator(trace, decoder.drafters)
    spent, counts = Counter[str](), Counter[str]()
    for config in configs:
        kind, started = f"{config.drafter} {config.tree_shape}", clock.now()
        simulator.replay(config)
        spent[kind] += clock.now() - started
        counts[kind] += 1
    total = sum(spent.values())
    say(f"{len(configs)} configurations in {total:.1f} s: {60 * len(configs) / total:.0f} a minute")
    for kind, seconds in spent.most_common():
        say(f"  {kind}: {counts[kind]} in {seconds:.1f} s")


if __name__ == "__main__":
    main()
