"""The module of a small GLM-4-MoE and of a small DeepSeek-V3 in the published layout, against transformers' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, Glm4MoeConfig, Glm4MoeForCausalLM
from transformers.cache_utils import MtpCache
from transformers.modeling_layers import MtpModel

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.cache import KVCache
from autospec.engine.decoder import SpeculativeDecoder
from autospec.engine.drafters import Drafter, DraftPlan, MtpDrafter, Trail
from autospec.engine.model import CausalLM, load_model
from autospec.engine.mtp import MtpModule
from autospec.engine.termination import Stopping
from autospec.errors import ModelError

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
}
LATENT: dict[str, Any] = {
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}
KINDS: dict[str, Any] = {
    "glm": (Glm4MoeForCausalLM, Glm4MoeConfig, SIZES | {"head_dim": 8}),
    "deepseek": (DeepseekV3ForCausalLM, DeepseekV3Config, SIZES | LATENT),
}


def save(kind: str, folder: Path, vocab_size: int = 8) -> dict[str, Tensor]:
    """Write a checkpoint whose last layer, a copy of the one before, is the block of a module; return the weights."""
    make, make_config, sizes = KINDS[kind]
    torch.manual_seed(1)
    model = make(make_config(vocab_size=vocab_size, **sizes))
    for parameter in model.parameters():
        parameter.data *= 3.0 if parameter.dim() > 1 else 1.0
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    own = {name: weight for name, weight in weights.items() if name.startswith("model.layers.1.")}
    weights |= {name.replace("layers.1.", "layers.2."): weight.clone() for name, weight in own.items()}
    eye = torch.eye(32)
    weights |= {
        "model.layers.2.enorm.weight": torch.full((32,), 0.7),
        "model.layers.2.hnorm.weight": torch.full((32,), 1.2),
        "model.layers.2.eh_proj.weight": torch.cat([eye, 0.8 * eye], dim=1) + 0.05 * torch.randn(32, 64),
        "model.layers.2.shared_head.norm.weight": torch.linspace(0.8, 1.2, 32),
        "model.layers.2.shared_head.head.weight": weights["lm_head.weight"].clone(),
        "model.layers.2.embed_tokens.weight": weights["model.embed_tokens.weight"].clone(),
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return weights


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def target(kind: str, tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    folder = tmp_path_factory.mktemp(kind)
    save(kind, folder)
    return load_model(str(folder))


@pytest.fixture
def drafter(target: CausalLM) -> MtpDrafter:
    return MtpDrafter(target)


def test_laws(law: Any, target: CausalLM, drafter: Drafter, config: SpecConfig) -> None:
    law(target, drafter, config)


def test_rows_that_are_mixed_up_are_seen(target: CausalLM, drafter: Drafter, checks: Any, monkeypatch: Any) -> None:
    checks.check_mixed_rows_are_seen(target, drafter, monkeypatch)


@pytest.fixture(scope="module")
def target_of_few_tokens(kind: str, tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    folder = tmp_path_factory.mktemp(kind)
    save(kind, folder, vocab_size=4)
    return load_model(str(folder))


def test_the_distribution_is_the_target_s(law_2: Any, target_of_few_tokens: CausalLM) -> None:
    law_2(target_of_few_tokens, MtpDrafter(target_of_few_tokens))


def test_the_first_token_is_that_of_transformers_own_module(target: CausalLM, monkeypatch: Any) -> None:
    # Of the model itself: it has read its class when it was made, and a drafter made before this test changes it too.
    monkeypatch.setattr(target.model, "_keys_to_ignore_on_load_unexpected", [r"model\.layers\.2.*"])
    theirs = MtpModel.from_pretrained(target.model).eval()
    text = [1, 2, 3, 0, 1, 2, 3, 2]
    _, hidden = target.forward_with_hidden(torch.tensor([text[:-1]]), KVCache(7), (-1,))
    with torch.inference_mode():
        cache = MtpCache(config=target.model.config.get_mtp_config())
        tokens, logits, _ = theirs(torch.tensor([text[1:]]), hidden, None, torch.arange(1, 8)[None], cache)
    module, own = MtpModule(target), KVCache(10)
    expected = module.forward(torch.tensor(text[1:]), hidden[0], own)
    torch.testing.assert_close(module.logits(expected[-1:]), logits[0], rtol=1e-4, atol=1e-4)
    drafter, config = MtpDrafter(target), SpecConfig("mtp", 3)
    drafter.start(text[:-1], DraftPlan(config, SamplingParams(), 0, 20, Stopping(config), KVCache(20)))
    drafter.commit(text[-1:], Trail(0, None, hidden[0]))
    draft = drafter.propose(3)
    assert draft.token_ids.tolist()[:1] == tokens[0].tolist()
    # A further token: the module again, on what it expected itself.
    again = module.forward(tokens[0], expected[-1:], own)
    assert draft.token_ids.tolist()[1] == int(module.logits(again).argmax())


def test_it_is_made_from_its_source(target: CausalLM) -> None:
    decoder = SpeculativeDecoder.from_pretrained(target.model, {"mtp": "mtp"})
    assert decoder.drafters["mtp"].source == "mtp"
    output = decoder.generate([[1, 2, 3]], config=SpecConfig("mtp", 3), max_new_tokens=6)[0]
    assert output.token_ids == decoder.generate([[1, 2, 3]], max_new_tokens=6)[0].token_ids


def test_targets_without_a_module_in_the_known_layout_are_refused(tiny_model: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="one multi-token module, but `target` names 0"):
        MtpDrafter(CausalLM(tiny_model("llama"), "target"))
    weights = save("glm", tmp_path)
    bare = {name: weight for name, weight in weights.items() if ".layers.2." not in name}
    for kept in (bare, {name.replace("eh_proj", "merge"): weight for name, weight in weights.items()}):
        save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match=r"must hold a multi-token module behind its layers.*cannot be read"):
            MtpDrafter(load_model(str(tmp_path)))
