"""Against transformers' assisted generation: the same tokens in the same number of passes of the target.

Both draft `draft_length` tokens a step, but where fewer are left: at most as many as are missing, less one, because
the target itself gives the last. They differ in how they begin. We run the prompt alone, which gives the first token,
and draft behind that; transformers drafts behind the prompt and runs both at once. Our steps behind a prompt are
therefore its passes behind that prompt with the first token appended, pass for pass, and we have one pass more, the
prefill:

    our passes(prompt, n tokens) - 1 = our steps(prompt, n tokens) = its passes(prompt + first token, n - 1 tokens)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from autospec import pocket
from autospec.config import SpecConfig
from autospec.engine.decoder import SpeculativeDecoder
from autospec.engine.text import TextCodec
from autospec.records import Generation

NUM_TOKENS = 25


@dataclass
class Pair:
    """A target, a draft model, and prompts."""

    target: Any
    draft: Any
    prompts: list[list[int]]


def pocket_pair() -> Pair:
    rows = [json.loads(line) for line in pocket.workload_path().read_text(encoding="utf-8").splitlines()]
    codec = TextCodec.load(str(pocket.target_path()))
    shortest = {row["category"]: row["prompt"] for row in sorted(rows, key=lambda row: -len(row["prompt"]))}
    paths = (pocket.target_path(), pocket.draft_path())
    models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in paths]
    return Pair(*models, [codec.encode(prompt) for prompt in shortest.values()])


@pytest.fixture(scope="module", params=["pocket", "llama", "gpt2"])
def pair(request: pytest.FixtureRequest, tiny_model: Callable[..., Any], noisy_copy: Callable[..., Any]) -> Pair:
    if request.param == "pocket":
        made = pocket_pair()
    else:
        target = deepcopy(tiny_model(request.param, seed=3))
        prompts = [[1, 2, 3, 4, 5, 6, 1, 2, 3], [10, 11, 12, 13, 10, 11, 12, 13, 14, 10, 11]]
        made = Pair(target, noisy_copy(target, 0.04), prompts)
    for model in (made.target, made.draft):
        model.generation_config.eos_token_id = None  # both write on behind it
        model.generation_config.pad_token_id = 0
    return made


@contextmanager
def counted_passes(model: Any) -> Iterator[list[int]]:
    """Note how many tokens each forward of a model is given."""
    passes: list[int] = []

    def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        passes.append((kwargs.get("input_ids") if not args else args[0]).shape[1])

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    yield passes
    handle.remove()


def theirs(model: Any, text: list[int], num_tokens: int, **how: Any) -> tuple[list[int], list[int]]:
    """What transformers writes, and the passes of the target that it takes."""
    ids = torch.tensor([text])
    with counted_passes(model) as passes:
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, do_sample=False, **how
        )
    return output[0, len(text) :].tolist(), passes


def ours(pair: Pair, prompt: list[int], config: SpecConfig) -> tuple[Generation, list[int]]:
    decoder = SpeculativeDecoder.from_pretrained(pair.target, {"draft": pair.draft, "ngram": "ngram"})
    passes, forward = list[int](), decoder.target.forward

    def counted(input_ids: Any, *args: Any, **how: Any) -> Any:
        passes.append(input_ids.shape[1])
        return forward(input_ids, *args, **how)

    decoder.target.forward = counted  # type: ignore[method-assign]
    output = decoder.generate([prompt], config=config, max_new_tokens=NUM_TOKENS, ignore_eos=True)[0]
    return output, passes


def set_schedule(pair: Pair, schedule: str, length: int) -> None:
    """Transformers reads how to draft from the draft model's own settings."""
    settings = pair.draft.generation_config
    settings.num_assistant_tokens, settings.num_assistant_tokens_schedule = length, schedule
    settings.assistant_confidence_threshold = 0


@pytest.mark.parametrize("length", [1, 3, 5])
def test_the_same_tokens_in_the_same_passes(pair: Pair, length: int) -> None:
    num_accepted = num_drafted = 0
    for prompt in pair.prompts:
        output, our_passes = ours(pair, prompt, SpecConfig("draft", length))
        set_schedule(pair, "constant", length)
        first, *rest = output.token_ids
        written, passes = theirs(pair.target, [*prompt, first], NUM_TOKENS - 1, assistant_model=pair.draft)
        assert written == rest
        # As many passes, over as many tokens each; theirs has the prompt in the first.
        assert len(our_passes) - 1 == output.stats.num_steps == len(passes)
        assert our_passes == [len(prompt), passes[0] - len(prompt), *passes[1:]]
        assert theirs(pair.target, prompt, NUM_TOKENS, assistant_model=pair.draft)[0] == [first, *rest]
        num_accepted += output.stats.num_accepted
        num_drafted += output.stats.num_drafted
    assert 0 < num_accepted < num_drafted


def test_the_heuristic_is_their_schedule(pair: Pair) -> None:
    lengths = set()
    for prompt in pair.prompts:
        output, our_passes = ours(pair, prompt, SpecConfig("draft", 64, stop_rule="heuristic", draft_length_start=3))
        set_schedule(pair, "heuristic_transient", 3)
        first, *rest = output.token_ids
        written, passes = theirs(pair.target, [*prompt, first], NUM_TOKENS - 1, assistant_model=pair.draft)
        assert written == rest
        assert our_passes == [len(prompt), passes[0] - len(prompt), *passes[1:]]
        lengths |= set(our_passes[1:])
    assert len(lengths) > 2  # it did move


def test_prompt_lookup_writes_the_same_tokens(pair: Pair) -> None:
    """Tokens only: of several matches transformers takes the first, we take the most recent, so drafts differ."""
    num_accepted = 0
    for prompt in pair.prompts:
        output, _ = ours(pair, prompt, SpecConfig("ngram", 4, ngram_max=3))
        how = {"prompt_lookup_num_tokens": 4, "max_matching_ngram_size": 3}
        assert theirs(pair.target, prompt, NUM_TOKENS, **how)[0] == list(output.token_ids)
        num_accepted += output.stats.num_accepted
    assert num_accepted > 0
