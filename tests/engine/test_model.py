"""Loading models, what is refused and why, and forwards that equal transformers' own."""

from __future__ import annotations

import json
import threading
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import pytest
import torch
import transformers

from autospec.config import SamplingParams, SpecConfig
from autospec.engine import location
from autospec.engine.cache import KVCache
from autospec.engine.decoder import SpeculativeDecoder
from autospec.engine.location import locate, looks_like_path
from autospec.engine.model import CausalLM, load_model, resolve_device
from autospec.errors import ModelError

ARCHITECTURES = (
    *("llama", "qwen3", "gpt2", "gpt_neox", "opt", "falcon", "qwen3_moe"),
    *("mistral", "phi3", "gemma2", "gemma3_text", "gpt_oss", "qwen2"),  # with windows shorter than the prompt
)
PROMPT = [1, 2, 3, 4, 5, 6, 1, 2, 3]


# Forwards


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_plain_decoding_equals_transformers_own_generate(kind: str, tiny_model: Any) -> None:
    model = tiny_model(kind)
    ids = torch.tensor([PROMPT])
    theirs = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=30, do_sample=False, pad_token_id=0
    )
    ours = SpeculativeDecoder.from_pretrained(model).generate([PROMPT], max_new_tokens=30)[0]
    assert list(ours.token_ids) == theirs[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_logits_equal_the_model_s_own(kind: str, tiny_model: Any) -> None:
    model, ids = CausalLM(tiny_model(kind), kind), torch.tensor([PROMPT])
    expected = tiny_model(kind)(ids).logits
    cache = KVCache(20)
    first, second = model.forward(ids[:, :5], cache), model.forward(ids[:, 5:], cache)
    torch.testing.assert_close(torch.cat([first, second], dim=1), expected, rtol=1e-4, atol=1e-4)
    last = model.forward(ids, KVCache(20), num_logits=2)
    torch.testing.assert_close(last, expected[:, -2:], rtol=1e-4, atol=1e-4)
    assert last.shape == (1, 2, 64)
    last, hidden = model.forward_with_hidden(ids, KVCache(20), (0, -1), num_logits=2)
    torch.testing.assert_close(last, expected[:, -2:], rtol=1e-4, atol=1e-4)
    assert hidden.shape == (1, len(PROMPT), 2 * model.width)


@pytest.mark.parametrize("shape", ["chain", "best_first"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_speculation_equals_transformers_own_generate(kind: str, shape: str, tiny_model: Any, noisy_copy: Any) -> None:
    target, ids = tiny_model(kind), torch.tensor([PROMPT])
    theirs = target.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=30, do_sample=False, pad_token_id=0
    )
    decoder = SpeculativeDecoder.from_pretrained(target, {"draft": noisy_copy(target, 0.04)})
    tree = {} if shape == "chain" else {"tree_shape": shape, "tree_width": 3, "tree_nodes": 12}
    ours = decoder.generate([PROMPT], config=SpecConfig("draft", 8, **tree), max_new_tokens=30)[0]  # type: ignore[arg-type]
    assert list(ours.token_ids) == theirs[0, len(PROMPT) :].tolist()
    assert 0 < ours.stats.num_accepted < ours.stats.num_drafted


def test_a_window_changes_what_a_model_writes(tiny_model: Any) -> None:
    """Or the comparisons above would say nothing of windows."""
    sliding, full = tiny_model("mistral"), tiny_model("mistral", sliding_window=None)
    outputs = [
        SpeculativeDecoder.from_pretrained(model).generate([PROMPT], max_new_tokens=30)[0] for model in (sliding, full)
    ]
    assert outputs[0].token_ids != outputs[1].token_ids


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rule", ["exact", "rejection", "block"])
def test_half_precision_runs(dtype: torch.dtype, rule: str, tiny_model: Any, noisy_copy: Any) -> None:
    model = noisy_copy(tiny_model("llama"), 0.0).to(dtype)
    decoder = SpeculativeDecoder.from_pretrained(model, {"draft": noisy_copy(tiny_model("llama"), 0.04).to(dtype)})
    assert decoder.target.dtype == dtype
    for sampling in (SamplingParams(), SamplingParams(temperature=0.5)):
        output = decoder.generate(
            [PROMPT], config=SpecConfig("draft", 3, accept_rule=rule), sampling=sampling, max_new_tokens=20
        )[0]
        assert len(output.token_ids) == 20
        assert output.stats.num_accepted > 0


# Loading


def test_a_folder_is_loaded_in_float32_on_a_cpu(tiny_checkpoint: Path) -> None:
    model = load_model(str(tiny_checkpoint), device="cpu")
    assert (model.name, model.revision) == (str(tiny_checkpoint), None)
    assert (model.dtype, model.device) == (torch.float32, torch.device("cpu"))
    assert model.context_length == 256
    assert not model.model.training


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_folder_is_loaded_in_the_format_asked_for(tiny_checkpoint: Path, dtype: str) -> None:
    assert load_model(str(tiny_checkpoint), device="cpu", dtype=dtype).dtype == getattr(torch, dtype)


def test_a_home_folder_is_expanded(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tiny_checkpoint.parent))
    assert locate("~/tiny") == str(tiny_checkpoint)


def test_a_loaded_model_is_taken_as_it_is(tiny_model: Any) -> None:
    model = tiny_model("llama")
    assert load_model(model).model is model


def test_unknown_formats_and_devices_are_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(ModelError, match=r"`dtype` must be one of \['auto', .*\], but got 'int3'"):
        load_model(str(tiny_checkpoint), dtype="int3")
    with pytest.raises(ModelError, match="`device` must name a device of this machine, but got 'quantum'"):
        load_model(str(tiny_checkpoint), device="quantum")
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("path", ["/no/such/folder", "./nothing", "~/nothing/here", "a/b/c", "models\\tiny", "tiny/"])
def test_a_path_that_is_not_there_is_never_sent_to_a_hub(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(location, "_check_reachable", lambda source: pytest.fail("asked the hub"))
    assert looks_like_path(path)
    with pytest.raises(ModelError, match=r"must be an existing folder, but .* is not there"):
        load_model(path)


def test_a_file_is_no_model_folder(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"x")
    with pytest.raises(ModelError, match=r"must be an existing folder, but .*model\.safetensors` is a file"):
        load_model(str(file))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded as a causal language model"):
        load_model(str(tmp_path))


def test_damaged_weights_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_checkpoint / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"not a tensor in sight")
    with pytest.raises(ModelError, match="cannot be loaded as a causal language model"):
        load_model(str(tmp_path))


def test_a_damaged_configuration_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": "wide"}))
    with pytest.raises(ModelError, match="cannot be loaded as a causal language model"):
        load_model(str(tmp_path))


# Hub ids


@pytest.mark.parametrize("name", ["gpt2", "acme/model"])
def test_an_id_offline_is_answered_without_asking(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(location, "urlopen", lambda *_, **__: pytest.fail("asked the hub"))
    assert location.constants.HF_HUB_OFFLINE
    with pytest.raises(ModelError, match=f"`{name}` is no local folder .* HF_HUB_OFFLINE is set"):
        load_model(name)


def test_a_hub_that_does_not_answer_is_named_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(location.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(location, "REACH_SECONDS", 0.05)
    asked, released = threading.Event(), threading.Event()

    def wait(request: Any, timeout: float) -> BytesIO:
        asked.set()
        released.wait()
        return BytesIO()

    monkeypatch.setattr(location, "urlopen", wait)
    with pytest.raises(ModelError, match="the model hub cannot be reached: no answer within"):
        locate("acme/model")
    assert asked.is_set()
    released.set()


def test_a_hub_that_cannot_be_found_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(request: Any, timeout: float) -> None:
        raise URLError("name not known")

    monkeypatch.setattr(location.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(location, "urlopen", fail)
    with pytest.raises(ModelError, match=r"cannot be reached: .*name not known"):
        locate("acme/model")


def test_a_hub_that_answers_gets_the_id_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(request: Any, timeout: float) -> None:
        raise HTTPError("hub", 405, "method not allowed", None, None)  # type: ignore[arg-type]

    monkeypatch.setattr(location.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(location, "urlopen", refuse)
    assert locate("acme/model") == "acme/model"


def test_a_cached_id_needs_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(location, "try_to_load_from_cache", lambda source, name: "/cache/config.json")
    assert locate("acme/model") == "acme/model"


def test_a_name_that_can_be_neither_is_refused() -> None:
    with pytest.raises(ModelError, match="must be a folder or a hub id, but got 'my model!'"):
        locate("my model!")


# Code that comes with a checkpoint


REMOTE_CODE = """
raise SystemExit("code of the checkpoint was run")
"""


def test_code_of_a_checkpoint_is_not_run_unless_asked_for(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    config |= {
        "model_type": "unheard_of",
        "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.LM"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text(REMOTE_CODE)
    with pytest.raises(ModelError, match="contains custom code which must be executed"):
        load_model(str(tmp_path))


# What is refused


def tiny(kind: str, **settings: Any) -> Any:
    config = transformers.AutoConfig.for_model(kind, vocab_size=64, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config).requires_grad_(False)


SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def test_an_encoder_decoder_folder_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    transformers.T5Config(vocab_size=64, d_model=32, num_layers=2).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"must be decoder-only, but .* is a t5 model"):
        load_model(str(tmp_path))


def test_prompt_and_output_must_fit_the_context(tiny_model: Any) -> None:
    decoder = SpeculativeDecoder.from_pretrained(tiny_model("llama"))
    assert len(decoder.generate([[1] * 250], max_new_tokens=6)[0].token_ids) == 6
    with pytest.raises(ModelError, match=r"must fit the context of .*, 256 tokens, but 257 were asked for"):
        decoder.generate([[1] * 250], max_new_tokens=7)


def test_a_text_may_be_longer_than_the_window(tiny_model: Any) -> None:
    model = CausalLM(tiny_model("mistral", sliding_window=12), "sliding")
    assert (model.usable_length, model.context_length) == (256, 256)
    decoder = SpeculativeDecoder(model)
    assert len(decoder.generate([[1, 2, 3] * 10], max_new_tokens=9)[0].token_ids) == 9


def test_a_text_may_not_cross_the_edge_at_which_all_keys_are_turned_anew(tiny_model: Any) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    config = transformers.Phi3Config(
        vocab_size=64,
        **SIZES,
        max_position_embeddings=80,
        original_max_position_embeddings=20,
        eos_token_id=None,
        pad_token_id=0,
        rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, **factors},
    )
    model = transformers.AutoModelForCausalLM.from_config(config).requires_grad_(False)
    decoder = SpeculativeDecoder(CausalLM(model, "long"))
    assert (decoder.target.usable_length, decoder.target.context_length) == (20, 80)
    assert len(decoder.generate([[1, 2, 3]], max_new_tokens=17, ignore_eos=True)[0].token_ids) == 17
    with pytest.raises(ModelError, match=r"`long` turns all keys anew in texts of more than 20 tokens, and 21 were"):
        decoder.generate([[1, 2, 3]], max_new_tokens=18)


def test_a_window_that_no_layer_uses_is_no_limit(tiny_model: Any) -> None:
    window = {"use_sliding_window": True, "sliding_window": 12, "layer_types": ["full_attention"] * 2}
    model = CausalLM(tiny("qwen3", **SIZES, num_key_value_heads=2, head_dim=8, **window), "full")
    assert model.model.config.sliding_window == 12
    assert model.usable_length == model.context_length


def test_end_of_text_tokens_come_from_the_generation_settings(tiny_model: Any, noisy_copy: Any) -> None:
    model = noisy_copy(tiny_model("llama"), 0.0)
    assert CausalLM(model, "none").eos_token_ids == frozenset()
    model.generation_config.eos_token_id = [3, 5]
    assert CausalLM(model, "two").eos_token_ids == {3, 5}
    model.generation_config.eos_token_id = None
    model.config.eos_token_id = 7
    assert CausalLM(model, "one").eos_token_ids == {7}
