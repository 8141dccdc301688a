"""How likely the target takes a draft token, learnt from a trace: calibrated, checked on prompts it never saw.

A logistic regression, its scores calibrated by Platt's sigmoid on prompts that they were not fitted on
(`CalibratedClassifierCV`). A sigmoid of a linear score is linear again, so that the whole of it is six numbers, which
the engine applies without scikit-learn: `autospec.engine.calibration`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from autospec.engine.calibration import AcceptanceCalibration
from autospec.errors import MeasurementError
from autospec.replay import AcceptanceRows

Floats = NDArray[np.float64]

FEATURES = ("log_prob", "entropy", "gap", "position", "match_length")
_LARGEST = 30.0  # as in `autospec.engine.calibration`
_FOLDS = 5
_BINS = 10
_LEAST_PROB = 1e-6  # what a drafter calls impossible is taken for this likely when its probabilities are judged


@dataclass(frozen=True, slots=True)
class ClassifierScore:
    """How good chances of acceptance are.

    Args:
        log_loss: Mean negative log-likelihood, in nats.
        brier: Mean squared error.
        calibration_error: Mean distance of chance and frequency over ten bins of chance, weighted by their tokens.
        auc: Area under the curve: how well what is accepted is told from what is not; None where all are alike.
    """

    log_loss: float
    brier: float
    calibration_error: float
    auc: float | None

    @classmethod
    def of(cls, chances: Floats, accepted: NDArray[np.bool_]) -> ClassifierScore:
        """Score chances [rows] by what was accepted [rows]."""
        bins = np.minimum((chances * _BINS).astype(np.int64), _BINS - 1)
        gaps = [abs(chances[bins == one].mean() - accepted[bins == one].mean()) for one in np.unique(bins)]
        counts = np.unique(bins, return_counts=True)[1]
        is_mixed = 0 < accepted.sum() < len(accepted)
        return cls(
            log_loss=float(log_loss(accepted, np.clip(chances, _LEAST_PROB, 1.0 - _LEAST_PROB), labels=[False, True])),
            brier=float(brier_score_loss(accepted, chances, pos_label=True))
            if is_mixed
            else float(np.mean((chances - accepted) ** 2)),
            calibration_error=float(np.average(gaps, weights=counts)),
            auc=float(roc_auc_score(accepted, chances)) if is_mixed else None,
        )


@dataclass(frozen=True, slots=True)
class AcceptanceModel:
    """What was learnt of one drafter.

    Args:
        calibration: For the engine, fitted on all prompts.
        num_rows: Tokens it was fitted on: those whose draft the target wrote up to them.
        num_prompts: They come from.
        calibrated: Score on prompts that it was not fitted on.
        drafter: Score of the drafter's own probabilities on the same tokens; None where it has none.
        frequency: Score of the mean acceptance alone, of the other prompts.
    """

    calibration: AcceptanceCalibration
    num_rows: int
    num_prompts: int
    calibrated: ClassifierScore
    drafter: ClassifierScore | None
    frequency: ClassifierScore

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def fit_acceptance(rows: AcceptanceRows) -> AcceptanceModel:
    """Learn from what a trace shows of one drafter.

    Args:
        rows: Of all positions; only those that are reached teach, because a rule asks for the next token of a draft
            that is right so far.

    Raises:
        MeasurementError: Fewer than four prompts have such tokens, or all of them were accepted, or none.
    """
    reached = rows.is_reached
    accepted, prompts = rows.is_accepted[reached], rows.prompts[reached]
    names, values = _features(rows)
    num_prompts = len(np.unique(prompts))
    by_prompt = [accepted[prompts == one] for one in np.unique(prompts)]
    has_both = min(sum(one.any() for one in by_prompt), sum((~one).any() for one in by_prompt))
    if num_prompts < 4 or has_both < 3:
        raise MeasurementError(
            "a classifier needs four prompts, three with accepted tokens and three with rejected ones, but got "
            f"{num_prompts} with {int(accepted.sum())} of {len(accepted)} tokens accepted"
        )
    chances, frequency = np.zeros(len(accepted)), np.zeros(len(accepted))
    for train, test in GroupKFold(min(_FOLDS, num_prompts)).split(values, groups=prompts):
        if 0 < accepted[train].sum() < len(train):
            calibration = _fit(names, values[train], accepted[train], prompts[train])
            chances[test] = _apply(calibration, names, values[test])
        else:
            chances[test] = accepted[train].mean()
        frequency[test] = accepted[train].mean()
    own = np.exp(rows.log_prob[reached])
    return AcceptanceModel(
        calibration=_fit(names, values, accepted, prompts),
        num_rows=len(accepted),
        num_prompts=num_prompts,
        calibrated=ClassifierScore.of(chances, accepted),
        drafter=None if np.isnan(own).any() else ClassifierScore.of(own, accepted),
        frequency=ClassifierScore.of(frequency, accepted),
    )


def _features(rows: AcceptanceRows) -> tuple[tuple[str, ...], Floats]:
    """Return the features that this drafter has, and their values where a draft is reached: [rows, features]."""
    columns = {name: np.asarray(getattr(rows, name), dtype=np.float64)[rows.is_reached] for name in FEATURES}
    known = tuple(name for name, column in columns.items() if not np.isnan(column).any())
    return known, np.clip(np.stack([columns[name] for name in known], axis=1), -_LARGEST, _LARGEST)


def _fit(
    names: tuple[str, ...], values: Floats, accepted: NDArray[np.bool_], prompts: NDArray[np.int64]
) -> AcceptanceCalibration:
    """Fit on some prompts; scores that are calibrated come from prompts that they were not fitted on."""
    folds = GroupKFold(min(_FOLDS, len(np.unique(prompts)))).split(values, groups=prompts)
    usable = [(train, test) for train, test in folds if len(np.unique(accepted[train])) == 2]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    if len(usable) < 2 or sum(len(test) for _, test in usable) < len(accepted):
        return _plain(names, model.fit(values, accepted))
    calibrated = CalibratedClassifierCV(model, method="sigmoid", cv=usable, ensemble=False).fit(values, accepted)
    (whole,) = calibrated.calibrated_classifiers_
    plain, (sigmoid,) = _plain(names, whole.estimator), whole.calibrators
    # Platt's sigmoid is 1 / (1 + exp(a score + b)).
    scaled = {name: -float(sigmoid.a_) * value for name, value in plain.to_json().items()}
    return AcceptanceCalibration(**{**scaled, "intercept": scaled["intercept"] - float(sigmoid.b_)})


def _plain(names: tuple[str, ...], model: Any) -> AcceptanceCalibration:
    """Return a scaler and a logistic regression behind it as one weighted sum of unscaled features."""
    scaler, logistic = model[0], model[1]
    weights = logistic.coef_[0] / scaler.scale_
    intercept = float(logistic.intercept_[0] - weights @ scaler.mean_)
    return AcceptanceCalibration(intercept, **dict(zip(names, weights.tolist(), strict=True)))


def _apply(calibration: AcceptanceCalibration, names: tuple[str, ...], values: Floats) -> Floats:
    columns = dict.fromkeys(FEATURES, np.full(len(values), np.nan))
    columns |= {name: values[:, place] for place, name in enumerate(names)}
    return calibration.probs(**columns)
