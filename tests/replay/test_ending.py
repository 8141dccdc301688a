"""Ends of text and stop strings inside recorded outputs, against live runs that they end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autospec.config import SpecConfig
from autospec.engine.decoder import SpeculativeDecoder
from autospec.errors import ReplayError
from autospec.replay import RecordedPrompt, Recorder, Simulator, Trace, output_ends

CONFIGS = (
    SpecConfig("draft", 5),
    SpecConfig("suffix", 6),
    SpecConfig("draft", 4, stop_rule="adaptive"),
    SpecConfig("draft", 6, stop_rule="heuristic"),
    SpecConfig("draft", 4, tree_shape="best_first", tree_width=2, tree_nodes=8),
)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.short())
def test_a_stop_string_ends_a_replay_where_it_ends_a_live_run(
    pair: SpeculativeDecoder, prompts: list[RecordedPrompt], trace: Trace, config: SpecConfig
) -> None:
    stop = ("\n", "(")
    ends = output_ends(trace, stop=stop, text=pair.text, ignore_eos=True)
    assert min(ends) < max(ends)
    replay = Simulator(trace, recorder=Recorder(pair), ends=ends).replay(config)
    dropped = 0
    for row, prompt in enumerate(prompts):
        live = pair.generate([prompt.prompt_ids], config=config, max_new_tokens=32, ignore_eos=True, stop=stop)[0]
        assert len(live.token_ids) == ends[row]
        own = replay.stats(row)
        for name in ("num_steps", "num_drafted", "num_accepted", "num_new_tokens", "num_step_tokens"):
            assert getattr(own, name) == getattr(live.stats, name), (row, name)
        dropped += 1 + own.num_accepted + own.num_steps - own.num_new_tokens
    if config.drafter == "draft":
        assert dropped > 0  # somewhere the stop string came before the end of a step


def test_the_first_end_of_text_ends_an_output(trace: Trace) -> None:
    third = trace.output_ids(0)[2]
    ends = output_ends(replace(trace, eos_token_ids=(third,)))
    assert ends[0] == trace.output_ids(0).index(third) + 1
    assert output_ends(replace(trace, eos_token_ids=(third,)), ignore_eos=True) == (32,) * len(trace.prompts)
    # One whose first token ends it has no steps.
    first = output_ends(replace(trace, eos_token_ids=(trace.output_ids(0)[0],)))
    assert Simulator(trace, ends=first).replay(SpecConfig("draft", 2)).per_prompt()[0] == 0


def test_ends_are_asked_for_every_prompt(trace: Trace) -> None:
    with pytest.raises(ReplayError, match="must name one for each prompt, but got 1"):
        Simulator(trace, ends=(3,))
    with pytest.raises(ReplayError, match="stop strings need a tokenizer"):
        output_ends(trace, stop=("x",))
