"""EAGLE heads in the published layouts, against the same network put together from transformers' own Llama parts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm, LlamaRotaryEmbedding

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.cache import KVCache
from autospec.engine.decoder import SpeculativeDecoder
from autospec.engine.drafters import Drafter, DraftPlan, EagleDrafter, Trail
from autospec.engine.drafters.checkpoint import HeadCheckpoint
from autospec.engine.drafters.layer_parts import rotary_frequencies
from autospec.engine.model import CausalLM
from autospec.engine.sampling import to_probs
from autospec.engine.termination import Stopping
from autospec.errors import ModelError

WIDTH, VOCAB, DRAFT_IDS = 32, 8, [0, 1, 3, 4, 5, 7]
SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": VOCAB,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5000.0,
}


def random_weights(layer: str, num_inputs: int, fc_inputs: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)

    def draw(*size: int) -> Tensor:
        return 0.3 * torch.randn(*size, generator=generator)

    return {
        "fc.weight": draw(WIDTH, fc_inputs),
        f"{layer}.self_attn.q_proj.weight": draw(WIDTH, num_inputs * WIDTH),
        f"{layer}.self_attn.k_proj.weight": draw(WIDTH // 2, num_inputs * WIDTH),
        f"{layer}.self_attn.v_proj.weight": draw(WIDTH // 2, num_inputs * WIDTH),
        f"{layer}.self_attn.o_proj.weight": draw(WIDTH, WIDTH),
        f"{layer}.mlp.gate_proj.weight": draw(48, WIDTH),
        f"{layer}.mlp.up_proj.weight": draw(48, WIDTH),
        f"{layer}.mlp.down_proj.weight": draw(WIDTH, 48),
        f"{layer}.post_attention_layernorm.weight": 1 + draw(WIDTH),
    }


def first(target: CausalLM) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """EAGLE-1: `layers.0`, a bias, the target's embeddings again, no norm before the layer and behind it."""
    weights = random_weights("layers.0", 1, 2 * WIDTH)
    weights |= {"fc.bias": torch.linspace(-1, 1, WIDTH), "embed_tokens.weight": target.model.model.embed_tokens.weight}
    return {"architectures": ["LlamaForCausalLM"], **SIZES, "vocab_size": target.vocab_size}, weights


def third(target: CausalLM, draft_ids: list[int] | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """EAGLE-3: `midlayer`, norms and a head of its own over some tokens, no embeddings."""
    weights = random_weights("midlayer", 2, 3 * WIDTH)
    for number, name in enumerate(("midlayer.input_layernorm", "midlayer.hidden_norm", "norm")):
        weights[f"{name}.weight"] = 1 + 0.1 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(number))
    ids = draft_ids or [token for token in DRAFT_IDS if token < target.vocab_size]
    generator = torch.Generator().manual_seed(9)
    weights["lm_head.weight"] = 0.3 * torch.randn(len(ids), WIDTH, generator=generator)
    weights["d2t"] = torch.tensor([token - place for place, token in enumerate(ids)])
    weights["t2d"] = torch.zeros(target.vocab_size, dtype=torch.bool).index_fill(0, torch.tensor(ids), True)
    config = {"architectures": ["LlamaForCausalLMEagle3"], **SIZES, "vocab_size": target.vocab_size}
    return config | {"draft_vocab_size": len(ids)}, weights


KINDS = {"first": first, "third": third}


def save(folder: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if "d2t" in weights:
        save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / "model.safetensors")
    else:
        torch.save(weights, folder / "pytorch_model.bin")
    return str(folder)


@pytest.fixture(scope="module")
def target(tiny_model: Any) -> CausalLM:
    return CausalLM(tiny_model("llama", num_layers=6, vocab_size=VOCAB), "target")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Any:
    return KINDS[request.param]


@pytest.fixture
def drafter(kind: Any, target: CausalLM, tmp_path: Path) -> EagleDrafter:
    return EagleDrafter.load(save(tmp_path / "heads", *kind(target)), target)


def test_laws(law: Any, target: CausalLM, drafter: Drafter, config: SpecConfig) -> None:
    law(target, drafter, config)


def test_rows_that_are_mixed_up_are_seen(target: CausalLM, drafter: Drafter, checks: Any, monkeypatch: Any) -> None:
    checks.check_mixed_rows_are_seen(target, drafter, monkeypatch)


def test_what_a_trace_lacks_is_added(target: CausalLM, drafter: Drafter, checks: Any, tmp_path: Path) -> None:
    checks.check_replay_on_demand(target, drafter, tmp_path)


def test_the_distribution_is_the_target_s(law_2: Any, kind: Any, tiny_model: Any, tmp_path: Path) -> None:
    target = CausalLM(tiny_model("llama", num_layers=6, vocab_size=4), "target")  # the third drafts 3 of 4 tokens
    law_2(target, EagleDrafter.load(save(tmp_path, *kind(target)), target))


class Reference:
    """The network out of transformers' parts, run over everything from the start each time."""

    def __init__(self, target: CausalLM, config: dict[str, Any], weights: dict[str, Tensor]) -> None:
        self.target, self.weights, self.is_third = target, weights, "midlayer.hidden_norm.weight" in weights
        kept = {name: value for name, value in config.items() if name in SIZES and name != "rope_theta"}
        llama = LlamaConfig(**kept, rope_parameters={"rope_type": "default", "rope_theta": config["rope_theta"]})
        llama._attn_implementation = "eager"
        self.rotary, self.llama = LlamaRotaryEmbedding(llama), llama
        self.attention, self.mlp = LlamaAttention(llama, 0), LlamaMLP(llama)
        layer = "midlayer." if self.is_third else "layers.0."
        if self.is_third:
            for name in ("q_proj", "k_proj", "v_proj"):
                out = getattr(self.attention, name).out_features
                setattr(self.attention, name, torch.nn.Linear(2 * WIDTH, out, bias=False))
        for module, name in ((self.attention, "self_attn."), (self.mlp, "mlp.")):
            prefix = layer + name
            module.load_state_dict({key[len(prefix) :]: w for key, w in weights.items() if key.startswith(prefix)})
        self.layer = layer

    def norm(self, name: str, states: Tensor) -> Tensor:
        module = LlamaRMSNorm(WIDTH, self.llama.rms_norm_eps)
        module.weight.data = self.weights[f"{name}.weight"]
        return module(states)

    @torch.no_grad()
    def run(self, token_ids: list[int], hidden: Tensor) -> Tensor:
        embedded, size = self.target.model.model.embed_tokens(torch.tensor(token_ids)), len(token_ids)
        if self.is_third:
            states = hidden
            inputs = [
                self.norm(f"{self.layer}input_layernorm", embedded),
                self.norm(f"{self.layer}hidden_norm", hidden),
            ]
            inputs = torch.cat(inputs, dim=-1)
        else:
            states = torch.cat([embedded, hidden], dim=-1) @ self.weights["fc.weight"].T + self.weights["fc.bias"]
            inputs = states
        mask = torch.full((size, size), -1e30).triu(1)[None, None]
        rotated = self.rotary(inputs[None], torch.arange(size)[None])
        states = states + self.attention(inputs[None], position_embeddings=rotated, attention_mask=mask)[0][0]
        return states + self.mlp(self.norm(f"{self.layer}post_attention_layernorm", states))

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        if not self.is_third:
            return hidden @ self.target.model.lm_head.weight.T
        full = torch.full((self.target.vocab_size,), -torch.inf)
        full[self.weights["t2d"]] = self.norm("norm", hidden) @ self.weights["lm_head.weight"].T
        return full

    def expect(self, text: list[int], features: Tensor, drafted: list[int]) -> Tensor:
        """The logits behind a text and some drafted tokens."""
        hidden = features @ self.weights["fc.weight"].T if self.is_third else features
        for count in range(len(drafted) + 1):
            out = self.run([*text[1:], *drafted[:count]], hidden)
            hidden = torch.cat([hidden, out[-1:]])
        return self.logits(hidden[-1])


def started(
    drafter: EagleDrafter, target: CausalLM, text: list[int], sampling: SamplingParams, **knobs: Any
) -> Tensor:
    config = SpecConfig("drafter", 3, **knobs)
    layers = drafter.needs.hidden_layers
    features = target.forward_with_hidden(torch.tensor([text[:-1]]), KVCache(len(text)), layers)[1][0]
    drafter.start(text[:-1], DraftPlan(config, sampling, 0, 100, Stopping(config), KVCache(1)))
    drafter.commit(text[-1:], Trail(0, None, features))
    return features


TEXT = [1, 2, 3, 0, 5, 7, 7, 2]


def test_a_chain_is_what_the_published_network_says(kind: Any, target: CausalLM, drafter: EagleDrafter) -> None:
    sampling = SamplingParams(temperature=0.7)
    features, reference = started(drafter, target, TEXT, sampling), Reference(target, *kind(target))
    tree = drafter.propose(3)
    drafted = tree.token_ids.tolist()
    assert len(drafted) == 3
    for depth in range(3):
        logits = reference.expect(TEXT, features, drafted[:depth])
        torch.testing.assert_close(tree.draft_probs[depth], to_probs(logits, sampling), rtol=1e-3, atol=1e-5)


def test_each_path_of_a_tree_is_a_chain_of_its_own(kind: Any, target: CausalLM, drafter: EagleDrafter) -> None:
    paths = ((0,), (1,), (2,), (1, 0), (1, 1), (2, 0), (1, 1, 0), (2, 0, 0))
    features = started(drafter, target, TEXT, SamplingParams(), tree_shape="static", tree_paths=paths)
    reference, tree = Reference(target, *kind(target)), drafter.propose(3)
    assert tree.num_nodes == len(paths)
    above = {-1: list[int]()}
    for node, (token, parent) in enumerate(zip(tree.token_ids.tolist(), tree.parents, strict=True)):
        rank = sum(1 for other in range(node) if tree.parents[other] == parent)
        ranked = reference.expect(TEXT, features, above[parent]).topk(rank + 1).indices
        assert token == ranked[rank]
        above[node] = [*above[parent], token]


def test_features_are_those_of_the_published_layers(target: CausalLM, kind: Any, tmp_path: Path) -> None:
    config, weights = kind(target)
    expected = (2, 3, 3) if kind is third else (-1,)
    assert EagleDrafter.load(save(tmp_path, config, weights), target).needs.hidden_layers == expected
    if kind is third:
        for changes in ({"eagle_aux_hidden_state_layer_ids": [1, 2, 5]},):
            nested = {"eagle_config": changes}
            for given in (changes, nested):
                drafter = EagleDrafter.load(save(tmp_path, config | given, weights), target)
                assert drafter.needs.hidden_layers == (1, 2, 5)


def test_tokens_outside_the_reduced_vocabulary_are_never_drafted(target: CausalLM, tmp_path: Path) -> None:
    drafter = EagleDrafter.load(save(tmp_path, *third(target, [1, 6])), target)
    started(drafter, target, TEXT, SamplingParams(temperature=5.0))
    tree = drafter.propose(3)
    assert set(tree.token_ids.tolist()) <= {1, 6}
    assert tree.draft_probs[:, [0, 2, 3, 4, 5, 7]].sum() == 0


def test_it_is_made_from_its_source(kind: Any, target: CausalLM, tmp_path: Path) -> None:
    source = f"eagle:{save(tmp_path, *kind(target))}"
    decoder = SpeculativeDecoder.from_pretrained(target.model, {"heads": source})
    assert decoder.drafters["heads"].source == source
    output = decoder.generate([[1, 2, 3]], config=SpecConfig("heads", 3), max_new_tokens=6)[0]
    assert output.token_ids == decoder.generate([[1, 2, 3]], max_new_tokens=6)[0].token_ids


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 2}, "must have one layer, but .* has 2"),
        ({"hidden_act": "gelu"}, "activation silu, but .* has 'gelu'"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "default, linear or llama3, but got 'yarn'"),
        ({"eagle_aux_hidden_state_layer_ids": [1, 2, 6]}, r"hidden states 0 \.\. 5 of the target, but .* \[1, 2, 6\]"),
        ({"draft_vocab_size": 7}, r"`lm_head\.weight` .* must be \(7, 32\), but it is \(6, 32\)"),
        ({"intermediate_size": 40}, r"gate_proj\.weight` .* must be \(40, 32\)"),
    ],
)
def test_heads_that_do_not_fit_are_refused(
    target: CausalLM, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    config, weights = third(target)
    with pytest.raises(ModelError, match=message):
        EagleDrafter.load(save(tmp_path, config | changes, weights), target)


def test_index_maps_that_lead_astray_are_refused(target: CausalLM, tmp_path: Path) -> None:
    config, weights = third(target)
    twice = weights | {"d2t": torch.tensor([0, -1, 1, 1, 1, 2])}
    with pytest.raises(ModelError, match="6 different tokens below 8, but leads to 5 from 0 to 7"):
        EagleDrafter.load(save(tmp_path, config, twice), target)
    with pytest.raises(ModelError, match=r"`t2d` .* must mark the tokens"):
        EagleDrafter.load(save(tmp_path, config, weights | {"t2d": ~weights["t2d"]}), target)


def test_rotary_frequencies_are_transformers_own() -> None:
    scalings = (
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    )
    for scaling in scalings:
        parameters = {**scaling, "rope_theta": 500.0}
        llama = LlamaConfig(hidden_size=64, num_attention_heads=4, rope_parameters=parameters)
        expected = LlamaRotaryEmbedding(llama).inv_freq
        for config in ({"rope_parameters": parameters}, {"rope_scaling": scaling, "rope_theta": 500.0}):
            torch.testing.assert_close(rotary_frequencies(HeadCheckpoint("heads", config, {}), 16), expected)
    assert math.isclose(float(expected[0]), 1.0)
