from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from autospec.training import models
from autospec.training.settings import ModelShape


def test_the_same_seed_gives_the_same_weights_and_leaves_the_generator_alone() -> None:
    shape = ModelShape(1, 32, 2, 64, 64, True)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, other = (models.make_model(shape, 300, seed).lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_plain_transformers_loads_an_export(tiny_model, tokenizer_folder: Path, tmp_path: Path) -> None:
    models.export_model(tiny_model, tokenizer_folder, tmp_path / "target", {"tokens": 7})
    names = {path.name for path in (tmp_path / "target").iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.json",
    }
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "target")
    assert loaded.dtype == torch.bfloat16
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "target")
    ids = tokenizer("def f(x):", return_tensors="pt").input_ids
    assert loaded.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0).shape[1] >= ids.shape[1] + 1
    assert tiny_model.dtype == torch.float32
    assert models.training_facts(tmp_path / "target") == {"tokens": 7}


def test_exported_weights_are_the_model_s_rounded_to_bfloat16(
    tiny_model, tokenizer_folder: Path, tmp_path: Path
) -> None:
    models.export_model(tiny_model, tokenizer_folder, tmp_path / "target", {})
    loaded = models.load_model(tmp_path / "target", torch.device("cpu"))
    assert loaded.dtype == torch.float32
    for old, new in zip(tiny_model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(old.to(torch.bfloat16).float(), new)


def test_tied_embeddings_are_written_once(tokenizer_folder: Path, tmp_path: Path) -> None:
    draft = models.make_model(ModelShape(1, 32, 2, 64, 64, True), 400, 0)
    models.export_model(draft, tokenizer_folder, tmp_path / "draft", {})
    num_weights = sum(weight.numel() for weight in draft.parameters())
    assert (tmp_path / "draft" / "model.safetensors").stat().st_size < 2 * num_weights + 4096
    assert json.loads((tmp_path / "draft" / "config.json").read_text())["tie_word_embeddings"] is True


def test_a_newer_export_replaces_the_older_one(tiny_model, tokenizer_folder: Path, tmp_path: Path) -> None:
    models.export_model(tiny_model, tokenizer_folder, tmp_path / "target", {})
    before = models.weights_hash(tmp_path / "target")
    with torch.no_grad():
        tiny_model.lm_head.weight.add_(1.0)
    models.export_model(tiny_model, tokenizer_folder, tmp_path / "target", {})
    assert models.weights_hash(tmp_path / "target") != before
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
