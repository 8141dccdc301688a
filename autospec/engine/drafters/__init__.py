"""Drafters: what proposes tokens."""

from autospec.engine.drafters.base import ChecksConfig, Drafter, DraftPlan, Needs, Trail
from autospec.engine.drafters.block import BlockDrafter
from autospec.engine.drafters.combined import CombinedDrafter
from autospec.engine.drafters.datastore import DatastoreDrafter
from autospec.engine.drafters.eagle import EagleDrafter
from autospec.engine.drafters.early_exit import EarlyExitDrafter
from autospec.engine.drafters.lookahead import LookaheadDrafter
from autospec.engine.drafters.medusa import MedusaDrafter
from autospec.engine.drafters.mtp import MtpDrafter
from autospec.engine.drafters.ngram import NgramDrafter
from autospec.engine.drafters.recycling import RecyclingDrafter
from autospec.engine.drafters.small_model import SmallModelDrafter
from autospec.engine.drafters.suffix import SuffixDrafter
from autospec.engine.drafters.translated_model import TranslatedModelDrafter

__all__ = [
    "BlockDrafter",
    "ChecksConfig",
    "CombinedDrafter",
    "DatastoreDrafter",
    "DraftPlan",
    "Drafter",
    "EagleDrafter",
    "EarlyExitDrafter",
    "LookaheadDrafter",
    "MedusaDrafter",
    "MtpDrafter",
    "Needs",
    "NgramDrafter",
    "RecyclingDrafter",
    "SmallModelDrafter",
    "SuffixDrafter",
    "Trail",
    "TranslatedModelDrafter",
]
