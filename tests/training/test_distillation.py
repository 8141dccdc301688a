from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from autospec.training import models, tokens
from autospec.training.distillation import (
    Alternating,
    Continuations,
    DistillationLoss,
    Rows,
    write_continuations,
)
from autospec.training.settings import ModelShape
from autospec.training.trainer import Schedule, Trainer

DRAFT = ModelShape(1, 32, 2, 64, 64, True)


def test_the_loss_of_a_model_against_itself_is_its_greedy_part(tiny_model) -> None:
    windows = torch.randint(0, 400, (2, 17), generator=torch.Generator().manual_seed(0))
    assert float(DistillationLoss(tiny_model, 0.0)(tiny_model, windows)) == pytest.approx(0.0, abs=1e-6)
    # Cross-entropy to the own first choice is minus the log of its probability.
    with torch.autocast("cpu", torch.bfloat16):
        logits = tiny_model(input_ids=windows[:, :-1]).logits
    expected = -logits.float().log_softmax(-1).max(-1).values.mean()
    assert float(DistillationLoss(tiny_model, 0.5)(tiny_model, windows)) == pytest.approx(
        0.5 * float(expected), rel=1e-4
    )


def test_the_divergence_is_that_of_the_draft_from_the_target() -> None:
    class Table(torch.nn.Module):
        """Gives the same distribution at every position."""

        def __init__(self, probs: list[float]) -> None:
            super().__init__()
            self.logits = torch.nn.Parameter(torch.tensor(probs).log())

        def forward(self, input_ids: torch.Tensor, use_cache: bool):
            logits = self.logits.expand(*input_ids.shape, 2)
            return type("Output", (), {"logits": logits})

    loss = DistillationLoss(Table([0.75, 0.25]), 1.0)
    # 0.75 ln(0.75 / 0.5) + 0.25 ln(0.25 / 0.5) = 0.130812, and -ln 0.5 = 0.693147 for the first choice.
    value = loss(Table([0.5, 0.5]), torch.zeros(1, 4, dtype=torch.long))
    assert float(value.detach()) == pytest.approx(0.823959, abs=1e-5)


def test_distillation_brings_the_draft_nearer_and_leaves_the_target_alone(tiny_model, packed, tmp_path: Path) -> None:
    with torch.no_grad():
        tiny_model.lm_head.weight.mul_(20.0)  # a target with opinions
    before = [weight.clone() for weight in tiny_model.parameters()]
    loss = DistillationLoss(tiny_model, 0.3)
    draft = models.make_model(DRAFT, 400, 1)
    plan = Schedule(128 * 40, 128 * 20, batch_tokens=128, length=32, warmup_tokens=256)
    probe = torch.from_numpy(tokens.Windows(packed, 9).batch(0, 1024, 32))
    divergence = DistillationLoss(tiny_model, 0.0)
    with torch.no_grad():
        first = float(divergence(draft, probe))
    Trainer(draft, tokens.Windows(packed, 0), plan, tmp_path / "draft.pt").run(loss.__call__)
    with torch.no_grad():
        assert float(divergence(draft, probe)) < 0.8 * first
    assert all(torch.equal(old, new) for old, new in zip(before, tiny_model.parameters(), strict=True))


def test_continuations_go_on_from_the_corpus_greedily_in_even_batches(tiny_model, packed) -> None:
    how = Continuations(num_tokens=100, prefix_length=8, num_new_tokens=5, batch_size=4)
    assert how.num_batches == 2  # 13 * 4 tokens in each
    tiny_model.eval()
    greedy, sampled = write_continuations(tiny_model, packed, how, 0)
    assert greedy.shape == sampled.shape == (4, 13)
    joined = packed.tobytes()
    for row in greedy:
        assert row[:8].tobytes() in joined
        expected = row[:8].astype(np.int64).tolist()
        for _ in range(5):
            expected.append(int(tiny_model(input_ids=torch.tensor([expected])).logits[0, -1].argmax()))
        assert row.tolist() == expected
    again = list(write_continuations(tiny_model, packed, how, 0))
    assert np.array_equal(again[1], sampled)


def test_rows_come_in_another_order_each_pass_and_resume_anywhere() -> None:
    rows = np.arange(20, dtype=np.uint16).reshape(4, 5)
    source = Rows(rows, 0)
    first = source.batch(0, 16, 999)
    assert sorted(first[:, 0].tolist()) == [0, 5, 10, 15]
    assert np.array_equal(source.batch(8, 8, 999), first[2:])
    assert sorted(source.batch(16, 16, 999)[:, 0].tolist()) == [0, 5, 10, 15]


def test_sources_take_turns() -> None:
    stream = np.arange(1000, dtype=np.uint16)
    rows = np.arange(2000, 2020, dtype=np.uint16).reshape(4, 5)
    mixed = Alternating(tokens.Windows(stream, 0), Rows(rows, 0))
    assert np.array_equal(mixed.batch(0, 16, 8), tokens.Windows(stream, 0).batch(0, 16, 8))
    assert np.array_equal(mixed.batch(16, 16, 8), Rows(rows, 0).batch(0, 16, 8))
    assert np.array_equal(mixed.batch(32, 16, 8), tokens.Windows(stream, 0).batch(16, 16, 8))
