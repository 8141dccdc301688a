"""Attention over a cache by the compiled kernel and by torch's own calls: `python benchmarks/attention.py`.

Layers of the embedded target's heads on a CPU in float32, the writing of new keys and values included: a few tokens
of one row and of eight rows of different length, prompts, and prompts of few heads of keys. Both take turns. Takes
about a minute; needs a C++ compiler.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from common import arguments, begin, say, write
from torch import Tensor

from autospec.clock import Clock
from autospec.engine.cache import KVCache
from autospec.engine.lean.attention import Attending, Heads, OneLength, attending_rows
from autospec.engine.lean.kernel import KernelAttention, attention_kernel
from autospec.engine.masks import NewTokens
from autospec.engine.rows import FlatRows, RowTokens

KIND, SIZE, LAYERS = "full_attention", 32, 12  # as the embedded target has them
WINDOWS = {KIND: None}
ONE_ROW, EIGHT_ROWS = (300,), (120, 200, 260, 320, 400, 480, 600, 720)  # tokens cached
NEW, PROMPTS, KEY_HEADS = (1, 2, 4, 8, 16, 32, 64), (64, 256, 711, 1024), (1, 2, 8)


def heads_of(num_queries: int, num_keys: int) -> Heads:
    """Return heads of the embedded target's size."""
    return Heads(KIND, num_queries, num_keys, SIZE, SIZE**-0.5)


def runs(heads: Heads, lengths: Sequence[int], num_new: int) -> Mapping[str, Callable[[], Tensor]]:
    """Return both ways to run as many new tokens behind each row, through layers of their own memory."""
    cache = KVCache(max(lengths) + num_new, len(lengths))
    cache.lengths = list(lengths)
    states = [torch.randn(1, len(lengths) * num_new, number, SIZE) for number in (heads.num_queries, heads.num_keys)]
    queries, keys = states
    for layer in range(LAYERS):
        for store in (cache.keys, cache.values):
            store[layer] = torch.randn(len(lengths), heads.num_keys, cache.capacity, SIZE)
    news = [NewTokens([length], num_new) for length in lengths]
    if len(lengths) == 1:
        own: Attending = OneLength(cache, news[0], WINDOWS, queries)
    else:
        flat = FlatRows(lengths, [RowTokens(row, [0] * num_new) for row in range(len(lengths))])
        own = attending_rows(cache, flat, WINDOWS, queries, heads)
    kernel = KernelAttention(attention_kernel(SIZE), cache, list(enumerate(news)), WINDOWS)

    def through(attending: Attending) -> Tensor:
        return [attending.mix(layer, heads, queries, keys, keys) for layer in range(LAYERS)][-1]

    return {"torch": lambda: through(own), "kernel": lambda: through(kernel)}


def measure(heads: Heads, lengths: Sequence[int], num_new: int, repeats: int, clock: Clock) -> dict[str, Any]:
    """Return the milliseconds of all layers by both, quartiles over turns."""
    ways = runs(heads, lengths, num_new)
    outputs = [way() for way in ways.values()]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            started = clock.now()
            way()
            seconds[name].append(clock.now() - started)
    found: dict[str, Any] = {"cached": list(lengths), "new_tokens": num_new, "key_heads": heads.num_keys}
    for name, own in seconds.items():
        low, middle, high = (1000 * one for one in statistics.quantiles(own, n=4))
        found[name] = {"milliseconds": middle, "low_quartile": low, "high_quartile": high}
    found["kernel_takes"] = statistics.median(
        ours / theirs for ours, theirs in zip(seconds["kernel"], seconds["torch"], strict=True)
    )
    say(
        f"rows {len(lengths)}, cached {max(lengths):4}, new {num_new:4}, key heads {heads.num_keys}: "
        f"torch {found['torch']['milliseconds']:7.2f} ms, kernel {found['kernel']['milliseconds']:7.2f} ms, "
        f"{found['kernel_takes']:.2f} of it"
    )
    return found


@torch.inference_mode()
def main() -> None:
    """Measure and write."""
    parser = arguments(__doc__, "attention")
    parser.add_argument("--repeats", type=int, default=60, help="turns of each")
    options = parser.parse_args()
    document, clock, target = begin(options), Clock("cpu"), heads_of(6, 6)
    started = clock.now()
    attention_kernel(SIZE)
    document["seconds_to_compile_or_load"] = clock.now() - started
    few, many = options.repeats, max(2, options.repeats // 4)
    document["rows"] = [measure(target, lengths, new, few, clock) for lengths in (ONE_ROW, EIGHT_ROWS) for new in NEW]
    document["prompts"] = [measure(target, (0,), length, many, clock) for length in PROMPTS]
    document["prompts_of_few_key_heads"] = [
        measure(heads_of(8, number), (0,), PROMPTS[-1], many, clock) for number in KEY_HEADS
    ]
    write({**document, "layers": LAYERS, "head_size": SIZE}, options.out)


if __name__ == "__main__":
    main()
