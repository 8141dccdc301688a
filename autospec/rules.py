"""The names of tree shapes, stopping rules and acceptance rules, and which of them go together.

Tables of facts that configurations are checked against and documents are written from; knows no model and no tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

STOP_RULES = ("static", "confidence", "entropy", "cumulative", "adaptive", "heuristic", "cost_aware")
ENTROPY_FORMS = ("svip", "adaedl")
COMBINE_RULES = ("fallback", "merge")


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


_ALL = tuple(TREE_SHAPES)
_CHAIN = ("chain",)
_ONE_DRAFTER = tuple(shape for shape in TREE_SHAPES if shape != "trie")


@dataclass(frozen=True, slots=True)
class AcceptFacts:
    """What an acceptance rule is, and what it goes with.

    Args:
        is_lossless: The output distribution is the target's.
        meaning: In a few words, with the source.
        guarantee: What holds of every output.
        shapes: The tree shapes it serves.
        draws_children: Under sampling, the children of trees with a fixed form are drawn; otherwise, and in all other
            trees, they are the most probable ones, which the rule takes as certain of themselves.
        needs_logits: It reads what the drafter thought of all tokens, so text lookup cannot serve it.
        knobs: Fields of `SpecConfig` that it reads.
    """

    is_lossless: bool
    meaning: str
    guarantee: str
    shapes: tuple[str, ...] = _ALL
    draws_children: bool = False
    needs_logits: bool = False
    knobs: tuple[str, ...] = ()

    @property
    def serves_trees(self) -> bool:
        """Whether drafts may branch."""
        return self.shapes != _CHAIN


_SAME_LAW = "the output distribution is the target's; greedy output is the target's token for token"
# The truth table of acceptance: rules down, tree shapes and kinds of draft across. Chains are drawn under sampling,
# whatever the rule, unless the drafter only looks text up.
ACCEPT_RULES = {
    "exact": AcceptFacts(
        True,
        "draw the target's token and follow the child that is it",
        "token for token what plain decoding gives with the same seed",
    ),
    "rejection": AcceptFacts(True, "keep with probability min(1, target / draft) (2211.17192)", _SAME_LAW, _CHAIN),
    "block": AcceptFacts(True, "the same judged for the whole draft at once (2403.10444)", _SAME_LAW, _CHAIN),
    "coupled": AcceptFacts(
        True,
        "target and drafter choose with the same Gumbel noise; keep where they agree (2408.07978)",
        _SAME_LAW + "; sampled output does not depend on the drafter",
    ),
    "multi_candidate": AcceptFacts(
        True,
        "one child after the other against what the last ones left of the target (2305.09781, 2402.12374)",
        _SAME_LAW,
        draws_children=True,
        knobs=("with_replacement",),
    ),
    "traversal": AcceptFacts(
        True,
        "from the leaves to the root, every path judged as a whole (2505.12398)",
        _SAME_LAW,
        draws_children=True,
        knobs=("with_replacement",),
    ),
    "typical": AcceptFacts(
        False,
        "keep what the target finds typical: min(accept_threshold, accept_delta * exp(-entropy)) (2401.10774)",
        "every kept token has a target probability above the smaller of accept_threshold and accept_delta * "
        "exp(-entropy of the target); greedy output is the target's token for token",
        knobs=("accept_threshold", "accept_delta"),
    ),
    "lenient": AcceptFacts(
        False,
        "multi_candidate against accept_threshold * draft (2211.17192, A.5)",
        "no token is more probable than target probability / accept_threshold; greedily, every kept token has at "
        "least accept_threshold times the probability of the target's first choice",
        draws_children=True,
        knobs=("accept_threshold", "with_replacement"),
    ),
    "relaxed": AcceptFacts(
        False,
        "keep what is among the target's best few and close to the best (relaxed acceptance of TensorRT-LLM)",
        "every kept token is among the target's accept_top most probable ones and at most accept_delta less probable "
        "than the first",
        knobs=("accept_top", "accept_delta"),
    ),
    "margin": AcceptFacts(
        False,
        "keep the target's second choice too where it is nearly as good as the first (the idea of 2601.15498)",
        "every kept token is the target's first choice, or its second with at least accept_threshold times the "
        "probability of the first",
        knobs=("accept_threshold",),
    ),
    "contrastive": AcceptFacts(
        False,
        "verify without loss against the target sharpened by its difference from the drafter (2311.08981)",
        "a token at a drafted position follows exactly softmax((1 + accept_delta) * target logits - accept_delta * "
        "draft logits), in the temperature and filters of decoding, over tokens with at least accept_threshold times "
        "the probability of the target's first choice; where nothing was drafted, as behind a draft accepted whole, "
        "it follows the target",
        _ONE_DRAFTER,
        draws_children=True,
        needs_logits=True,
        knobs=("accept_threshold", "accept_delta", "with_replacement"),
    ),
}
_KNOBS = frozenset(knob for facts in ACCEPT_RULES.values() for knob in facts.knobs)


def draws_children(accept_rule: str, tree_shape: str) -> bool:
    """Tell whether, under sampling, siblings of a tree are drawn; otherwise they are the most probable tokens."""
    return ACCEPT_RULES[accept_rule].draws_children and TREE_SHAPES[tree_shape].has_fixed_form


def idle_accept_knobs(accept_rule: str, tree_shape: str) -> set[str]:
    """Return the fields of acceptance that have no effect under a rule on a shape."""
    idle = set(_KNOBS.difference(ACCEPT_RULES[accept_rule].knobs))
    if tree_shape == "chain" or not draws_children(accept_rule, tree_shape):
        idle.add("with_replacement")
    return idle


def accept_faults(accept_rule: str, tree_shape: str, accept_threshold: float) -> list[str]:
    """Return what does not go together in an acceptance rule, its shape and its threshold."""
    faults, facts = [], ACCEPT_RULES[accept_rule]
    if not facts.serves_trees and tree_shape != "chain":
        faults.append(f"accept_rule {accept_rule!r} serves chains only, but got tree_shape={tree_shape!r}")
    elif tree_shape not in facts.shapes:
        faults.append(f"accept_rule {accept_rule!r} serves {list(facts.shapes)}, but got tree_shape={tree_shape!r}")
    if accept_rule == "lenient" and accept_threshold == 0.0:
        faults.append("accept_rule 'lenient' needs `accept_threshold > 0`, but got 0.0")
    return faults


@dataclass(frozen=True, slots=True)
class DrafterFacts:
    """What a kind of drafter is; any other source of a drafter is a draft model.

    Args:
        needs_path: Its source is `kind:path`; otherwise the kind alone, or with a path where it can read one.
        meaning: In a few words, with the source.
        reads_data: The path is a file or folder of data, not a model.
        runs_code: The path is `MODULE:FACTORY`, Python that makes the drafter and runs only where it is allowed.
    """

    needs_path: bool
    meaning: str
    reads_data: bool = False
    runs_code: bool = False


DRAFTER_KINDS = {
    "block": DrafterFacts(True, "layers that fill a block of masks in one pass (DFlash, z-lab/dflash)"),
    "eagle": DrafterFacts(True, "a layer that continues the target's features (2401.15077, 2503.01840)"),
    "early_exit": DrafterFacts(False, "the target's own first layers, or those named, under its head (2404.16710)"),
    "lookahead": DrafterFacts(False, "n-grams of the target's own guesses at what comes later (2402.02057)"),
    "medusa": DrafterFacts(True, "heads that each guess one token further ahead (2401.10774)"),
    "mtp": DrafterFacts(False, "the module that its target was published with (2412.19437)"),
    "ngram": DrafterFacts(False, "copies what followed the last time the text ended like this (prompt lookup)"),
    "suffix": DrafterFacts(
        False, "what most often followed this ending of the text, here or in earlier texts (2411.04975)", True
    ),
    "recycling": DrafterFacts(False, "the target's own top candidates behind each token (2408.08696)"),
    "datastore": DrafterFacts(True, "what most often followed this ending in files of one's own (2311.08252)", True),
    "import": DrafterFacts(True, "whatever a factory of one's own makes, import:MODULE:FACTORY", runs_code=True),
}
# Stands before the source of a drafter that was given as an object in Python: no source makes it again.
OBJECT_PREFIX = "object:"


def split_source(source: str) -> tuple[str, str]:
    """Return the kind and the path, or id, that a drafter's source names; either may be empty."""
    kind, colon, path = source.partition(":")
    if kind in DRAFTER_KINDS and (colon or not DRAFTER_KINDS[kind].needs_path):
        return kind, path
    return "", source


def model_named(source: str) -> str:
    """Return the id or path of the model or heads in a drafter's source; empty where it names none."""
    kind, path = split_source(source)
    has_none = source.startswith(OBJECT_PREFIX) or (
        bool(kind) and (DRAFTER_KINDS[kind].reads_data or DRAFTER_KINDS[kind].runs_code)
    )
    return "" if has_none else path


def imported_path(source: str) -> str:
    """Return `MODULE:FACTORY` of a source `import:MODULE:FACTORY`; empty for other sources."""
    kind, path = split_source(source)
    return path if kind and DRAFTER_KINDS[kind].runs_code else ""
