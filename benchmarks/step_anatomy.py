"""Where the time of a step goes: `python benchmarks/step_anatomy.py`.

On the embedded pair, for plain decoding, chains, a tree, text lookup and batches: shares of target forwards, drafter,
acceptance and host, the rest; prefills are left out. Every part is clocked from outside, by wrapping the calls, and
time within a wrapped call that another wrapped call takes is that one's. Also how long four drafted tokens take in a
loop of their own and right behind a target forward. Takes about a minute; needs nothing but the package.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from common import arguments, begin, interval, pocket_decoder, pocket_prompts, say, write

from autospec import SamplingParams, SpecConfig, SpeculativeDecoder
from autospec.clock import Clock
from autospec.engine import batch
from autospec.engine.acceptance import Judge
from autospec.engine.cache import KVCache
from autospec.engine.drafters import DraftPlan
from autospec.engine.session import Session
from autospec.engine.termination import Stopping

CONTEXT = 256
GOAL = {"cpu": 0.10, "cuda": 0.05}  # most of a step outside the forwards
CASES = (
    (SpecConfig(), 1),
    (SpecConfig("draft", 2), 1),
    (SpecConfig("draft", 4), 1),
    (SpecConfig("draft", 4, tree_shape="beam", tree_width=3, tree_nodes=12), 1),
    (SpecConfig("ngram", 10, ngram_min=1, ngram_max=3), 1),
    (SpecConfig(), 8),
    (SpecConfig("draft", 2), 8),
    (SpecConfig("ngram", 4, ngram_min=1, ngram_max=3), 8),
)
FORWARDS = ("forward", "forward_with_hidden", "forward_rows")
PREFILL, PARTS = "prefill", ("target", "draft forwards", "drafter", "acceptance")


class Stopwatch:
    """Seconds by label, each without what was wrapped inside.

    Args:
        clock: Waits for the device.
    """

    def __init__(self, clock: Clock) -> None:
        self.seconds = Counter[str]()
        self._clock, self._inner, self._labels = clock, [0.0], list[str]()
        self._replaced: list[tuple[Any, str, Any]] = []

    def wrap(self, owner: Any, name: str, label: str | Callable[..., str]) -> None:
        """Clock a callable of a module, class or object; a label may depend on the arguments.

        Whatever runs within a prefill is part of it.
        """
        plain = getattr(owner, name)

        def clocked(*args: Any, **kwargs: Any) -> Any:
            own = label if isinstance(label, str) else label(*args, **kwargs)
            own = PREFILL if PREFILL in self._labels else own
            self._labels.append(own)
            self._inner.append(0.0)
            started = self._clock.now()
            try:
                return plain(*args, **kwargs)
            finally:
                seconds = self._clock.now() - started
                self.seconds[self._labels.pop()] += seconds - self._inner.pop()
                self._inner[-1] += seconds

        self._replaced.append((owner, name, vars(owner).get(name)))
        setattr(owner, name, clocked)

    def unwrap(self) -> None:
        """Put everything back."""
        for owner, name, plain in reversed(self._replaced):
            if plain is None:
                delattr(owner, name)
            else:
                setattr(owner, name, plain)


def _forward(label: str) -> Callable[..., str]:
    """Return how a forward is called: by a label, or a prefill where nothing is cached yet."""

    def name(first: Any, cache: KVCache, *args: Any, **kwargs: Any) -> str:
        lengths = cache.lengths if isinstance(first, torch.Tensor) else [cache.lengths[one.row] for one in first]
        return label if min(lengths) else PREFILL

    return name


@contextmanager
def clocked(decoder: SpeculativeDecoder, clock: Clock) -> Iterator[Counter[str]]:
    """Clock the parts of a decoder while something runs."""
    watch = Stopwatch(clock)
    try:
        for forward in FORWARDS:
            watch.wrap(decoder.target, forward, _forward("target"))
            watch.wrap(decoder.drafters["draft"].model, forward, _forward("draft forwards"))  # type: ignore[attr-defined]
        for kind in {type(drafter) for drafter in decoder.drafters.values()}:
            watch.wrap(kind, "propose", "drafter")
            watch.wrap(kind, "commit", "drafter")
        watch.wrap(batch, "propose_all", "drafter")
        watch.wrap(Session, "prefill", PREFILL)
        watch.wrap(Session, "start_drafter", PREFILL)
        watch.wrap(Judge, "accept", "acceptance")
        watch.wrap(Judge, "own_tokens", "acceptance")
        yield watch.seconds
    finally:
        watch.unwrap()


def anatomy(
    decoder: SpeculativeDecoder, case: tuple[SpecConfig, int], prompts: Sequence[list[int]], num_new: int
) -> dict[str, Any]:
    """Return milliseconds a step and shares by part, with an interval over groups of prompts for the host's."""
    config, size = case
    clock, rows, num_steps, num_tokens = Clock(decoder.target.device), list[Counter[str]](), 0.0, 0
    how: dict[str, Any] = {"config": config, "ignore_eos": True, "batch_size": size, "max_new_tokens": num_new}
    decoder.generate(prompts[:size], **how)  # warm up
    for at in range(0, len(prompts) - size + 1, size):
        group = list(prompts[at : at + size])
        with clocked(decoder, clock) as seconds:
            started = clock.now()
            outputs = decoder.generate(group, **how)
            total = clock.now() - started
        seconds["total"] = total - seconds.pop(PREFILL, 0.0)
        rows.append(seconds)
        num_steps += max(output.stats.num_steps for output in outputs)
        num_tokens += sum(output.stats.num_step_tokens for output in outputs)
    total = sum(row["total"] for row in rows)
    parts = {part: sum(row[part] for row in rows) for part in PARTS}
    parts["host"] = total - sum(parts.values())
    outside = np.array([row["total"] - row["target"] - row["draft forwards"] for row in rows])
    totals = np.array([row["total"] for row in rows])
    return {
        "config": config.to_json(),
        "batch_size": size,
        "tokens_per_step": num_tokens / num_steps,
        "milliseconds_per_step": 1e3 * total / num_steps,
        "share": {part: seconds / total for part, seconds in parts.items()},
        "share_outside_forwards": interval(lambda drawn: float(outside[drawn].sum() / totals[drawn].sum()), len(rows)),
        "goal_for_that": GOAL.get(decoder.target.device.type),
    }


def draft_times(decoder: SpeculativeDecoder) -> dict[str, float]:
    """Return seconds of four drafted tokens alone, and behind a target forward, which uses the caches too."""
    target, drafter, config = decoder.target, decoder.drafters["draft"], SpecConfig("draft", 4)
    clock = Clock(target.device)
    text, cache = list(range(CONTEXT)), KVCache(CONTEXT + 8)
    drafter.start(text, DraftPlan(config, SamplingParams(), 0, 2 * CONTEXT, Stopping(config), cache))
    target.forward(torch.tensor([text]), cache)

    alone, behind = list[float](), list[float]()
    for seconds in (alone, behind):
        for _ in range(60):
            if seconds is behind:
                target.forward(torch.arange(5)[None], cache)
                cache.crop(0, CONTEXT)
            started = clock.now()
            drafter.propose(4)
            seconds.append(clock.now() - started)
    own, others = statistics.median(alone), statistics.median(behind)
    say(f"four drafted tokens: {1e3 * own:.2f} ms in a loop of their own, {1e3 * others:.2f} behind a target forward")
    return {"in_a_loop_of_their_own": own, "right_behind_a_target_forward": others}


def main() -> None:
    """Measure and write."""
    parser = arguments(__doc__, "step_anatomy")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--compile", action="store_true", help="compile the models")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=48)
    options = parser.parse_args()
    if options.compile and options.out == parser.get_default("out"):
        options.out = options.out.with_stem("step_anatomy_compiled")
    document = begin(options, options.device, options.dtype)
    loaded = pocket_decoder(options.device, options.dtype, options.compile)
    document["compile"] = loaded.target.compiles
    prompts = pocket_prompts(loaded, "tune", options.prompts)
    decoder = SpeculativeDecoder(loaded.target, loaded.drafters)
    document["steps"] = []
    for case in CASES:
        if case[1] > len(prompts):
            continue
        row = anatomy(decoder, case, prompts, options.new_tokens)
        document["steps"].append(row)
        shares = ", ".join(f"{part} {share:.1%}" for part, share in row["share"].items())
        say(
            f"{case[0].short():<28} batch {case[1]}: {row['tokens_per_step']:.2f} tokens and "
            f"{row['milliseconds_per_step']:.2f} ms a step; {shares}; "
            f"{row['share_outside_forwards']['value']:.1%} outside the forwards"
        )
    document["seconds_of_four_drafted_tokens"] = draft_times(decoder)
    write(document, options.out)


if __name__ == "__main__":
    main()
