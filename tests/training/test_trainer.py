from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from autospec.errors import TrainingError
from autospec.training import models, tokens, trainer
from autospec.training.settings import ModelShape
from autospec.training.trainer import Schedule, Trainer

SHAPE = ModelShape(2, 32, 2, 64, 64, False)


def schedule(total: int, decay: int = 0) -> Schedule:
    return Schedule(total, decay, batch_tokens=128, length=32, warmup_tokens=256, log_every_steps=2)


def make(packed: np.ndarray, path: Path, plan: Schedule) -> Trainer:
    return Trainer(models.make_model(SHAPE, 400, 0), tokens.Windows(packed, 0), plan, path)


def weights(run: Trainer) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in run.model.parameters()])


def test_the_rate_warms_up_stays_and_falls_to_nothing() -> None:
    plan = Schedule(total_tokens=1000, decay_tokens=400, batch_tokens=100, warmup_tokens=400)
    assert plan.trunk_tokens == 600
    assert [plan.rate(seen) for seen in (0, 100, 200, 300, 500)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    # The decay falls linearly from 600 on: 400, 300, 200 and 100 of 400 tokens are left.
    assert [plan.rate(seen) for seen in (600, 700, 800, 900)] == [1.0, 0.75, 0.5, 0.25]
    assert plan.rate(1000) == 0.02


def test_a_trunk_never_decays() -> None:
    plan = Schedule(total_tokens=1000, decay_tokens=0, batch_tokens=100, warmup_tokens=100)
    assert plan.rate(1000) == 1.0


def test_training_lowers_the_loss(packed: np.ndarray, tmp_path: Path) -> None:
    run = make(packed, tmp_path / "run.pt", schedule(128 * 30))
    lines: list[str] = []
    assert run.run(on_progress=lines.append)
    losses = [loss for _, loss in run.curve]
    assert len(losses) == 30
    assert sum(losses[-3:]) < sum(losses[:3]) - 3.0
    assert len(lines) == 15
    assert not run.model.training


def test_an_interrupted_run_ends_as_an_uninterrupted_one(packed: np.ndarray, tmp_path: Path) -> None:
    whole = make(packed, tmp_path / "whole.pt", schedule(128 * 8, 128 * 4))
    assert whole.run()
    stop = threading.Event()

    def stop_in_the_fifth_step(model, windows):
        if len(first.curve) == 4:
            stop.set()
        return trainer.next_token_loss(model, windows)

    first = make(packed, tmp_path / "parts.pt", schedule(128 * 8, 128 * 4))
    assert not first.run(stop_in_the_fifth_step, stop)
    assert first.tokens_seen == 128 * 5
    second = make(packed, tmp_path / "parts.pt", schedule(128 * 8, 128 * 4))
    assert second.resume()
    assert second.run()
    assert second.curve == whole.curve
    assert torch.equal(weights(second), weights(whole))


def test_a_branch_leaves_the_trunk_alone_and_remembers_where_it_began(packed: np.ndarray, tmp_path: Path) -> None:
    trunk = make(packed, tmp_path / "trunk.pt", schedule(128 * 4))
    trunk.run()
    before = (tmp_path / "trunk.pt").read_bytes()
    decay = make(packed, tmp_path / "decay.pt", schedule(128 * 6, 128 * 2))
    decay.branch(trainer.load_checkpoint(tmp_path / "trunk.pt"))
    assert torch.equal(weights(decay), weights(trunk))
    assert decay.run()
    assert (tmp_path / "trunk.pt").read_bytes() == before
    again = make(packed, tmp_path / "decay.pt", schedule(128 * 6, 128 * 2))
    assert again.resume()
    assert (again.branched_at, again.tokens_seen) == (128 * 4, 128 * 6)


def test_a_checkpoint_without_a_branch_point_loads(packed: np.ndarray, tmp_path: Path) -> None:
    run = make(packed, tmp_path / "run.pt", schedule(256))
    run.run()
    state = trainer.load_checkpoint(tmp_path / "run.pt")
    del state["branched_at"]
    torch.save(state, tmp_path / "run.pt")
    again = make(packed, tmp_path / "run.pt", schedule(256))
    assert again.resume()
    assert again.branched_at == 0


def test_there_is_nothing_to_resume_at_first(packed: np.ndarray, tmp_path: Path) -> None:
    assert not make(packed, tmp_path / "none.pt", schedule(256)).resume()


def test_a_loss_that_is_not_finite_ends_the_run_and_saves_nothing(packed: np.ndarray, tmp_path: Path) -> None:
    run = make(packed, tmp_path / "run.pt", schedule(256))
    with pytest.raises(TrainingError, match="finite"):
        run.run(lambda model, windows: trainer.next_token_loss(model, windows) * float("nan"))
    assert not (tmp_path / "run.pt").exists()


def test_bare_weights_start_a_run_with_fresh_optimizers(packed: np.ndarray, tmp_path: Path) -> None:
    run, other = make(packed, tmp_path / "run.pt", schedule(256)), make(packed, tmp_path / "other.pt", schedule(256))
    other.run()
    run.start_from(other.model.state_dict(), 256, [[256, 2.5]])
    assert (run.tokens_seen, run.curve) == (256, [(256, 2.5)])
    for mine, theirs in zip(run.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert all(not optimizer.state for optimizer in run.optimizers)


def test_weights_of_another_shape_are_refused(packed: np.ndarray, tmp_path: Path) -> None:
    run = make(packed, tmp_path / "run.pt", schedule(256))
    weights = run.model.state_dict()
    weights["lm_head.weight"] = weights["lm_head.weight"][:, :-1]
    with pytest.raises(TrainingError, match=r"must have the shape of the recipe, but: .*lm_head\.weight"):
        run.start_from(weights, 0, [])


def test_matrices_of_the_layers_go_to_muon_and_nothing_is_forgotten(tiny_model) -> None:
    muon, adamw = trainer.make_optimizers(tiny_model, schedule(256))
    count = [sum(w.numel() for group in one.param_groups for w in group["params"]) for one in (muon, adamw)]
    assert count[0] == 2 * (4 * 32 * 32 + 3 * 32 * 64)  # two layers of attention and gated feed-forward
    assert sum(count) == sum(weight.numel() for weight in tiny_model.parameters())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_to_stop_and_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with trainer.stop_on_signals() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        assert stop.wait(5)
    assert signal.getsignal(number) is before
