"""Block heads in the layout of DFlash, against the same network put together from transformers' own Qwen3 parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP, Qwen3RMSNorm, Qwen3RotaryEmbedding, apply_rotary_pos_emb

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.cache import KVCache
from autospec.engine.decoder import SpeculativeDecoder
from autospec.engine.drafters import BlockDrafter, Drafter, DraftPlan, Trail
from autospec.engine.model import CausalLM
from autospec.engine.sampling import to_probs
from autospec.engine.termination import Stopping
from autospec.errors import ModelError

WIDTH, HEAD, VOCAB, BLOCK = 32, 8, 8, 4
CONFIG: dict[str, Any] = {
    "architectures": ["DFlashDraftModel"],
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": HEAD,
    "num_hidden_layers": 2,
    "layer_types": ["full_attention"] * 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5000.0,
    "vocab_size": VOCAB,
    "block_size": BLOCK,
    "dflash_config": {"mask_token_id": 3, "target_layer_ids": [0, 2]},
}


def make_weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)

    def draw(*size: int) -> Tensor:
        return 0.3 * torch.randn(*size, generator=generator)

    weights = {
        "fc.weight": draw(WIDTH, 2 * WIDTH),
        "hidden_norm.weight": 1 + draw(WIDTH),
        "norm.weight": 1 + draw(WIDTH),
    }
    for layer in ("layers.0", "layers.1"):
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{layer}.{name}.weight"] = 1 + draw(WIDTH)
        for name in ("q_norm", "k_norm"):
            weights[f"{layer}.self_attn.{name}.weight"] = 1 + draw(HEAD)
        for name, size in (("q", WIDTH), ("k", 2 * HEAD), ("v", 2 * HEAD), ("o", WIDTH)):
            weights[f"{layer}.self_attn.{name}_proj.weight"] = draw(size, WIDTH)
        for name, size in (("gate", (48, WIDTH)), ("up", (48, WIDTH)), ("down", (WIDTH, 48))):
            weights[f"{layer}.mlp.{name}_proj.weight"] = draw(*size)
    return weights


def save(folder: Path, **changes: Any) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    save_file(make_weights(), folder / "model.safetensors")
    return str(folder)


@pytest.fixture(scope="module")
def target(tiny_model: Any) -> CausalLM:
    return CausalLM(tiny_model("qwen3", num_layers=4, vocab_size=VOCAB), "target")


@pytest.fixture
def drafter(target: CausalLM, tmp_path: Path) -> BlockDrafter:
    return BlockDrafter.load(save(tmp_path / "heads"), target)


def test_laws(law: Any, target: CausalLM, drafter: Drafter, config: SpecConfig) -> None:
    law(target, drafter, config)


def test_rows_that_are_mixed_up_are_seen(target: CausalLM, drafter: Drafter, checks: Any, monkeypatch: Any) -> None:
    checks.check_mixed_rows_are_seen(target, drafter, monkeypatch)


def test_the_distribution_is_the_target_s(law_2: Any, tiny_model: Any, tmp_path: Path) -> None:
    target = CausalLM(tiny_model("qwen3", num_layers=4, vocab_size=4), "target")
    law_2(target, BlockDrafter.load(save(tmp_path), target))


@torch.no_grad()
def reference(target: CausalLM, text: list[int], features: Tensor) -> Tensor:
    """One pass over the whole context, with transformers' norms, rotary positions and feed-forward parts."""
    weights, size = make_weights(), len(text) - 1 + BLOCK
    kept = {name: CONFIG[name] for name in list(CONFIG)[1:7]}
    config = Qwen3Config(**kept, rope_parameters={"rope_type": "default", "rope_theta": 5000.0})

    def norm(name: str, states: Tensor) -> Tensor:
        module = Qwen3RMSNorm(states.shape[-1], CONFIG["rms_norm_eps"])
        module.weight.data = weights[f"{name}.weight"]
        return module(states)

    context = norm("hidden_norm", features @ weights["fc.weight"].T)
    states = target.model.model.embed_tokens(torch.tensor([text[-1], 3, 3, 3]))
    cosine, sine = Qwen3RotaryEmbedding(config)(states[None], torch.arange(size)[None])
    for layer in ("layers.0", "layers.1"):
        normed = norm(f"{layer}.input_layernorm", states)
        both = torch.cat([context, normed])
        attention = {name: weights[f"{layer}.self_attn.{name}_proj.weight"] for name in "qkvo"}
        query = norm(f"{layer}.self_attn.q_norm", (normed @ attention["q"].T).view(BLOCK, 4, HEAD)).transpose(0, 1)
        key = norm(f"{layer}.self_attn.k_norm", (both @ attention["k"].T).view(size, 2, HEAD)).transpose(0, 1)
        value = (both @ attention["v"].T).view(size, 2, HEAD).transpose(0, 1)
        query, _ = apply_rotary_pos_emb(query[None], query[None], cosine[:, -BLOCK:], sine[:, -BLOCK:])
        key, _ = apply_rotary_pos_emb(key[None], key[None], cosine, sine)
        heads = []
        for head in range(4):  # two queries share a key
            scores = (query[0, head] @ key[0, head // 2].T) / HEAD**0.5
            heads.append(scores.softmax(dim=-1) @ value[head // 2])
        states = states + torch.cat(heads, dim=-1) @ attention["o"].T
        mlp = Qwen3MLP(config)
        prefix = f"{layer}.mlp."
        mlp.load_state_dict({name[len(prefix) :]: w for name, w in weights.items() if name.startswith(prefix)})
        states = states + mlp(norm(f"{layer}.post_attention_layernorm", states))
    return norm("norm", states[1:]) @ target.model.lm_head.weight.T


def started(
    drafter: BlockDrafter, target: CausalLM, text: list[int], sampling: SamplingParams, **knobs: Any
) -> Tensor:
    config = SpecConfig("drafter", 9, **knobs)
    layers = drafter.needs.hidden_layers
    features = target.forward_with_hidden(torch.tensor([text[:-1]]), KVCache(len(text)), layers)[1][0]
    drafter.start(text[:-1], DraftPlan(config, sampling, 0, 100, Stopping(config), KVCache(1)))
    drafter.commit(text[-1:], Trail(0, None, features))
    return features


TEXT = [1, 2, 3, 0, 5, 7, 7, 2]


def test_a_block_is_what_the_published_network_says(target: CausalLM, drafter: BlockDrafter) -> None:
    sampling = SamplingParams(temperature=0.7)
    assert drafter.needs.hidden_layers == (1, 3)  # the outputs of layers 0 and 2
    features = started(drafter, target, TEXT, sampling)
    tree = drafter.propose(9)
    assert tree.num_nodes == BLOCK - 1
    expected = to_probs(reference(target, TEXT, features), sampling)
    torch.testing.assert_close(tree.draft_probs, expected, rtol=1e-3, atol=1e-5)


def test_a_shorter_draft_is_the_beginning_of_the_whole_block(target: CausalLM, drafter: BlockDrafter) -> None:
    started(drafter, target, TEXT, SamplingParams())
    whole = drafter.propose(3).token_ids.tolist()
    assert [drafter.propose(length).token_ids.tolist() for length in (1, 2)] == [whole[:1], whole[:2]]


def test_a_tree_holds_the_best_tokens_of_each_depth_under_every_parent(
    target: CausalLM, drafter: BlockDrafter
) -> None:
    paths = ((0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1))
    features = started(drafter, target, TEXT, SamplingParams(), tree_shape="static", tree_paths=paths)
    one, two = reference(target, TEXT, features).topk(2, dim=-1).indices[:2].tolist()
    assert drafter.propose(2).token_ids.tolist() == [*one, *two, *two]


def test_it_is_made_from_its_source(target: CausalLM, tmp_path: Path) -> None:
    source = f"block:{save(tmp_path)}"
    decoder = SpeculativeDecoder.from_pretrained(target.model, {"heads": source})
    assert decoder.drafters["heads"].source == source
    output = decoder.generate([[1, 2, 3]], config=SpecConfig("heads", 3), max_new_tokens=6)[0]
    assert output.token_ids == decoder.generate([[1, 2, 3]], max_new_tokens=6)[0].token_ids


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["sliding_attention", "full_attention"]}, r"full attention, but .* \['sliding_attention'\]"),
        ({"selector_rank": 16}, r"plain layers .* \{'selector_rank': 16\}"),
        ({"block_size": 1}, "`block_size` .* from 2 on, but got 1"),
        (
            {"dflash_config": {"mask_token_id": 8, "target_layer_ids": [0, 2]}},
            "with mask 8 and `target` 32 with 8 tokens",
        ),
        ({"dflash_config": {"mask_token_id": 3}}, "`target_layer_ids` .* must be a list of layers, but got None"),
        (
            {"dflash_config": {"mask_token_id": 3, "target_layer_ids": [0, 4]}},
            r"in 0 \.\. 3 of the target, but .* \[0, 4\]",
        ),
        ({"dflash_config": {"mask_token_id": 3, "target_layer_ids": [0]}}, r"`fc\.weight` .* must be \(32, 32\)"),
        ({"num_hidden_layers": 3, "layer_types": None}, r"`layers\.2\.self_attn\.q_proj\.weight` .* it is missing"),
    ],
)
def test_heads_that_do_not_fit_are_refused(
    target: CausalLM, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        BlockDrafter.load(save(tmp_path, **changes), target)
