"""The stages of a recipe, from text to weights: each reads and writes files of one folder and skips what is done.

Knows the order of things inside a stage; which stages run, and when to stop, is `recipe`'s business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from autospec.errors import TrainingError
from autospec.training import corpus, distillation, edits, models, prompts, tokens, trainer
from autospec.training.settings import PocketRecipe

BATCH_TOKENS = 8192
# Small batches, because a one-layer draft learns in few tokens.
DRAFT_BATCH_TOKENS = 4096
# The tokenizer learns from every third file: the same merges to within a few, in a third of the time.
TOKENIZER_FILE_STEP = 3


@dataclass(frozen=True, slots=True)
class Workspace:
    """What every stage is given: the recipe, the folder of its results, where to compute, whom to tell."""

    recipe: PocketRecipe
    folder: Path
    device: torch.device
    on_progress: Callable[[str], None]

    def path(self, name: str) -> Path:
        """Return the place of a result."""
        return self.folder / name

    def need(self, name: str, stage: str) -> Path:
        """Return the place of an earlier stage's result.

        Raises:
            TrainingError: It is not there.
        """
        path = self.path(name)
        if not path.exists():
            raise TrainingError(f"the result of stage `{stage}` is needed, but there is no {path}")
        return path

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer of this family."""
        return models.load_tokenizer(self.need("tokenizer", "tokenizer"))

    def tokens(self) -> NDArray[np.uint16]:
        """Return the packed corpus, mapped from disk."""
        packed: NDArray[np.uint16] = np.load(self.need("tokens.npy", "tokenizer"), mmap_mode="r")
        return packed

    def compiled(self, loss: trainer.Loss) -> trainer.Loss:
        """Return the loss compiled, where the recipe says so; once for each of the few shapes that come."""
        return torch.compile(loss, dynamic=False) if self.recipe.compile else loss

    def train(self, run: trainer.Trainer, loss: trainer.Loss) -> None:
        """Train to the end of the schedule.

        Raises:
            KeyboardInterrupt: It was asked to stop; the checkpoint is saved.
        """
        with trainer.stop_on_signals() as stop:
            if not run.run(self.compiled(loss), stop, self.on_progress):
                raise KeyboardInterrupt


def make_corpus(space: Workspace) -> bool:
    """Collect the text and write it as one file, with its manifest."""
    path, settings = space.path("corpus.jsonl.gz"), space.recipe.corpus
    if path.exists():
        return False
    files = corpus.collect(
        list(settings.packages), settings.held_out_share, settings.max_package_bytes, space.recipe.seed
    )
    corpus.write_manifest([file for file, _ in files], space.path("manifest.json.xz"))
    corpus.write_corpus(files, path)
    num_bytes = sum(len(text) for _, text in files)
    space.on_progress(f"{len(files)} files, {num_bytes / 1e6:.1f} MB")
    return True


def make_tokenizer(space: Workspace) -> bool:
    """Train the tokenizer on the files trained on, and pack those files and their edits into one array of tokens."""
    path, recipe = space.path("tokens.npy"), space.recipe
    if path.exists():
        return False
    files = corpus.read_corpus(space.need("corpus.jsonl.gz", "corpus"))
    texts = [text for file, text in files if not file.held_out]
    tokenizer = (
        models.load_tokenizer(Path(recipe.target.resume_from))
        if recipe.target.resume_from
        else tokens.train_tokenizer(texts[::TOKENIZER_FILE_STEP], recipe.corpus.vocab_size)
    )
    tokens.save_tokenizer(tokenizer, space.path("tokenizer"), recipe.target.shape.context_length)
    packed = tokens.pack(
        tokenizer, texts + edits.edit_documents(texts, recipe.corpus.edit_share, recipe.seed), recipe.seed
    )
    partial = space.path("tokens.partial.npy")
    np.save(partial, packed)
    partial.replace(path)
    space.on_progress(
        f"{tokenizer.get_vocab_size()} tokens in the vocabulary, {len(packed) / 1e6:.1f} M in the corpus"
    )
    return True


def make_workload(space: Workspace) -> bool:
    """Cut the workload out of held-out files of which training saw nothing."""
    path, recipe = space.path("workload.jsonl"), space.recipe
    if path.exists():
        return False
    files = corpus.unseen_files(corpus.read_corpus(space.need("corpus.jsonl.gz", "corpus")))
    tokenizer = space.tokenizer()
    rows = prompts.build_workload(
        files, lambda text: len(tokenizer.encode(text).ids), recipe.prompts_per_split, recipe.seed
    )
    prompts.write_workload(rows, path)
    space.on_progress(f"{len(rows)} prompts from {len({row.source for row in rows})} files")
    return True


def _target_trainer(space: Workspace, schedule: trainer.Schedule, checkpoint: str) -> trainer.Trainer:
    recipe = space.recipe
    model = models.make_model(recipe.target.shape, space.tokenizer().get_vocab_size(), recipe.seed)
    windows = tokens.Windows(space.tokens(), recipe.seed)
    return trainer.Trainer(models.to_device(model, space.device), windows, schedule, space.path(checkpoint))


def train_trunk(space: Workspace) -> bool:
    """Train the target at a constant rate, from its checkpoint where there is one."""
    settings = space.recipe.target
    run = _target_trainer(space, _schedule(settings.trunk_tokens, 0, settings.trunk_window), "target-trunk.pt")
    if run.resume():
        if run.tokens_seen >= settings.trunk_tokens:
            return False
    elif settings.resume_from:
        folder = Path(settings.resume_from)
        facts = models.training_facts(folder)
        seen = facts["trunk_tokens"] + facts["decay_tokens"]
        run.start_from(models.load_model(folder, space.device).state_dict(), seen, facts["curve"])
    space.train(run, trainer.next_token_loss)
    return True


def train_decay(space: Workspace) -> bool:
    """Branch off the newest trunk checkpoint, decay to zero and export the target; an unfinished decay goes on."""
    settings = space.recipe.target
    trunk = trainer.load_checkpoint(space.need("target-trunk.pt", "trunk"))
    path, length = space.path("target-decay.pt"), settings.decay_tokens
    begun = trainer.load_checkpoint(path) if path.exists() else None
    if begun and begun["tokens_seen"] >= begun["branched_at"] + length:
        if begun["branched_at"] == trunk["tokens_seen"] and space.path("target").exists():
            return False
        begun = None
    start = begun["branched_at"] if begun else trunk["tokens_seen"]
    run = _target_trainer(space, _schedule(start + length, length, settings.decay_window), path.name)
    if begun:
        run.resume()
    else:
        run.branch(trunk)
    space.train(run, trainer.next_token_loss)
    facts = {"trunk_tokens": run.branched_at, "decay_tokens": run.tokens_seen - run.branched_at, "curve": run.curve}
    models.export_model(run.model, space.need("tokenizer", "tokenizer"), space.path("target"), facts)
    return True


def _schedule(total_tokens: int, decay_tokens: int, window: int) -> trainer.Schedule:
    return trainer.Schedule(total_tokens, decay_tokens, batch_tokens=BATCH_TOKENS, length=window)


def distil_draft(space: Workspace) -> bool:
    """Let the target write, distil the draft from it on corpus and on that text, and export the draft."""
    recipe, settings = space.recipe, space.recipe.draft
    folder = space.need("target", "decay")
    name = models.weights_hash(folder)
    model = models.make_model(settings.shape, space.tokenizer().get_vocab_size(), recipe.seed + 1)
    target = models.load_model(folder, space.device)
    schedule = trainer.Schedule(
        total_tokens=settings.tokens,
        decay_tokens=settings.tokens // 2,
        batch_tokens=DRAFT_BATCH_TOKENS,
        length=settings.window,
        warmup_tokens=settings.tokens // 20,
    )
    windows = distillation.Alternating(
        tokens.Windows(space.tokens(), recipe.seed + 1),
        distillation.Rows(_continuations(space, name), recipe.seed),
    )
    run = trainer.Trainer(models.to_device(model, space.device), windows, schedule, space.path(f"draft-{name}.pt"))
    is_finished = run.resume() and run.tokens_seen >= settings.tokens
    exported = space.path("draft")
    if is_finished and exported.exists() and models.training_facts(exported)["distilled_from"] == name:
        return False
    space.train(run, distillation.DistillationLoss(target, settings.greedy_weight).__call__)
    facts = {
        "distilled_from": name,
        "tokens": run.tokens_seen,
        "greedy_weight": settings.greedy_weight,
        "curve": run.curve,
    }
    models.export_model(run.model, space.need("tokenizer", "tokenizer"), space.path("draft"), facts)
    return True


def _continuations(space: Workspace, name: str) -> NDArray[np.uint16]:
    path, recipe = space.path(f"continuations-{name}.npy"), space.recipe
    if not path.exists():
        target = models.load_model(space.need("target", "decay"), space.device)
        how = distillation.Continuations(recipe.draft.generated_tokens)
        rows = []
        for batch in distillation.write_continuations(target, space.tokens(), how, recipe.seed):
            rows.append(batch)
            space.on_progress(f"the target wrote batch {len(rows)} of {how.num_batches}")
        partial = path.with_name(f"{path.stem}.partial.npy")
        np.save(partial, np.concatenate(rows))
        partial.replace(path)
    written: NDArray[np.uint16] = np.load(path)
    return written
