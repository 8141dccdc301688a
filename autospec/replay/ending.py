"""Where outputs end: at an end-of-text token, or at a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from autospec.engine.text import GrowingText, TextCodec
from autospec.errors import ReplayError
from autospec.replay.trace import Trace


def output_ends(
    trace: Trace, *, stop: Sequence[str] = (), text: TextCodec | None = None, ignore_eos: bool = False
) -> tuple[int, ...]:
    """Return after how many tokens each output would end, the token that ends it included; at most what was recorded.

    Args:
        trace: Its texts go on behind an end of text.
        stop: Strings that end an output.
        text: Tokenizer, for them.
        ignore_eos: Go on behind an end-of-text token.

    Raises:
        ReplayError: Stop strings without a tokenizer.
    """
    if stop and text is None:
        raise ReplayError(f"stop strings need a tokenizer, but there is none for {list(stop)}")
    eos = frozenset() if ignore_eos else frozenset(trace.eos_token_ids)
    ends = []
    for row in range(len(trace.prompts)):
        output, growing = trace.output_ids(row), GrowingText(text, stop)
        last = (place for place, token in enumerate(output, start=1) if growing.append(token) or token in eos)
        ends.append(next(last, len(output)))
    return tuple(ends)
