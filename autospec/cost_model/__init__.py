"""How fast a configuration would be: steps from a trace, seconds from a profile, what measurements add to that."""

from autospec.cost_model.errors import PredictionError
from autospec.cost_model.predictor import Prediction, Predictor
from autospec.cost_model.residual import Residual
from autospec.cost_model.steps import StepCosts

__all__ = ["Prediction", "PredictionError", "Predictor", "Residual", "StepCosts"]
