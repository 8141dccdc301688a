"""Texts that reach the end of a model's context: an error before anything is written, or the very text without drafts.

The models have learnt positions, so that one position too many is an error inside the model, not a wrong number.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch

from autospec.config import SamplingParams
from autospec.engine.decoder import SpeculativeDecoder
from autospec.engine.drafters import EarlyExitDrafter
from autospec.engine.model import CausalLM
from autospec.errors import ModelError

PROMPT = [1, 2, 3, 4, 5, 6, 1, 2, 3]
CONTEXT, SHORT_CONTEXT = 40, 20
GREEDY, SAMPLED = SamplingParams(), SamplingParams(temperature=0.5, top_p=0.95, seed=11)


def shortened(model: Any, length: int) -> Any:
    """The same model with its first positions only."""
    model = deepcopy(model)
    model.config.n_positions = model.config.max_position_embeddings = length
    model.transformer.wpe = torch.nn.Embedding.from_pretrained(model.transformer.wpe.weight[:length])
    return model


@pytest.fixture(scope="module")
def target(tiny_model: Any) -> CausalLM:
    return CausalLM(shortened(tiny_model("gpt2"), CONTEXT), "target")


def small(target: CausalLM, noisy_copy: Any, length: int) -> CausalLM:
    return CausalLM(shortened(noisy_copy(target.model, 0.04), length), "small")


READS_MODEL = ("small_model", "fallback", "merge")  # the others are made of texts, or of the target


def decoder_of(target: CausalLM, case: Any, small: CausalLM) -> SpeculativeDecoder:
    return SpeculativeDecoder(target, {case.drafter: case.make_drafter(small, target)})


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("length", [CONTEXT, SHORT_CONTEXT, len(PROMPT) + 1, len(PROMPT) - 1])
def test_a_text_that_fills_the_context_is_the_one_without_drafts(
    target: CausalLM, noisy_copy: Any, simplest: Any, length: int, sampling: SamplingParams
) -> None:
    """Whatever the context of the draft model is, shorter than the prompt even."""
    length = length if simplest.drafter in READS_MODEL else CONTEXT
    decoder = decoder_of(target, simplest, small(target, noisy_copy, length))
    options: dict[str, Any] = {"sampling": sampling, "max_new_tokens": CONTEXT - len(PROMPT), "ignore_eos": True}
    plain = decoder.generate([PROMPT], **options)[0]
    output = decoder.generate([PROMPT], config=simplest.config(6), **options)[0]
    assert output.token_ids == plain.token_ids
    assert output.stop_reason == "length"
    assert len(output.token_ids) == CONTEXT - len(PROMPT)


def test_one_token_more_is_refused_before_anything_is_written(
    target: CausalLM, noisy_copy: Any, simplest: Any
) -> None:
    decoder = decoder_of(target, simplest, small(target, noisy_copy, CONTEXT))
    message = f"must fit the context of `target`, {CONTEXT} tokens, but {CONTEXT + 1} were asked for"
    options: dict[str, Any] = {"config": simplest.config(6), "max_new_tokens": CONTEXT - len(PROMPT) + 1}
    with pytest.raises(ModelError, match=message):
        decoder.generate([PROMPT], **options)
    with pytest.raises(ModelError, match=message):
        next(decoder.stream(PROMPT, **options))


def test_trees_that_fill_the_context(target: CausalLM, noisy_copy: Any, shaped: Any) -> None:
    for length in (CONTEXT, SHORT_CONTEXT):
        decoder = decoder_of(target, shaped, small(target, noisy_copy, length))
        options: dict[str, Any] = {"max_new_tokens": CONTEXT - len(PROMPT), "ignore_eos": True}
        plain = decoder.generate([PROMPT], **options)[0]
        for drafter in (decoder.drafters[shaped.drafter], EarlyExitDrafter(target)):
            decoder.drafters[shaped.drafter] = drafter
            assert decoder.generate([PROMPT], config=shaped.config(4), **options)[0].token_ids == plain.token_ids


def test_a_draft_model_at_the_end_of_its_context_drafts_no_more(
    target: CausalLM, noisy_copy: Any, simplest: Any
) -> None:
    if simplest.drafter != "small_model":
        pytest.skip("it has no context of its own")
    num_drafted = []
    for length in (CONTEXT, SHORT_CONTEXT, len(PROMPT) - 1):
        decoder = decoder_of(target, simplest, small(target, noisy_copy, length))
        output = decoder.generate([PROMPT], config=simplest.config(6), max_new_tokens=31, ignore_eos=True)[0]
        num_drafted.append(output.stats.num_drafted)
    assert num_drafted[0] > num_drafted[1] > num_drafted[2] == 0
