"""Applies the acceptance rule of one generation to its steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.acceptance.chains import CHAIN_RULES, accept_chain
from autospec.engine.acceptance.lossy import PASSING, accept_passing, contrastive_logits
from autospec.engine.acceptance.trees import accept_candidates, accept_traversal
from autospec.engine.acceptance.verdict import CountedChance, Verdict, accept_matching
from autospec.engine.sampling import Use, gumbels, key_of, pick, to_probs, uniform, uniforms
from autospec.engine.tree import TokenTree


@dataclass(frozen=True, slots=True)
class Judge:
    """Decides what is kept of a draft, and what the target says where it ends.

    Args:
        config: The rule and its knobs.
        sampling: Filters of the target.
        seed: Of the prompt.
    """

    config: SpecConfig
    sampling: SamplingParams
    seed: int

    def accept(self, tree: TokenTree, logits: Tensor, position: int) -> Verdict:
        """Decide one step.

        Args:
            tree: The draft.
            logits: [nodes + 1, vocab] the target's, behind the root and behind every node.
            position: Absolute position of the first drafted token.

        Raises:
            ConfigError: The rule needs of the drafter what it did not give.
        """
        rule, is_greedy = self.config.accept_rule, self.sampling.is_greedy
        if rule == "contrastive":
            logits = contrastive_logits(tree, logits, self.config)
        elif rule in PASSING and (rule != "typical" if is_greedy else rule != "lenient"):
            # Greedy decoding has no temperature, so the target is asked at 1.
            probs = logits.float().softmax(dim=-1) if is_greedy else to_probs(logits, self.sampling)
            passing = PASSING[rule](probs, self.config)
            return accept_passing(tree, probs, passing, self._chosen(logits, position, tree))
        if is_greedy or rule in ("exact", "coupled"):
            return accept_matching(tree, self.own_tokens(logits, position, tree))
        probs, chance = to_probs(logits, self.sampling), CountedChance(self.seed, position, tree)
        if rule in CHAIN_RULES:
            return self._accept_chain(tree, probs, chance)
        if rule == "traversal":
            return accept_traversal(tree, probs, chance, self.config.with_replacement)
        lenience = self.config.accept_threshold if rule == "lenient" else 1.0
        return accept_candidates(tree, probs, chance, self.config.with_replacement, lenience)

    def own_tokens(self, logits: Tensor, position: int, tree: TokenTree | None = None) -> list[int]:
        """Return the target's own choice behind the root and behind each node of a draft.

        A random number, or the noise of coupled acceptance, belongs to a position, so nodes of one depth share theirs:
        only one of them can be kept.

        Args:
            logits: [nodes + 1, vocab].
            position: Absolute position of the token behind the root.
            tree: The draft; None where there is none.
        """
        own: list[int] = self._chosen(logits, position, tree).tolist()
        return own

    def _chosen(self, logits: Tensor, position: int, tree: TokenTree | None) -> Tensor:
        """Return the same, [nodes + 1], where the logits are."""
        if self.sampling.is_greedy:
            return logits.argmax(dim=-1)
        probs, depths = to_probs(logits, self.sampling), [0] if tree is None else [0, *tree.depths]
        positions = range(position, position + max(depths) + 1)
        if self.config.accept_rule == "coupled":
            keys = [key_of(self.seed, at, Use.NOISE) for at in positions]
            return (probs.log() + gumbels(keys, probs.shape[-1], probs.device)[depths]).argmax(dim=-1)
        return pick(probs, uniforms(self.seed, positions, Use.TARGET)[depths])

    def _accept_chain(self, tree: TokenTree, probs: Tensor, chance: CountedChance) -> Verdict:
        coins = [chance.coin(node) for node in range(tree.num_nodes)]
        correction = uniform(self.seed, chance.position, Use.CORRECTION)
        bonus = uniform(self.seed, chance.position + tree.num_nodes, Use.TARGET)
        numbers = torch.tensor([*coins, correction, bonus], dtype=torch.float64)
        rule = CHAIN_RULES[self.config.accept_rule]
        return accept_chain(rule, tree.token_ids.to(probs.device), tree.draft_probs, probs, numbers)
