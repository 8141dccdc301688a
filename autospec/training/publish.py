"""The last stages of a recipe: every figure of a finished family, its model card, and its place in the package.

Knows which figures are written; how each is measured stands in `evaluation`, what they must reach in `model_card`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from autospec import pocket
from autospec.config import SpecConfig
from autospec.engine.decoder import SpeculativeDecoder
from autospec.errors import TrainingError
from autospec.paths import is_checkout
from autospec.profiling.fingerprint import device_fingerprint
from autospec.records import StepStats
from autospec.training import corpus, evaluation, model_card, models
from autospec.training.prompts import PromptRow
from autospec.training.stages import Workspace

NUM_NEW_TOKENS = 128
LIVE_DRAFT_LENGTH = 4
NUM_SAMPLES = 2
TIMING_CONTEXT = 256
MAX_BYTES = {"target": 32_000_000, "draft": 4_000_000}


def evaluate(space: Workspace) -> bool:
    """Measure target and draft on held-out text and prompts; write `metrics.json`.

    The family measured is the one in the output folder, or the embedded one where no target was trained there.
    """
    home = space.folder if space.path("target").exists() else pocket.target_path().parent
    folders, workload = {"target": home / "target", "draft": home / "draft"}, home / "workload.jsonl"
    if missing := [str(path) for path in (*folders.values(), workload) if not path.exists()]:
        raise TrainingError(
            f"stages `workload`, `decay` and `draft` make what is measured, but {missing} are not there"
        )
    path = space.path("metrics.json")
    hashes = {name: models.weights_hash(folder) for name, folder in folders.items()}
    if path.exists() and json.loads(path.read_text(encoding="utf-8"))["weights"] == hashes:
        return False
    rows = [row for row in _rows(workload) if row.split == "held_out"]
    family = {name: models.load_model(folder, space.device) for name, folder in folders.items()}
    space.on_progress(f"{len(rows)} held-out prompts, {NUM_NEW_TOKENS} new tokens each")
    metrics = {
        "weights": hashes,
        "device": device_fingerprint(space.device, "float32"),
        "training": {name: models.training_facts(folder) for name, folder in folders.items()},
        "size": {name: _size(folders[name], model) for name, model in family.items()},
        "bits_per_byte": _bits_per_byte(space, family["target"], folders["target"]),
        **_continuation_figures(family, rows, folders["target"]),
        "live_position_acceptance": _live_acceptance(folders, space.device, rows),
    }
    path.write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    for line in model_card.verdicts(metrics):
        space.on_progress(line)
    return True


def _rows(path: Path) -> list[PromptRow]:
    return [PromptRow(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def _size(folder: Path, model: PreTrainedModel) -> dict[str, int]:
    num_bytes = (folder / "model.safetensors").stat().st_size
    return {"num_parameters": sum(weight.numel() for weight in model.parameters()), "num_bytes": num_bytes}


def _bits_per_byte(space: Workspace, target: PreTrainedModel, tokenizer_folder: Path) -> dict[str, float]:
    files = corpus.unseen_files(corpus.read_corpus(space.need("corpus.jsonl.gz", "corpus")))
    tokenizer, texts = models.load_tokenizer(tokenizer_folder), [text for _, text in files]
    num_bytes = sum(len(text.encode()) for text in texts)
    space.on_progress(f"bits per byte over {len(files)} held-out files, {num_bytes / 1e6:.1f} MB")
    window = int(target.config.max_position_embeddings)
    value = evaluation.bits_per_byte(target, tokenizer, texts, window)
    return {"value": value, "window": window, "num_files": len(files), "num_bytes": num_bytes}


def _continuation_figures(
    family: Mapping[str, PreTrainedModel], rows: Sequence[PromptRow], tokenizer_folder: Path
) -> dict[str, Any]:
    """Return what is read off the target's own greedy continuations: agreement, loops, samples, forward times."""
    tokenizer = models.load_tokenizer(tokenizer_folder)
    prompts = [(row.category, tokenizer.encode(row.prompt).ids) for row in rows]
    written = evaluation.continue_greedily(family["target"], prompts, NUM_NEW_TOKENS)
    context = torch.tensor([max((ids for _, ids in prompts), key=len)[:TIMING_CONTEXT]])
    target_seconds, draft_seconds = evaluation.forward_seconds(
        [family["target"], family["draft"]], context.to(family["target"].device)
    )
    by_category = {category: [one for one in written if one.category == category] for category, _ in prompts}
    samples = [
        {"id": row.id, "prompt": row.prompt[-400:], "continuation": tokenizer.decode(list(one.new_ids))}
        for category in by_category
        for row, one in [pair for pair in zip(rows, written, strict=True) if pair[0].category == category][
            :NUM_SAMPLES
        ]
    ]
    return {
        "position_acceptance_0": evaluation.first_position_agreement(family["draft"], written),
        "loop_share": {
            category: evaluation.loop_share([one.new_ids for one in members])
            for category, members in by_category.items()
        },
        "forward_seconds": {
            "target": target_seconds,
            "draft": draft_seconds,
            "ratio": draft_seconds / target_seconds,
            "context": context.shape[1],
        },
        "samples": samples,
    }


def _live_acceptance(
    folders: Mapping[str, Path], device: torch.device, rows: Sequence[PromptRow]
) -> dict[str, list[float]]:
    """Return `position_acceptance` of live greedy decoding with the engine, over all and by category."""
    decoder = SpeculativeDecoder.from_pretrained(
        str(folders["target"]), {"draft": str(folders["draft"])}, device=str(device), dtype="float32"
    )
    config = SpecConfig(drafter="draft", draft_length=LIVE_DRAFT_LENGTH)
    totals: dict[str, StepStats] = {"overall": StepStats()}
    for row in rows:
        stats = decoder.generate(row.prompt, config=config, max_new_tokens=NUM_NEW_TOKENS)[0].stats
        totals["overall"].merge(stats)
        totals.setdefault(row.category, StepStats()).merge(stats)
    return {category: list(stats.position_acceptance) for category, stats in totals.items()}


def export_home(space: Workspace) -> Path:
    """Return the folder that the finished family is put into; see `PocketRecipe.export_dir`."""
    if space.recipe.export_dir is not None:
        return Path(space.recipe.export_dir).expanduser()
    embedded = pocket.target_path().parent
    return embedded if is_checkout() and os.access(embedded, os.W_OK | os.X_OK) else space.path("export")


def export(space: Workspace) -> bool:
    """Put weights, workload, manifest, figures and model card where the package finds them.

    Raises:
        TrainingError: Weights are larger than the repository may hold.
    """
    metrics_path, home = space.need("metrics.json", "evaluate"), export_home(space)
    metrics = json.loads(metrics_path.read_text(encoding="utf-8"))
    for name, limit in MAX_BYTES.items():
        if (num_bytes := metrics["size"][name]["num_bytes"]) > limit:
            raise TrainingError(f"a {name} must be at most {limit} bytes, but it has {num_bytes}")
    folders = {name: space.need(name, stage) for name, stage in (("target", "decay"), ("draft", "draft"))}
    if metrics["weights"] != {name: models.weights_hash(folder) for name, folder in folders.items()}:
        raise TrainingError(f"figures must be of the weights exported, but {metrics_path} is of others")
    home.mkdir(parents=True, exist_ok=True)
    for name, folder in folders.items():
        partial = home / f".{name}.new"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(folder, partial)
        models.replace_folder(partial, home / name)
    for name, stage in (("workload.jsonl", "workload"), ("manifest.json.xz", "corpus"), ("metrics.json", "evaluate")):
        shutil.copyfile(space.need(name, stage), home / name)
    packages = corpus.read_packages(space.path("manifest.json.xz"))
    (home / "MODEL_CARD.md").write_text(model_card.render(metrics, packages, space.recipe), encoding="utf-8")
    space.on_progress(f"the family lies in {home}")
    return True
