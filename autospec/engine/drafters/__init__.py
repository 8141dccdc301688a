"""Drafters: what proposes tokens."""

from autospec.engine.drafters.base import Drafter, DraftPlan, Needs, Trail
from autospec.engine.drafters.combined import CombinedDrafter
from autospec.engine.drafters.datastore import DatastoreDrafter
from autospec.engine.drafters.ngram import NgramDrafter
from autospec.engine.drafters.recycling import RecyclingDrafter
from autospec.engine.drafters.small_model import SmallModelDrafter
from autospec.engine.drafters.suffix import SuffixDrafter

__all__ = [
    "CombinedDrafter",
    "DatastoreDrafter",
    "DraftPlan",
    "Drafter",
    "Needs",
    "NgramDrafter",
    "RecyclingDrafter",
    "SmallModelDrafter",
    "SuffixDrafter",
    "Trail",
]
