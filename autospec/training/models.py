"""The two shapes of the pocket family, and their way to and from disk.

A deep and narrow Llama as the target and a one-layer one as the draft; what is written loads with plain transformers.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from autospec.training.settings import ModelShape


def make_model(shape: ModelShape, vocab_size: int, seed: int) -> LlamaForCausalLM:
    """Return a freshly initialised model in float32; the same seed gives the same weights."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_heads,
        max_position_embeddings=shape.context_length,
        tie_word_embeddings=shape.tied_embeddings,
        bos_token_id=0,
        eos_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def to_device(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Move the model; `PreTrainedModel.to` is not typed for a device."""
    torch.nn.Module.to(model, device)
    return model


def load_model(folder: Path, device: torch.device) -> PreTrainedModel:
    """Load exported weights in float32, for teaching and measuring."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    to_device(model, device).eval()
    return model


def load_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of an exported model."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def export_model(model: PreTrainedModel, tokenizer_folder: Path, folder: Path, facts: Mapping[str, Any]) -> None:
    """Write bfloat16 weights, configuration, tokenizer and, as `training.json`, how the weights came to be.

    An older export stays until the new one is whole.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    config = type(model.config).from_dict(model.config.to_dict())
    copy = type(model)(config)
    torch.nn.Module.to(copy, torch.bfloat16)
    copy.load_state_dict({name: weight.to(torch.bfloat16) for name, weight in model.state_dict().items()})
    copy.save_pretrained(partial)
    for file in sorted(tokenizer_folder.iterdir()):
        shutil.copyfile(file, partial / file.name)
    (partial / "training.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
    for file in partial.iterdir():
        file.chmod(0o644)
    replace_folder(partial, folder)


def replace_folder(new: Path, folder: Path) -> None:
    """Put a finished folder where another may stand."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def training_facts(folder: Path) -> dict[str, Any]:
    """Return what `export_model` was told of how the weights came to be."""
    facts: dict[str, Any] = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    return facts


def weights_hash(folder: Path) -> str:
    """Return twelve hexadecimal digits that name the weights of an exported model."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:12]
