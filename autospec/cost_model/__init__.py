"""How fast a configuration would be: steps from a trace, seconds from a profile, what measurements add to that."""

from autospec.cost_model.acceptance import AcceptanceModel, fit_acceptance
from autospec.cost_model.closed_forms import Independence, independence
from autospec.cost_model.prediction import Prediction
from autospec.cost_model.predictor import Predictor
from autospec.cost_model.recorded import contexts_of
from autospec.cost_model.residual import Residual
from autospec.cost_model.steps import StepCosts
from autospec.cost_model.validation import Agreement, CrossValidation, cross_validate

__all__ = [
    "AcceptanceModel",
    "Agreement",
    "CrossValidation",
    "Independence",
    "Prediction",
    "Predictor",
    "Residual",
    "StepCosts",
    "contexts_of",
    "cross_validate",
    "fit_acceptance",
    "independence",
]
