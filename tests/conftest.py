"""Settings of every test, and tiny models and a tokenizer made on the spot."""

from __future__ import annotations

import os
import shutil

# No test may reach a hub, and libraries keep their advice to themselves.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)  # the models are tiny: a second thread costs more than it brings

# Random weights wide enough that logits are spread and next tokens depend on their context.
SPREAD = 0.3
WINDOW = 6  # of every model that slides its attention: shorter than all prompts
HIDDEN = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "max_position_embeddings": 256}
# Tied, or scaled as Gemma scales them, embeddings of random weights do little but repeat the last token.
GEMMA = {
    **HIDDEN,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "sliding_window": WINDOW,
    "tie_word_embeddings": False,
}
SIZES: dict[str, dict[str, Any]] = {
    "llama": {**HIDDEN, "num_key_value_heads": 2},
    "qwen3": {**HIDDEN, "num_key_value_heads": 2, "head_dim": 8},
    "gpt2": {"n_embd": 32, "n_head": 4, "n_positions": 256},
    "gpt_neox": HIDDEN,
    "mistral": {**HIDDEN, "num_key_value_heads": 2, "sliding_window": WINDOW},
    "phi3": {**HIDDEN, "num_key_value_heads": 2, "sliding_window": WINDOW},
    "opt": {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 64,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
    },
    "falcon": {"hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 256, "alibi": False},
    "qwen3_moe": {
        **HIDDEN,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    },
    "gemma2": GEMMA,
    "gemma3_text": {**GEMMA, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt_oss": {
        **HIDDEN,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": WINDOW,
    },
    "qwen2": {
        **HIDDEN,
        "num_key_value_heads": 2,
        "use_sliding_window": True,
        "max_window_layers": 1,
        "sliding_window": WINDOW,
    },
}


def make_model(kind: str, num_layers: int = 2, vocab_size: int = 64, seed: int = 0, **overrides: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    settings = {**SIZES[kind], **special, "num_hidden_layers": num_layers, "initializer_range": SPREAD, **overrides}
    config = AutoConfig.for_model(kind, vocab_size=vocab_size, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


_MADE: dict[str, Any] = {}


def make_model_once(kind: str, **settings: Any) -> Any:
    key = repr((kind, sorted(settings.items())))
    if key not in _MADE:
        _MADE[key] = make_model(kind, **settings)
    return _MADE[key]


def make_noisy_copy(model: Any, scale: float) -> Any:
    generator = torch.Generator().manual_seed(1)
    copied = deepcopy(model)
    for parameter in copied.parameters():
        if parameter.dim() > 1:
            parameter += scale * SPREAD * torch.randn(parameter.shape, generator=generator)
    return copied


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, where there is none, what needs a GPU or a compiler: `make test-all` asks for every test everywhere."""
    if item.get_closest_marker("compiler") is not None and shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("there is no C++ compiler")
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., Any]:
    """(kind, num_layers=2, vocab_size=64, seed=0, **config) -> a random causal language model, made once."""
    return make_model_once


@pytest.fixture(scope="session")
def noisy_copy() -> Callable[[Any, float], Any]:
    """(model, scale) -> the same model with noise on its matrices, so that it agrees with it now and then."""
    return make_noisy_copy


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """A byte-level tokenizer of the 256 bytes, a few merges and an end-of-text token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "b"), ("c", "d"), ("ab", "cd"), ("e", "f")]
    tokens = [*alphabet, *("".join(pair) for pair in merges), "<end>"]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A folder with a tiny Llama and its tokenizer, as `from_pretrained` reads it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_model("llama", vocab_size=len(tiny_tokenizer)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder
