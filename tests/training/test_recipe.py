from __future__ import annotations

import json
import threading
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from autospec import pocket
from autospec.errors import ConfigError, TrainingError
from autospec.training import corpus, publish, stages, tokens, trainer
from autospec.training.recipe import run_recipe
from autospec.training.settings import CorpusSettings, DraftSettings, ModelShape, PocketRecipe, TargetSettings
from autospec.training.stages import Workspace


def tiny_recipe(export_dir: Path) -> PocketRecipe:
    return PocketRecipe(
        corpus=CorpusSettings(("alpha", "beta"), 0.5, 1_000_000, 0.3, 400),
        target=TargetSettings(ModelShape(2, 32, 2, 64, 1024, False), 16384, 64, 8192, 128),
        draft=DraftSettings(ModelShape(1, 32, 2, 64, 1024, True), 8192, 1, 64, 0.3),
        prompts_per_split=1,
        device="cpu",
        compile=False,
        export_dir=str(export_dir),
    )


@pytest.fixture(autouse=True)
def generated_corpus(monkeypatch: pytest.MonkeyPatch, source_files) -> None:
    monkeypatch.setattr(corpus, "collect", lambda *arguments: source_files)
    monkeypatch.setattr(
        corpus,
        "package_table",
        lambda files: [
            {"package": "alpha", "version": "1.0", "licence": "MIT", "num_files": 20, "num_bytes": 100},
        ],
    )


def test_the_whole_recipe_makes_a_family_and_then_has_nothing_left_to_do(tmp_path: Path) -> None:
    recipe, lines = tiny_recipe(tmp_path / "pocket"), []
    outcome = run_recipe(recipe, tmp_path / "out", lines.append)
    assert set(outcome.values()) == {"done"}
    home = tmp_path / "pocket"
    assert {path.name for path in home.iterdir()} == {
        "target", "draft", "workload.jsonl", "manifest.json.xz", "metrics.json", "MODEL_CARD.md",
    }  # fmt: skip
    for name in ("target", "draft"):
        model = AutoModelForCausalLM.from_pretrained(home / name)
        assert model.dtype == torch.bfloat16
        assert model.config.vocab_size == 400
    metrics = json.loads((home / "metrics.json").read_text())
    assert metrics["training"]["target"]["trunk_tokens"] == 16384
    assert metrics["training"]["target"]["decay_tokens"] == 8192
    assert set(metrics["position_acceptance_0"]) == {"overall", "complete", "docs", "edit"}
    assert metrics["size"]["target"]["num_parameters"] == 2 * (4 * 32 * 32 + 3 * 32 * 64 + 64) + 2 * 400 * 32 + 32
    # The first position of a live draft is accepted where draft and target agree; both see the same greedy text.
    live = metrics["live_position_acceptance"]["overall"][0]
    assert 0.0 <= live <= 1.0
    assert "alpha | 1.0 | MIT" in (home / "MODEL_CARD.md").read_text()
    again = run_recipe(recipe, tmp_path / "out", lines.append)
    assert {stage for stage, result in again.items() if result == "done"} == {"export"}


def test_the_embedded_family_is_measured_where_none_was_trained(tmp_path: Path, monkeypatch) -> None:
    recipe = tiny_recipe(tmp_path / "pocket")
    run_recipe(recipe, tmp_path / "out")
    monkeypatch.setattr(pocket, "target_path", lambda: tmp_path / "pocket" / "target")
    outcome = run_recipe(replace(recipe, stages=("corpus", "evaluate")), tmp_path / "fresh")
    assert outcome == {"corpus": "done", "evaluate": "done"}
    first, second = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("out", "fresh"))
    for name in ("weights", "bits_per_byte", "position_acceptance_0", "loop_share", "live_position_acceptance"):
        assert first[name] == second[name]


def test_stages_run_alone_and_name_what_they_lack(tmp_path: Path) -> None:
    recipe = replace(tiny_recipe(tmp_path / "pocket"), stages=("corpus",))
    assert run_recipe(recipe, tmp_path / "out") == {"corpus": "done"}
    with pytest.raises(TrainingError, match="stage `trunk`"):
        run_recipe(replace(recipe, stages=("decay",)), tmp_path / "out")
    with pytest.raises(TrainingError, match="stage `decay`"):
        run_recipe(replace(recipe, stages=("draft",)), tmp_path / "out")


def test_a_trunk_that_was_stopped_goes_on_and_a_newer_trunk_gets_a_newer_decay(tmp_path: Path, monkeypatch) -> None:
    recipe = replace(tiny_recipe(tmp_path / "pocket"), stages=("corpus", "tokenizer"))
    run_recipe(recipe, tmp_path / "out")
    space = Workspace(recipe, tmp_path / "out", torch.device("cpu"), lambda line: None)
    asked_to_stop = threading.Event()
    asked_to_stop.set()
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "stop_on_signals", lambda: nullcontext(asked_to_stop))
        with pytest.raises(KeyboardInterrupt):
            stages.train_trunk(space)
    assert trainer.load_checkpoint(tmp_path / "out" / "target-trunk.pt")["tokens_seen"] == 0
    assert stages.train_trunk(space)
    assert not stages.train_trunk(space)
    assert stages.train_decay(space)
    assert not stages.train_decay(space)
    longer = replace(recipe, target=replace(recipe.target, trunk_tokens=24576))
    space = replace(space, recipe=longer)
    assert stages.train_trunk(space)
    assert stages.train_decay(space)
    assert trainer.load_checkpoint(tmp_path / "out" / "target-decay.pt")["branched_at"] == 24576


def test_a_trunk_goes_on_from_an_exported_target_with_its_tokenizer(tmp_path: Path, monkeypatch) -> None:
    recipe = replace(tiny_recipe(tmp_path / "pocket"), stages=("corpus", "tokenizer", "trunk", "decay"))
    run_recipe(recipe, tmp_path / "first")
    exported = tmp_path / "first" / "target"
    target = replace(recipe.target, trunk_tokens=32768, resume_from=str(exported))
    recipe = replace(recipe, target=target, stages=("corpus", "tokenizer"), seed=1)

    def refuse(*arguments: object) -> None:
        raise AssertionError("a tokenizer was trained")

    monkeypatch.setattr(tokens, "train_tokenizer", refuse)
    run_recipe(recipe, tmp_path / "second")
    ours, theirs = (
        Tokenizer.from_file(str(tmp_path / name / "tokenizer" / "tokenizer.json")) for name in ("second", "first")
    )
    assert ours.get_vocab() == theirs.get_vocab()
    text = "def compute_total_7(total, values):"
    assert ours.encode(text).ids == theirs.encode(text).ids

    space = Workspace(recipe, tmp_path / "second", torch.device("cpu"), lambda line: None)
    asked_to_stop = threading.Event()
    asked_to_stop.set()
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "stop_on_signals", lambda: nullcontext(asked_to_stop))
        with pytest.raises(KeyboardInterrupt):
            stages.train_trunk(space)
    begun = trainer.load_checkpoint(tmp_path / "second" / "target-trunk.pt")
    assert begun["tokens_seen"] == 16384 + 8192
    assert [list(pair) for pair in begun["curve"]] == json.loads((exported / "training.json").read_text())["curve"]
    weights = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).state_dict()
    assert all(torch.equal(begun["model"][name], weight) for name, weight in weights.items())
    assert all(optimizer["state"] == {} for optimizer in begun["optimizers"])

    assert stages.train_trunk(space)  # from its own checkpoint now, one step of 8,192 tokens
    trained = trainer.load_checkpoint(tmp_path / "second" / "target-trunk.pt")
    assert trained["tokens_seen"] == 32768
    assert not all(torch.equal(trained["model"][name], weight) for name, weight in weights.items())
    assert not stages.train_trunk(space)


@pytest.mark.parametrize(
    ("checkout", "writable", "expected"),
    [(True, True, "family"), (True, False, "out/export"), (False, True, "out/export")],
)
def test_the_family_goes_to_its_place_in_a_checkout_and_else_beside_the_results(
    tmp_path: Path, monkeypatch, checkout: bool, writable: bool, expected: str
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(pocket, "target_path", lambda: tmp_path / "family" / "target")
    monkeypatch.setattr(publish, "is_checkout", lambda: checkout)
    monkeypatch.setattr(publish.os, "access", lambda path, mode: writable)
    recipe = replace(tiny_recipe(tmp_path), export_dir=None)
    space = Workspace(recipe, tmp_path / "out", torch.device("cpu"), lambda line: None)
    assert publish.export_home(space) == tmp_path / expected
    named = replace(space, recipe=replace(recipe, export_dir=str(tmp_path / "mine")))
    assert publish.export_home(named) == tmp_path / "mine"


def test_a_device_that_is_not_there_is_refused_before_anything_is_made(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="CUDA"):
        run_recipe(replace(tiny_recipe(tmp_path), device="cuda"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="output folder"):
        run_recipe(tiny_recipe(tmp_path), tmp_path / "file" / "out")
