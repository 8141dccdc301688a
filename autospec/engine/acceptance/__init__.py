"""Acceptance rules: which drafted tokens survive, and what is drawn where they end.

Pure functions of a draft, probabilities and chance; they know no model, cache or tokenizer. accepted: a draft token
kept; correction: the token drawn after a rejection; bonus: the token drawn where nothing more was drafted. Which rule
serves which draft, and what it promises, stands in `autospec.rules.ACCEPT_RULES`.
"""

from autospec.engine.acceptance.chains import CHAIN_RULES, ChainRule, accept_chain
from autospec.engine.acceptance.judge import Judge
from autospec.engine.acceptance.trees import accept_candidates, accept_traversal
from autospec.engine.acceptance.verdict import Chance, Verdict, accept_matching

__all__ = [
    "CHAIN_RULES",
    "ChainRule",
    "Chance",
    "Judge",
    "Verdict",
    "accept_candidates",
    "accept_chain",
    "accept_matching",
    "accept_traversal",
]
