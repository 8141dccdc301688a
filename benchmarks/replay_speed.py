"""How fast configurations are replayed, and what recording takes: `python benchmarks/replay_speed.py`.

Draws 2,000 different configurations of `search_spaces/full.yaml`, records 24 prompts x 64 tokens with all that they
read, and replays them three times, each time with a new simulator. Recording what is missed is timed
apart. At least 8,000 configurations a minute are wanted. Takes about three minutes; needs nothing but the package.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from common import arguments, begin, say, write

from autospec import pocket
from autospec.clock import Clock
from autospec.config import SamplingParams, SpecConfig
from autospec.engine.decoder import SpeculativeDecoder
from autospec.replay import RecordedPrompt, Recorder, RecordingBudget, Simulator, Trace
from autospec.tuning import SearchSpace

GOAL = 8000  # configurations a minute
WIDTHS = (2, 3, 4, 5, 6)
BUDGET = RecordingBudget(width=6, max_nodes=32, tree_widths=WIDTHS, beam_widths=WIDTHS, exit_layers=(1, 2, 4, 6))


def loaded() -> SpeculativeDecoder:
    """Return the embedded target with every drafter of the space."""
    sources = {"draft": pocket.draft_path(), "early_exit": "early_exit"}
    sources |= {name: name for name in ("ngram", "suffix", "recycling", "lookahead")}
    return SpeculativeDecoder.from_pretrained(pocket.target_path(), sources, device="cpu", dtype="float32")


def chosen_prompts(decoder: SpeculativeDecoder, num_prompts: int) -> list[RecordedPrompt]:
    """Return prompts of the embedded workload, spread over it."""
    assert decoder.text is not None
    rows = [json.loads(line) for line in pocket.workload_path().read_text(encoding="utf-8").splitlines()]
    return [
        RecordedPrompt(row["id"], row["category"], tuple(decoder.text.encode(row["prompt"])))
        for row in rows[:: len(rows) // num_prompts][:num_prompts]
    ]


def drawn_configs(num_configs: int) -> list[SpecConfig]:
    """Return different configurations of the space, always the same."""
    numbers, space = np.random.default_rng(0), SearchSpace.load("full").under(SamplingParams())
    drawn = filter(None, (space.draw(numbers) for _ in range(2 * num_configs)))
    return list(dict.fromkeys(space.config(params) for params in drawn))[:num_configs]


def record(
    decoder: SpeculativeDecoder, prompts: Sequence[RecordedPrompt], num_new: int, configs: Sequence[SpecConfig]
) -> tuple[Trace, dict[str, Any]]:
    """Record prompts, and what configurations miss; return the trace, and what it took."""
    recorder = Recorder(decoder, BUDGET)
    trace = recorder.record(prompts, num_new)
    plain = trace.seconds["plain"]
    for key, seconds in trace.seconds.items():
        say(f"recording {key}: {seconds:.2f} s, {seconds / plain:.2f} plain")
    clock = Clock("cpu")
    started, adding = clock.now(), Simulator(trace, recorder=recorder)
    adding.record(configs)  # all at once; what walks along the texts miss is added as they go
    for config in configs:
        adding.replay(config)
    seconds = clock.now() - started
    say(f"all once, with what was missed recorded: {seconds:.1f} s; {trace.num_bytes / 1e6:.1f} MB")
    return trace, {
        "seconds": dict(trace.seconds),
        "seconds_of_all_once_with_what_was_missed": seconds,
        "megabytes": trace.num_bytes / 1e6,
    }


def replay(trace: Trace, decoder: SpeculativeDecoder, configs: Sequence[SpecConfig]) -> Counter[str]:
    """Replay configurations one by one; return the seconds of each kind."""
    simulator, clock, spent = Simulator(trace, decoder.drafters), Clock("cpu"), Counter[str]()
    for config in configs:
        started = clock.now()
        simulator.replay(config)
        spent[kind_of(config)] += clock.now() - started
    return spent


def kind_of(config: SpecConfig) -> str:
    """Return by what times are told apart."""
    return f"{config.drafter} {config.tree_shape}"


def main() -> None:
    """Record, replay, and write how long both took."""
    parser = arguments(__doc__, "replay_speed")
    parser.add_argument("--configs", type=int, default=2000)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    document = begin(options) | {
        "prompts": options.prompts,
        "new_tokens": options.new_tokens,
        "search_space": "full",
        "goal_configs_a_minute": GOAL,
    }
    decoder, configs = loaded(), drawn_configs(options.configs)
    prompts = chosen_prompts(decoder, options.prompts)
    trace, document["recording"] = record(decoder, prompts, options.new_tokens, configs)
    repeats = [replay(trace, decoder, configs) for _ in range(options.repeats)]
    totals = [sum(spent.values()) for spent in repeats]
    rates = sorted(60 * len(configs) / total for total in totals)
    counts = Counter(map(kind_of, configs))
    medians = {kind: statistics.median(spent[kind] for spent in repeats) for kind in counts}
    document["replay"] = {
        "configs": len(configs),
        "seconds": totals,
        "configs_a_minute": {"median": statistics.median(rates), "least": rates[0], "most": rates[-1]},
        "kinds": {
            kind: {"configs": counts[kind], "median_seconds": seconds}
            for kind, seconds in sorted(medians.items(), key=lambda item: -item[1])
        },
    }
    for kind, row in document["replay"]["kinds"].items():
        say(f"  {kind}: {row['configs']} in {row['median_seconds']:.2f} s")
    say(f"{statistics.median(rates):.0f} configurations a minute, from {rates[0]:.0f} to {rates[-1]:.0f}")
    write(document, options.out)


if __name__ == "__main__":
    main()
