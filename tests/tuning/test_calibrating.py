"""When a study's chances of acceptance take the place of the drafter's own probabilities."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from autospec.config import SamplingParams
from autospec.replay import AcceptanceRows
from autospec.tuning import calibrating
from autospec.tuning.calibrating import Calibrated, calibrate


def planted(lean: float, num_prompts: int = 12, seed: int = 0) -> AcceptanceRows:
    """A drafter whose tokens are accepted with its own probability to the power of `lean`."""
    rng = np.random.default_rng(seed)
    num = 100 * num_prompts
    log_prob = -rng.exponential(0.7, num)
    return AcceptanceRows(
        log_prob=log_prob,
        entropy=rng.uniform(0.0, 3.0, num),
        gap=rng.uniform(0.0, 5.0, num),
        position=rng.integers(1, 6, num),
        match_length=np.full(num, np.nan),
        is_reached=np.ones(num, dtype=np.bool_),
        is_accepted=rng.uniform(size=num) < np.exp(lean * log_prob),
        prompts=np.repeat(np.arange(num_prompts), 100),
    )


def calibrated(monkeypatch: pytest.MonkeyPatch, rows: dict[str, AcceptanceRows], **changes: Any) -> list[Calibrated]:
    """What is learnt of a trace that shows these rows."""
    monkeypatch.setattr(calibrating, "acceptance_rows", lambda _, key: rows[key])
    trace: Any = SimpleNamespace(forests=rows, sampling=changes.get("sampling", SamplingParams()))
    return list(calibrate(trace, changes.get("names", {"draft"})))


def test_a_drafter_that_is_too_sure_of_itself_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = calibrated(monkeypatch, {"draft": planted(4.0)})
    assert found.model is not None
    assert found.model.drafter is not None
    assert found.acceptance == found.model.calibration
    written = found.to_json()
    assert (written["drafter"], written["is_used"], written["note"]) == ("draft", True, "")
    assert written["calibrated"]["log_loss"] < written["drafter_probs"]["log_loss"]
    assert written["calibrated"]["log_loss"] < written["frequency"]["log_loss"]
    assert written["num_rows"] == 1200


def test_a_drafter_that_knows_itself_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = calibrated(monkeypatch, {"draft": planted(1.0)})
    assert found.acceptance is None
    assert found.note.startswith("they tell as well what is accepted, log loss 0.")
    assert found.to_json()["is_used"] is False


def test_too_little_to_learn_from_keeps_the_drafters_own_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    (few,) = calibrated(monkeypatch, {"draft": planted(4.0, num_prompts=2)})
    assert few.acceptance is None
    assert few.note.startswith("a classifier needs four prompts")
    rows = planted(4.0)
    (one_class,) = calibrated(monkeypatch, {"draft": replace(rows, is_accepted=rows.is_reached)})
    assert one_class.acceptance is None
    assert "1200 of 1200 tokens accepted" in one_class.note
    assert one_class.to_json() == {"drafter": "draft", "is_used": False, "note": one_class.note}


def test_under_sampling_nothing_is_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = calibrated(monkeypatch, {"draft": planted(4.0)}, sampling=SamplingParams(temperature=1.0))
    assert found.acceptance is None
    assert found.note == "under sampling, what is accepted depends on the acceptance rule"


def test_all_exits_are_learnt_together_and_what_is_not_recorded_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"early_exit@2": planted(4.0, seed=1), "early_exit@4": planted(3.0, seed=2), "draft": planted(4.0)}
    found = calibrated(monkeypatch, rows, names={"early_exit", "ngram"})
    assert [one.drafter for one in found] == ["early_exit"]
    assert found[0].model is not None
    assert (found[0].model.num_rows, found[0].model.num_prompts) == (2400, 12)
