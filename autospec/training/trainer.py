"""One training loop for every model of the family: warm-up, constant rate, decay; resumable at any checkpoint.

The constant part ("trunk") can be stopped and resumed at will; a decay branches off the newest trunk checkpoint,
so that usable weights can be made at any time and the trunk still goes on (2405.18392 describes the schedule).
"""

from __future__ import annotations

import logging
import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from autospec.clock import Clock
from autospec.errors import TrainingError

logger = logging.getLogger(__name__)
Loss = Callable[[PreTrainedModel, Tensor], Tensor]  # (model, windows [B, L + 1]) -> scalar


class BatchSource(Protocol):
    """Where windows of tokens come from: a function of the position alone, so that a run can resume anywhere."""

    def batch(self, tokens_seen: int, batch_tokens: int, length: int) -> NDArray[np.int64]:
        """Return `batch_tokens // length` windows of `length + 1` tokens."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to train. Tokens are target tokens seen."""

    total_tokens: int
    decay_tokens: int
    batch_tokens: int = 8192
    length: int = 512
    warmup_tokens: int = 400_000
    muon_lr: float = 0.02
    adamw_lr: float = 2e-3
    weight_decay: float = 0.01
    save_every_tokens: int = 500_000
    log_every_steps: int = 20

    @property
    def trunk_tokens(self) -> int:
        """Where the decay begins."""
        return self.total_tokens - self.decay_tokens

    def rate(self, tokens_seen: int) -> float:
        """Return the multiplier of both learning rates after `tokens_seen` tokens, in (0, 1]."""
        warm = min(1.0, (tokens_seen + self.batch_tokens) / max(1, self.warmup_tokens))
        if tokens_seen < self.trunk_tokens or self.decay_tokens == 0:
            return warm
        left = (self.total_tokens - tokens_seen) / self.decay_tokens
        return warm * max(0.02, left)


def next_token_loss(model: PreTrainedModel, windows: Tensor) -> Tensor:
    """Mean cross-entropy of every token of the windows given those before it, in nats.

    Why bfloat16 autocast and fused attention: on two CPU cores with bfloat16 instructions, matrix products run at 350
    GFLOP/s against 150 in float32, and a 12-layer target of width 192 trains at 3,400 to 3,800 tokens per second
    (compiled, windows of 256) against 1,550 in float32 (windows of 512). Fused attention took 0.8 of the time of
    eager attention in windows of 256 and 0.55 in windows of 1,024 (one core, compiled, bfloat16); compiling saved a
    tenth of a step with fused attention and half of one with eager attention.
    """
    with torch.autocast(windows.device.type, torch.bfloat16):
        logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())


def make_optimizers(model: PreTrainedModel, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, head and norms."""
    matrices = [w for name, w in model.named_parameters() if w.ndim == 2 and "layers" in name]
    matrix_ids = {id(w) for w in matrices}
    others = [w for w in model.parameters() if id(w) not in matrix_ids]
    decay = schedule.weight_decay
    muon = torch.optim.Muon(matrices, lr=schedule.muon_lr, weight_decay=decay, adjust_lr_fn="original")
    adamw = torch.optim.AdamW(others, lr=schedule.adamw_lr, betas=(0.9, 0.95), weight_decay=decay, fused=True)
    return [muon, adamw]


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Turn SIGINT and SIGTERM into an event, so that training ends between two steps with a checkpoint saved."""
    stop = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of `Trainer`: model, optimizers, tokens_seen, curve, and branched_at for a decay."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


class Trainer:
    """Trains one model on windows of tokens and keeps its state in one checkpoint file."""

    def __init__(self, model: PreTrainedModel, windows: BatchSource, schedule: Schedule, checkpoint: Path) -> None:
        self.model, self.windows, self.schedule = model, windows, schedule
        self.checkpoint = checkpoint
        self.tokens_seen = 0
        self.branched_at = 0
        self.curve: list[tuple[int, float]] = []
        self.optimizers = make_optimizers(model, schedule)
        self._base_rates = [group["lr"] for optimizer in self.optimizers for group in optimizer.param_groups]

    def resume(self) -> bool:
        """Load the checkpoint if there is one; tell whether there was."""
        if not self.checkpoint.exists():
            return False
        state = load_checkpoint(self.checkpoint)
        self._restore(state)
        self.branched_at = state.get("branched_at", 0)
        return True

    def branch(self, trunk: dict[str, Any]) -> None:
        """Start from the checkpoint of another run."""
        self._restore(trunk)
        self.branched_at = self.tokens_seen

    def start_from(self, weights: Mapping[str, Tensor], tokens_seen: int, curve: Sequence[Sequence[float]]) -> None:
        """Start from bare weights, trained on `tokens_seen` tokens; the optimizers begin afresh.

        Raises:
            TrainingError: They are of another shape.
        """
        try:
            self.model.load_state_dict(weights)
        except RuntimeError as error:
            first = str(error).strip().splitlines()[-1].strip()
            raise TrainingError(f"weights to go on from must have the shape of the recipe, but: {first}") from error
        self.tokens_seen, self.curve = tokens_seen, [(int(seen), loss) for seen, loss in curve]

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.tokens_seen, self.curve = state["tokens_seen"], [(seen, loss) for seen, loss in state["curve"]]

    def save(self) -> None:
        """Write model, optimizers and position; an interrupted write leaves the older checkpoint."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "tokens_seen": self.tokens_seen,
            "curve": self.curve,
            "branched_at": self.branched_at,
        }
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def run(
        self,
        loss_of: Loss = next_token_loss,
        stop: threading.Event | None = None,
        on_progress: Callable[[str], None] = logger.info,
    ) -> bool:
        """Train until the schedule ends or `stop` is set; save, and tell whether the end was reached.

        Raises:
            TrainingError: The loss is not finite.
        """
        schedule, saved_at = self.schedule, self.tokens_seen
        clock = Clock(self.model.device)
        started, first = clock.now(), self.tokens_seen
        self.model.train()
        while self.tokens_seen < schedule.total_tokens and not (stop and stop.is_set()):
            loss = self._step(loss_of)
            if not math.isfinite(loss):
                raise TrainingError(f"the loss must stay finite, but it is {loss} after {self.tokens_seen} tokens")
            if len(self.curve) % schedule.log_every_steps == 0:
                on_progress(self._state((self.tokens_seen - first) / (clock.now() - started)))
            if self.tokens_seen - saved_at >= schedule.save_every_tokens:
                self.save()
                saved_at = self.tokens_seen
        self.save()
        self.model.eval()
        return self.tokens_seen >= schedule.total_tokens

    def _state(self, tokens_per_second: float) -> str:
        recent = [loss for _, loss in self.curve[-self.schedule.log_every_steps :]]
        mean = sum(recent) / len(recent)
        return f"{self.tokens_seen:9d} tokens  loss {mean:.4f}  {tokens_per_second:5.0f} tokens/s"

    def _step(self, loss_of: Loss) -> float:
        schedule = self.schedule
        batch = self.windows.batch(self.tokens_seen, schedule.batch_tokens, schedule.length)
        rate = schedule.rate(self.tokens_seen)
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        for group, base in zip(groups, self._base_rates, strict=True):
            group["lr"] = base * rate
        loss = loss_of(self.model, torch.from_numpy(batch).to(self.model.device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.tokens_seen += schedule.batch_tokens
        value = float(loss.detach())
        self.curve.append((self.tokens_seen, round(value, 4)))
        return value
