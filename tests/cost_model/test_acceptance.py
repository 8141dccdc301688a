"""The classifier of draft tokens: against scikit-learn's own prediction, planted truths, and live drafts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV

from autospec.config import SpecConfig
from autospec.cost_model import acceptance as room
from autospec.cost_model import fit_acceptance
from autospec.cost_model.acceptance import ClassifierScore
from autospec.engine.calibration import AcceptanceCalibration
from autospec.engine.costs import CostCurve
from autospec.engine.decoder import SpeculativeDecoder
from autospec.errors import MeasurementError
from autospec.replay import AcceptanceRows, RecordedPrompt, Simulator, Trace, acceptance_rows


def planted(num_prompts: int = 40, seed: int = 0) -> AcceptanceRows:
    """A drafter that is much too sure of itself: the log odds are -1 + log-probability - 0.3 for each position."""
    rng = np.random.default_rng(seed)
    num = 100 * num_prompts
    log_prob, position = -rng.exponential(0.7, num), rng.integers(1, 6, num)
    chances = 1.0 / (1.0 + np.exp(-(1.5 + 2.0 * log_prob - 0.3 * position)))
    return AcceptanceRows(
        log_prob=log_prob,
        entropy=rng.uniform(0.0, 3.0, num),
        gap=rng.uniform(0.0, 5.0, num),
        position=position,
        match_length=np.full(num, np.nan),
        is_reached=np.ones(num, dtype=np.bool_),
        is_accepted=rng.uniform(size=num) < chances,
        prompts=np.repeat(np.arange(num_prompts), 100),
    )


def test_a_planted_truth_is_found_again() -> None:
    made = fit_acceptance(planted())
    found = made.calibration
    assert found.log_prob == pytest.approx(2.0, abs=0.25)
    assert found.position == pytest.approx(-0.3, abs=0.06)
    assert found.intercept == pytest.approx(1.5, abs=0.3)
    assert abs(found.entropy) < 0.1
    assert found.match_length == 0.0
    assert made.drafter is not None
    assert made.calibrated.calibration_error < 0.03 < made.drafter.calibration_error
    assert made.calibrated.log_loss < min(made.drafter.log_loss, made.frequency.log_loss)
    assert (made.num_rows, made.num_prompts) == (4000, 40)


def test_the_six_numbers_are_what_the_calibrated_classifier_says(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []

    class Kept(CalibratedClassifierCV):
        def fit(self, values: Any, accepted: Any, **rest: Any) -> Any:
            kept.append((super().fit(values, accepted, **rest), values))
            return self

    monkeypatch.setattr(room, "CalibratedClassifierCV", Kept)
    rows = planted(8)
    found = fit_acceptance(rows).calibration
    model, values = kept[-1]  # that of all prompts comes last
    assert len(values) == rows.num_rows
    own = found.probs(rows.log_prob, rows.entropy, rows.gap, rows.position, rows.match_length)
    np.testing.assert_allclose(own, model.predict_proba(values)[:, 1], rtol=1e-9)


def test_only_drafts_that_are_right_so_far_teach() -> None:
    rows = planted(8)
    noise = rows.position > 3
    spoilt = replace(rows, is_reached=~noise, is_accepted=rows.is_accepted & ~noise)
    assert fit_acceptance(spoilt).num_rows == int((~noise).sum())


def test_scores_by_hand() -> None:
    score = ClassifierScore.of(np.array([0.25, 0.25, 0.85, 0.85]), np.array([False, True, True, True]))
    # a bin of chance 0.25 where half were accepted, one of 0.85 where all were
    assert score.calibration_error == pytest.approx((0.25 + 0.15) / 2)
    assert score.brier == pytest.approx((0.0625 + 0.5625 + 2 * 0.0225) / 4)
    assert score.log_loss == pytest.approx(-np.log([0.75, 0.25, 0.85, 0.85]).mean())
    assert score.auc == pytest.approx((2 + 0.5) / 3)
    assert ClassifierScore.of(np.array([0.5]), np.array([True])).auc is None


def test_too_little_to_learn_from_is_refused() -> None:
    with pytest.raises(MeasurementError, match="four prompts"):
        fit_acceptance(planted(3))
    with pytest.raises(MeasurementError, match="800 of 800 tokens accepted"):
        fit_acceptance(replace(planted(8), is_accepted=np.ones(800, dtype=np.bool_)))


def test_a_drafter_that_looks_text_up_is_judged_by_matches(trace: Trace) -> None:
    made = fit_acceptance(acceptance_rows(trace, "ngram"))
    assert made.drafter is None
    assert (made.calibration.log_prob, made.calibration.entropy, made.calibration.gap) == (0.0, 0.0, 0.0)
    assert made.calibration.match_length != 0.0
    assert made.to_json()["calibration"] == made.calibration.to_json()


@pytest.mark.parametrize("lean", [0.0, 0.8])
def test_a_calibrated_rule_is_replayed_as_it_runs(
    lean: float, trace: Trace, pair: SpeculativeDecoder, prompts: list[RecordedPrompt]
) -> None:
    learnt = fit_acceptance(acceptance_rows(trace, "draft")).calibration
    costs = CostCurve(1.0, 0.02, 0.15, acceptance=replace(learnt, gap=learnt.gap + lean))
    config = SpecConfig("draft", 8, stop_rule="cost_aware")
    replay = Simulator(trace, costs={"draft": costs}).replay(config)
    live = SpeculativeDecoder(pair.target, pair.drafters, costs={"draft": costs})
    found, plain = [], []
    for row, prompt in enumerate(prompts):
        settings: dict[str, Any] = {"config": config, "max_new_tokens": 24, "ignore_eos": True}
        found.append(live.generate([prompt.prompt_ids], **settings)[0].stats)
        plain.append(pair.generate([prompt.prompt_ids], **settings)[0].stats)
        own = replay.stats(row)
        assert (own.num_steps, own.num_drafted) == (found[-1].num_steps, found[-1].num_drafted), row
    assert [one.num_drafted for one in found] != [one.num_drafted for one in plain]


def test_a_calibration_is_numbers() -> None:
    made = AcceptanceCalibration(0.5, 1.0, -0.25, 0.125, -0.0625)
    assert AcceptanceCalibration.from_json(made.to_json()) == made
