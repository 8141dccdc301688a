"""The names of tree shapes, stopping rules and acceptance rules, and which of them go together.

Tables of facts that configurations are checked against and documents are written from; knows no model and no tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

STOP_RULES = ("static", "confidence", "entropy", "cumulative", "adaptive", "heuristic", "cost_aware")
ENTROPY_FORMS = ("svip", "adaedl")


@dataclass(frozen=True, slots=True)
class ShapeFacts:
    """What a tree shape is.

    Args:
        has_fixed_form: Its form is known before anything is drawn, so its children may be sampled.
        stop_rules: What may end its growth.
        meaning: In a few words, with the source.
    """

    has_fixed_form: bool
    stop_rules: tuple[str, ...]
    meaning: str


_PRUNING = ("static", "heuristic", "cumulative")
# A rule that looks at what was drawn would bias a tree of sampled children; in trees of deterministic children only
# rules that prune by the probability of a path, or limit the depth, have a meaning.
TREE_SHAPES = {
    "chain": ShapeFacts(True, STOP_RULES, "one token after another (2211.17192)"),
    "static": ShapeFacts(True, ("static", "heuristic"), "rank paths written down beforehand (Medusa, 2401.10774)"),
    "optimal": ShapeFacts(True, ("static", "heuristic"), "rank paths of most expected tokens (Sequoia, 2402.12374)"),
    "beam": ShapeFacts(
        False,
        ("static", "heuristic", "cumulative"),
        "the best few of each depth, cut to a budget (EAGLE-2, 2406.16858)",
    ),
    "best_first": ShapeFacts(False, _PRUNING, "the most probable paths under a budget (OPT-Tree, 2406.17276)"),
    "trie": ShapeFacts(
        False,
        ("static", "heuristic", "cumulative"),
        "several continuations merged (SpecInfer, 2305.09781; REST, 2311.08252)",
    ),
}


@dataclass(frozen=True, slots=True)
class AcceptFacts:
    """What an acceptance rule is.

    Args:
        is_lossless: The output distribution is the target's.
        serves_trees: Drafts may branch.
        meaning: In a few words, with the source.
    """

    is_lossless: bool
    serves_trees: bool
    meaning: str


ACCEPT_RULES = {
    "exact": AcceptFacts(True, True, "draw the target's token and follow the child that is it"),
    "rejection": AcceptFacts(True, False, "keep with probability min(1, target / draft) (2211.17192)"),
    "block": AcceptFacts(True, False, "the same judged for the whole draft at once (2403.10444)"),
}


@dataclass(frozen=True, slots=True)
class DrafterFacts:
    """What a kind of drafter is; any other source of a drafter is a draft model.

    Args:
        needs_path: Its source is `kind:path`; otherwise the kind alone.
        meaning: In a few words, with the source.
    """

    needs_path: bool
    meaning: str


DRAFTER_KINDS = {
    "block": DrafterFacts(True, "layers that fill a block of masks in one pass (DFlash, z-lab/dflash)"),
    "eagle": DrafterFacts(True, "a layer that continues the target's features (2401.15077, 2503.01840)"),
    "early_exit": DrafterFacts(False, "the target's own first layers, or those named, under its head (2404.16710)"),
    "medusa": DrafterFacts(True, "heads that each guess one token further ahead (2401.10774)"),
    "ngram": DrafterFacts(False, "copies what followed the last time the text ended like this (prompt lookup)"),
}


def split_source(source: str) -> tuple[str, str]:
    """Return the kind and the path, or id, that a drafter's source names; either may be empty."""
    kind, colon, path = source.partition(":")
    if kind in DRAFTER_KINDS and (colon or not DRAFTER_KINDS[kind].needs_path):
        return kind, path
    return "", source
