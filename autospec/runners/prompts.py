"""Whether a decoder can take the prompts of a workload: found out before anything is measured or written.

Renders every prompt once; runs no model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from autospec.errors import WorkloadError
from autospec.records import Workload

if TYPE_CHECKING:
    from autospec.engine.decoder import SpeculativeDecoder


def check_prompts(decoder: SpeculativeDecoder, workload: Workload) -> None:
    """Refuse a workload with prompts, to tune on or held out, that the target cannot take.

    Raises:
        WorkloadError: Prompts are too long for the context together with `max_new_tokens`, or the chat template
            refuses them; all of them are listed.
    """
    target, num_new = decoder.target, workload.max_new_tokens
    room = target.usable_length - num_new
    faults, too_long = [], []
    for prompt in (*workload.tune, *workload.held_out):
        try:
            num_tokens = len(decoder.render(prompt))
        except WorkloadError as error:
            faults.append(str(error))
            continue
        if num_tokens > room:
            too_long.append(f"{prompt.prompt_id!r} ({num_tokens:,})")
    if too_long:
        rule = (
            f"prompt and `max_new_tokens` must fit the context of the target, {target.usable_length:,} tokens, but "
            f"with {num_new:,} new ones there is room for {max(room, 0):,} and {len(too_long)} prompts are longer"
        )
        advice = f"`workload.max_prompt_tokens={room}` leaves them out" if room > 0 else "lower `max_new_tokens`"
        faults.append(f"{rule}; {advice}: {', '.join(too_long)}")
    if faults:
        raise WorkloadError("\n".join(faults))
