"""A drafter that is the target itself: nothing it drafts is rejected, whatever the shape and the rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from autospec.config import SamplingParams
from autospec.engine.decoder import SpeculativeDecoder
from autospec.engine.drafters import Drafter, EarlyExitDrafter, SmallModelDrafter
from autospec.engine.model import CausalLM
from autospec.rules import draws_children

PROMPTS = [[1, 2, 0, 1, 1, 2], [2, 1, 0, 0]]
GREEDY, SAMPLED = SamplingParams(), SamplingParams(temperature=0.8, top_p=0.9, seed=5)


def as_draft_model(target: Any) -> Drafter:
    return SmallModelDrafter(target, target.vocab_size)


def with_all_layers(target: CausalLM) -> Drafter:
    return EarlyExitDrafter(target, range(target.num_layers))


@pytest.fixture(scope="module", params=["table", "llama", "gemma3_text"])  # the last with a window in some layers
def target(request: pytest.FixtureRequest, table: Any, table_model: Any, tiny_model: Any) -> Any:
    return table_model(table(0)) if request.param == "table" else CausalLM(tiny_model(request.param), "target")


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("made_of", [as_draft_model, with_all_layers])
def test_what_the_target_drafts_is_never_rejected(
    target: Any, shaped: Any, made_of: Callable[[Any], Drafter], sampling: SamplingParams
) -> None:
    if made_of is with_all_layers and not isinstance(target, CausalLM):
        pytest.skip("a table has no layers")
    config = shaped.config(4)
    is_drawn = not sampling.is_greedy and (
        config.tree_shape == "chain" or draws_children(config.accept_rule, config.tree_shape)
    )
    if not sampling.is_greedy and (config.accept_rule == "exact" or not (is_drawn or config.accept_rule == "coupled")):
        pytest.skip("the target draws once more, with other random numbers than its draft")
    paths = set(config.tree_paths)
    if not is_drawn and any((*path[:-1], 0) not in paths for path in paths):
        pytest.skip("somewhere this tree holds no first choice")
    decoder = SpeculativeDecoder(target, {shaped.drafter: made_of(target)})
    for output in decoder.generate(PROMPTS, config=config, sampling=sampling, max_new_tokens=22, ignore_eos=True):
        stats = output.stats
        # Wherever there was a candidate, one was kept: every path ends at a leaf.
        assert stats.position_accepted == stats.position_tested
        assert stats.num_accepted >= stats.num_steps
        if config.tree_shape == "chain":
            assert stats.num_accepted == stats.num_drafted
            # 21 tokens behind the prefill, 5 a step, and the last alone.
            assert (stats.num_steps, stats.num_drafted) == (5, 16)
