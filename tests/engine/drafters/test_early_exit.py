"""A target that drafts itself with some of its layers: tiny models whose later layers say little."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.cache import KVCache
from autospec.engine.decoder import SpeculativeDecoder
from autospec.engine.drafters import Drafter, DraftPlan, EarlyExitDrafter, NgramDrafter
from autospec.engine.model import CausalLM
from autospec.engine.session import Job, Session
from autospec.engine.termination import Stopping
from autospec.errors import ConfigError, ModelError


def shy(model: Any, scale: float) -> CausalLM:
    """A target whose last two of four layers add little, so that the first two often agree with all."""
    model = deepcopy(model)
    for name, parameter in model.named_parameters():
        if any(f".{layer}." in name for layer in (2, 3)) and parameter.dim() > 1:
            parameter *= scale
    return CausalLM(model, "target")


@pytest.fixture(scope="module", params=["llama", "gpt2", "gpt_neox"])
def target(request: pytest.FixtureRequest, tiny_model: Any) -> CausalLM:
    return shy(tiny_model(request.param, num_layers=4), 0.7)


@pytest.fixture
def drafter(target: CausalLM) -> EarlyExitDrafter:
    return EarlyExitDrafter(target, (0, 1, 3) if target.model.config.model_type == "gpt2" else ())


def test_laws(law: Any, target: CausalLM, drafter: Drafter, config: SpecConfig) -> None:
    law(target, drafter, config)


def test_the_distribution_is_the_target_s(law_2: Any, tiny_model: Any) -> None:
    target = shy(tiny_model("llama", num_layers=4, vocab_size=4), 0.5)
    law_2(target, EarlyExitDrafter(target))


def plan(target: CausalLM, text: list[int], **knobs: Any) -> DraftPlan:
    config = SpecConfig("drafter", 3, **knobs)
    cache = KVCache(len(text) + 10)
    target.forward(torch.tensor([text[:-1]]), cache)
    return DraftPlan(config, SamplingParams(), 0, 100, Stopping(config), cache)


@pytest.mark.parametrize(("knob", "num_layers"), [(0, 2), (1, 1), (3, 3)])
def test_it_drafts_what_a_model_of_its_first_layers_writes(tiny_model: Any, knob: int, num_layers: int) -> None:
    whole = tiny_model("llama", num_layers=4)
    cut = deepcopy(whole)  # an independent way to drop layers
    cut.model.layers = cut.model.layers[:num_layers]
    cut.config.num_hidden_layers = num_layers
    text = [1, 2, 3, 4, 5]
    written = cut.generate(torch.tensor([text]), max_new_tokens=3, do_sample=False)[0, 5:].tolist()
    target = CausalLM(whole, "target")
    drafter = EarlyExitDrafter(target)
    drafter.start(text, plan(target, text, exit_layer=knob))
    assert drafter.propose(3).token_ids.tolist() == written


def test_all_layers_draft_what_the_target_writes(target: CausalLM) -> None:
    decoder = SpeculativeDecoder(target, {"drafter": EarlyExitDrafter(target, [0, 1, 2, 3])})
    stats = decoder.generate([[1, 2, 3]], config=SpecConfig("drafter", 3), max_new_tokens=13)[0].stats
    assert stats.num_accepted == stats.num_drafted == 9


def test_nothing_is_copied_and_the_target_stays_whole(target: CausalLM) -> None:
    before = {name: parameter.data_ptr() for name, parameter in target.model.named_parameters()}
    logits = target.forward(torch.tensor([[1, 2, 3]]), KVCache(3))
    drafter = EarlyExitDrafter(target, [1, 2])
    drafter.start([1, 2], plan(target, [1, 2]))
    drafter.propose(2)
    theirs = {parameter.data_ptr() for parameter in drafter._models[1, 2].model.parameters()}
    assert theirs < set(before.values())
    assert {name: parameter.data_ptr() for name, parameter in target.model.named_parameters()} == before
    assert torch.equal(target.forward(torch.tensor([[1, 2, 3]]), KVCache(3)), logits)


def test_kinds_of_layers_go_with_the_layers_kept(tiny_model: Any) -> None:
    model = tiny_model("qwen3", num_layers=4, use_sliding_window=True, sliding_window=64, max_window_layers=2)
    kinds = ["full_attention"] * 2 + ["sliding_attention"] * 2
    target = CausalLM(model, "target")
    drafter = EarlyExitDrafter(target, [1, 3])
    assert drafter._models[1, 3].model.config.layer_types == ["full_attention", "sliding_attention"]
    assert model.config.layer_types == kinds


def test_it_is_made_from_its_source(tiny_model: Any) -> None:
    target = tiny_model("llama", num_layers=4)
    decoder = SpeculativeDecoder.from_pretrained(target, {"half": "early_exit", "some": "early_exit:0,1,3"})
    half, some = decoder.drafters["half"], decoder.drafters["some"]
    assert isinstance(half, Drafter)
    assert (half.source, some.source) == ("early_exit", "early_exit:0,1,3")
    output = decoder.generate([[1, 2, 3]], config=SpecConfig("some", 2), max_new_tokens=5)[0]
    assert output.token_ids == decoder.generate([[1, 2, 3]], max_new_tokens=5)[0].token_ids


@pytest.mark.parametrize("layers", ["0,4", "1,0", "0,0", "-1", "a", "0,"])
def test_layers_that_are_not_there_are_refused(tiny_model: Any, layers: str) -> None:
    with pytest.raises(ModelError, match="layers"):
        EarlyExitDrafter.parse(CausalLM(tiny_model("llama", num_layers=4), "target"), layers)


def test_a_target_of_one_layer_is_refused(tiny_model: Any) -> None:
    with pytest.raises(ModelError, match="needs at least 2 layers"):
        EarlyExitDrafter(CausalLM(tiny_model("llama", num_layers=1), "target"))


def test_exits_that_are_not_there_are_refused_before_anything_runs(tiny_model: Any) -> None:
    decoder = SpeculativeDecoder.from_pretrained(
        tiny_model("llama", num_layers=4), {"exit": "early_exit", "some": "early_exit:0,1"}
    )
    decoder.check(SpecConfig("exit", 2, exit_layer=3))
    with pytest.raises(ConfigError, match="below the number of layers of the target, 4, but got 4"):
        decoder.check(SpecConfig("exit", 2, exit_layer=4))
    with pytest.raises(ConfigError, match="must be 0 where layers are given, but got 1"):
        decoder.check(SpecConfig("some", 2, exit_layer=1))


def test_the_target_s_cache_has_room_for_every_node_that_drafts(target: CausalLM) -> None:
    # At each of 8 depths up to 3 nodes are run, of which 3 are verified in the end.
    config = SpecConfig("drafter", 8, tree_shape="beam", tree_width=3, tree_nodes=3)
    job = Job((1, 2, 3), config, SamplingParams(), 0, max_new_tokens=9)
    assert Session.slots_for(EarlyExitDrafter(target), job) == 3 + 9 + 24
    assert Session.slots_for(NgramDrafter(), job) == 3 + 9 + 3
    assert Session(target, EarlyExitDrafter(target), job).cache.capacity >= 3 + 9 + 24
