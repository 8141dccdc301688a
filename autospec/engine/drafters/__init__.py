"""Drafters: what proposes tokens."""

from autospec.engine.drafters.base import ChecksConfig, Drafter, DraftPlan, Needs, Trail
from autospec.engine.drafters.block import BlockDrafter
from autospec.engine.drafters.eagle import EagleDrafter
from autospec.engine.drafters.early_exit import EarlyExitDrafter
from autospec.engine.drafters.medusa import MedusaDrafter
from autospec.engine.drafters.ngram import NgramDrafter
from autospec.engine.drafters.small_model import SmallModelDrafter
from autospec.engine.drafters.translated_model import TranslatedModelDrafter

__all__ = [
    "BlockDrafter",
    "ChecksConfig",
    "DraftPlan",
    "Drafter",
    "EagleDrafter",
    "EarlyExitDrafter",
    "MedusaDrafter",
    "Needs",
    "NgramDrafter",
    "SmallModelDrafter",
    "Trail",
    "TranslatedModelDrafter",
]
