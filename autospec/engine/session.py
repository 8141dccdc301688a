"""One prompt being decoded: draft, verify, accept, commit; and the plain loop.

Works on token ids only; knows nothing of text, files or policies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.acceptance import CHAIN_RULES, Verdict, accept_chain, accept_matching
from autospec.engine.cache import KVCache
from autospec.engine.drafters.base import Drafter, DraftPlan
from autospec.engine.model import CausalLM
from autospec.engine.sampling import Use, pick, to_probs, uniform, uniforms
from autospec.engine.termination import DraftLength
from autospec.engine.tree import TokenTree
from autospec.records import StepStats


@dataclass(frozen=True, slots=True)
class Job:
    """What to decode.

    Args:
        prompt_ids: At least one token.
        config: How to speculate; off is the plain loop.
        sampling: Filters; its seed is replaced by `seed`.
        seed: Seed of this prompt.
        max_new_tokens: At least 1.
    """

    prompt_ids: tuple[int, ...]
    config: SpecConfig
    sampling: SamplingParams
    seed: int
    max_new_tokens: int


class Session:
    """Decodes one job on a target, with at most one drafter.

    The cache holds the whole text but its last token, which is the root of the next step.
    """

    def __init__(self, target: CausalLM, drafter: Drafter | None, job: Job) -> None:
        self._target, self._drafter, self._job = target, drafter, job
        self._text = list(job.prompt_ids)
        self._room = job.max_new_tokens
        capacity = len(job.prompt_ids) + job.max_new_tokens
        target.check_length(capacity)
        self.cache = KVCache(capacity)
        self._capacity = capacity
        self._draft_length = DraftLength(job.config)
        self.stats = StepStats()

    def run(self) -> Iterator[list[int]]:
        """Yield the tokens of the prefill and then of each step, until the room is used up."""
        yield self._prefill()
        if self._drafter is None:
            while self._room > 0:
                yield self._plain_step()
        else:
            self._start_drafter(self._drafter)
            while self._room > 0:
                yield self._step(self._drafter)

    def _prefill(self) -> list[int]:
        started = perf_counter()
        logits = self._target.forward(torch.tensor([self._text]), self.cache, num_logits=1)[0]
        tokens = [self._choose(logits)]
        self.stats.prefill_seconds = perf_counter() - started
        return self._commit(tokens)

    def _start_drafter(self, drafter: Drafter) -> None:
        started, job = perf_counter(), self._job
        drafter.start(job.prompt_ids, DraftPlan(job.config, job.sampling, job.seed, self._capacity))
        drafter.commit(self._text[len(job.prompt_ids) :])
        self.stats.draft_seconds += perf_counter() - started

    def _plain_step(self) -> list[int]:
        started = perf_counter()
        logits = self._target.forward(torch.tensor([self._text[-1:]]), self.cache)[0]
        tokens = [self._choose(logits)]
        self.stats.verify_seconds += perf_counter() - started
        self.stats.add_step(0, 0)
        return self._commit(tokens)

    def _step(self, drafter: Drafter) -> list[int]:
        """Draft, verify, accept, commit."""
        started = perf_counter()
        # One token always comes from the target itself, so a longer draft could not be used.
        tree = drafter.propose(min(self._draft_length.limit, self._room - 1))
        drafted = perf_counter()
        root = self.cache.length
        logits = self._verify(tree)
        verified = perf_counter()
        verdict = self._accept(tree, logits)
        tokens = [*tree.token_ids[list(verdict.path)].tolist(), verdict.next_id]
        self.cache.keep(0, root, [0, *(node + 1 for node in verdict.path)])
        self._draft_length.observe(tree.num_nodes, verdict.num_accepted)
        self.stats.add_step(tree.num_nodes, verdict.num_accepted)
        self._commit(tokens)
        drafter.commit(tokens)
        self.stats.draft_seconds += drafted - started
        self.stats.verify_seconds += verified - drafted
        self.stats.accept_seconds += perf_counter() - verified
        return tokens

    def _verify(self, tree: TokenTree) -> Tensor:
        """Run the root and all nodes through the target at once: [nodes + 1, vocab] logits."""
        root = torch.tensor(self._text[-1:])
        mask = tree.ancestor_mask()
        depths = None if mask is None else (0, *tree.depths)
        input_ids = torch.cat([root, tree.token_ids.cpu()])[None]
        return self._target.forward(input_ids, self.cache, tree_mask=mask, depths=depths)[0]

    def _accept(self, tree: TokenTree, logits: Tensor) -> Verdict:
        job, num_drafted, position = self._job, tree.num_nodes, len(self._text)
        if job.sampling.is_greedy or job.config.accept_rule == "exact":
            target_ids = self._own_tokens(logits, position)
            count = int(accept_matching(tree.token_ids.to(target_ids.device), target_ids))
            return Verdict(tuple(range(count)), int(target_ids[count]))
        drafts = range(num_drafted)
        coins = uniforms(job.seed, range(position, position + num_drafted), Use.ACCEPT, drafts)
        # Both last numbers belong to the position behind the accepted tokens, which is known only afterwards: the
        # draft's end for the bonus, and for the correction one number a step, told apart by the root's position.
        correction = uniform(job.seed, position, Use.CORRECTION)
        bonus = uniform(job.seed, position + num_drafted, Use.TARGET)
        numbers = torch.cat([coins, torch.tensor([correction, bonus], dtype=torch.float64)])
        target_probs = to_probs(logits, job.sampling)
        rule = CHAIN_RULES[job.config.accept_rule]
        return accept_chain(rule, tree.token_ids.to(logits.device), tree.draft_probs, target_probs, numbers)

    def _own_tokens(self, logits: Tensor, position: int) -> Tensor:
        """Return the target's own choice behind each token of a chain: [n] int64."""
        if self._job.sampling.is_greedy:
            return logits.argmax(dim=-1)
        numbers = uniforms(self._job.seed, range(position, position + logits.shape[0]), Use.TARGET)
        return pick(to_probs(logits, self._job.sampling), numbers)

    def _choose(self, logits: Tensor) -> int:
        """Return the target's own next token from logits [1, vocab]."""
        return int(self._own_tokens(logits, len(self._text))[0])

    def _commit(self, tokens: Sequence[int]) -> list[int]:
        self._text.extend(tokens)
        self._room -= len(tokens)
        self.stats.num_new_tokens += len(tokens)
        return list(tokens)
