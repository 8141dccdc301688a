"""One prompt being decoded: draft, verify, accept, commit; and the plain loop.

Works on token ids only; knows nothing of text, files or policies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.acceptance import Judge, Verdict
from autospec.engine.cache import KVCache
from autospec.engine.cache_pool import PooledCache
from autospec.engine.costs import CONSTANT_COSTS, CostCurve
from autospec.engine.draft_checks import check_draft, num_branches
from autospec.engine.drafters.base import Drafter, DraftPlan, Needs, Trail
from autospec.engine.model import CausalLM
from autospec.engine.prefill import run_prompt
from autospec.engine.rows import RowTokens
from autospec.engine.termination import Stopping
from autospec.engine.tree import TokenTree
from autospec.errors import AutospecError, DrafterError
from autospec.imports import told
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
        costs: What steps cost, for the cost-aware stopping rule.
    """

    prompt_ids: tuple[int, ...]
    config: SpecConfig
    sampling: SamplingParams
    seed: int
    max_new_tokens: int
    costs: CostCurve = CONSTANT_COSTS


class Session:
    """Decodes one job on a target, with at most one drafter.

    The cache holds the whole text but its last token, which is the root of the next step.

    Args:
        target: The model whose output is wanted.
        drafter: None is the plain loop.
        job: What to decode.
        now: Reads the seconds by which phases are told apart. The default does not wait for a device.
        cache: A row of a batch's cache; None makes one.

    Raises:
        ModelError: Prompt and new tokens do not fit the context.
    """

    def __init__(
        self,
        target: CausalLM,
        drafter: Drafter | None,
        job: Job,
        now: Callable[[], float] = perf_counter,
        cache: KVCache | None = None,
    ) -> None:
        self._target, self._drafter, self._job, self._now = target, drafter, job, now
        self._text = list(job.prompt_ids)
        self._room = job.max_new_tokens
        capacity = len(job.prompt_ids) + job.max_new_tokens
        target.check_length(capacity)
        self._needs = drafter.needs if drafter is not None else Needs()
        needed = self.slots_for(drafter, job)
        if cache is None:
            target.check_room(1, needed)
        self.cache = target.new_cache(needed) if cache is None else cache
        self.cache.reserve(needed)
        self.cache.crop(0, 0)
        self._capacity = capacity
        self._stopping = Stopping(job.config, job.costs)
        self._judge = Judge(job.config, job.sampling, job.seed)
        self._trail: Trail | None = None
        self.stats = StepStats()

    @staticmethod
    def slots_for(drafter: Drafter | None, job: Job) -> int:
        """Return how many slots of a cache a job needs: its text, and nodes beside one path of a draft."""
        beside = 0 if drafter is None else drafter.needs.target_slots(job.config)
        return len(job.prompt_ids) + job.max_new_tokens + max(num_branches(job.config), beside)

    def run(self) -> Iterator[list[int]]:
        """Yield the tokens of the prefill and then of each step, until the room is used up."""
        yield self.prefill()
        self.start_drafter()
        while self._room > 0:
            yield self.step()

    @property
    def room(self) -> int:
        """Most tokens that may still be emitted."""
        return self._room

    @property
    def limit(self) -> int:
        """Longest draft that the stopping rule allows now; 0 without a drafter."""
        return 0 if self._drafter is None else self.cut(self._stopping.limit)

    @property
    def drafter(self) -> Drafter | None:
        """What drafts; None is the plain loop."""
        return self._drafter

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        """Which hidden states the drafter needs."""
        return self._needs.hidden_layers

    @property
    def num_tokens(self) -> int:
        """Length of prompt and output so far."""
        return len(self._text)

    def prefill(self) -> list[int]:
        """Run the prompt, once and first of all; return the first token."""
        started = self._now()
        wants = self._needs
        logits, hidden = run_prompt(self._target, self._text, self.cache, wants)
        if wants.anything:
            self._trail = Trail(0, logits if wants.logits else None, hidden)
        tokens = [self._choose(logits[-1:])]
        self.stats.prefill_seconds = self._now() - started
        return self._commit(tokens)

    def start_drafter(self) -> None:
        """Begin the drafter's part, right behind the prefill; nothing where there is no drafter."""
        drafter, job = self._drafter, self._job
        if drafter is None:
            return
        started = self._now()
        sampling = job.config.draft_sampling(job.sampling)
        plan = DraftPlan(job.config, sampling, job.seed, self._capacity, self._stopping, self.cache)
        with self.blaming("start"):
            drafter.start(job.prompt_ids, plan)
        with self.blaming("commit"):
            drafter.commit(self._text[len(job.prompt_ids) :], self._trail)
        self.stats.draft_seconds += self._now() - started

    def rewind(self) -> None:
        """Go back to right behind the prefill, so that steps of one context can be repeated without running it again.

        Counts begin anew, but for the seconds of the prefill.
        """
        num_prompt = len(self._job.prompt_ids)
        first = self._text[num_prompt : num_prompt + 1]
        self.cache.crop(0, num_prompt)
        self._text, self._room = list(self._job.prompt_ids), self._job.max_new_tokens
        self._stopping = Stopping(self._job.config, self._job.costs)
        self.stats = StepStats(prefill_seconds=self.stats.prefill_seconds)
        self._commit(first)
        self.start_drafter()

    def close(self) -> None:
        """Let go of the cache, which nobody may use any more: the next prompt can have its memory."""
        if isinstance(self.cache, PooledCache):
            self.cache.release()

    def twin(self, drafter: Drafter | None, job: Job) -> Session:
        """Return a session of the same prompt behind the prefill of this one, in the same cache.

        They take turns: each rewinds before it steps.

        Args:
            drafter: What it needs of the prefill must have been asked for by this one's.
            job: Of the same prompt, which must fit the cache of this one.
        """
        assert job.prompt_ids == self._job.prompt_ids
        made = Session(self._target, drafter, job, self._now, KVCache(0))
        assert not made._needs.anything or made._needs == self._needs
        made.cache, made._trail = self.cache, self._trail
        made._text = self._text[: len(job.prompt_ids) + 1]
        return made

    def step(self, limit: int | None = None) -> list[int]:
        """Take one step and return its tokens; without a drafter it is one of the plain loop.

        Args:
            limit: Longest path of the draft; None leaves it to the stopping rule.
        """
        if self._drafter is None:
            return self._plain_step()
        return self._step(self._drafter, self._stopping.limit if limit is None else limit)

    def _plain_step(self) -> list[int]:
        started = self._now()
        logits = self._target.forward(torch.tensor([self._text[-1:]]), self.cache)[0]
        tokens = [self._choose(logits)]
        self.stats.verify_seconds += self._now() - started
        self.stats.add_step(0, 0, 0)
        return self._commit(tokens)

    def _step(self, drafter: Drafter, limit: int) -> list[int]:
        """Draft, verify, accept, commit."""
        started, limit = self._now(), self.cut(limit)
        with self.blaming("propose"):
            tree = drafter.propose(limit)
        asked = self.ask(tree, limit)
        drafted = self._now()
        logits, hidden = self._verify(asked)
        verified = self._now()
        self.stats.draft_seconds += drafted - started
        self.stats.verify_seconds += verified - drafted
        return self.settle(tree, logits, hidden, verified)

    def cut(self, limit: int) -> int:
        """Return how long a draft may be: one token always comes from the target, so a longer one is of no use."""
        return min(limit, self._room - 1)

    def ask(self, tree: TokenTree, limit: int) -> RowTokens:
        """Return what the target must run to verify a draft: the root and all nodes, at once.

        Args:
            tree: The draft.
            limit: Longest path that was asked for.

        Raises:
            DrafterError: It cannot be verified.
        """
        check_draft(tree, self._job.config, limit, self._target.vocab_size)
        mask = tree.ancestor_mask()
        depths = None if mask is None else (0, *tree.depths)
        return RowTokens(self.cache.place, [self._text[-1], *tree.tokens], mask, depths)

    def settle(self, tree: TokenTree, logits: Tensor, hidden: Tensor | None, started: float) -> list[int]:
        """Accept and commit.

        Args:
            tree: The draft.
            logits: [nodes + 1, vocab] of the target, behind the root and every node.
            hidden: Its hidden states there, where the drafter needs some.
            started: When the target had run.
        """
        root = self.cache.length - tree.num_nodes - 1
        verdict = self._judge.accept(tree, logits, len(self._text))
        tokens = [*(tree.tokens[node] for node in verdict.path), verdict.next_id]
        slots = [0, *(node + 1 for node in verdict.path)]
        self.cache.keep(0, root, slots)
        self._stopping.observe(tree.depth, verdict.num_accepted)
        self.stats.add_step(tree.num_nodes, verdict.num_accepted, _num_tested(tree, verdict))
        self._commit(tokens)
        if self._drafter is not None:
            with self.blaming("commit"):
                self._drafter.commit(tokens, self._trail_of(root, slots, logits, hidden))
        self.stats.accept_seconds += self._now() - started
        return tokens

    @contextmanager
    def blaming(self, method: str) -> Iterator[None]:
        """Say which drafter raised, in which of its methods; what is wrong with the device is nobody's fault."""
        try:
            yield
        except (AutospecError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a drafter may be the user's code: it raises what it likes
            raise DrafterError(f"drafter {self._job.config.drafter!r} failed in `{method}`: {told(error)}") from error

    def _verify(self, asked: RowTokens) -> tuple[Tensor, Tensor | None]:
        """Run the target: logits [nodes + 1, vocab], and hidden states."""
        input_ids = torch.tensor([asked.token_ids])
        if layers := self._needs.hidden_layers:
            logits, hidden = self._target.forward_with_hidden(
                input_ids, self.cache, layers, tree_mask=asked.tree_mask, depths=asked.depths
            )
            return logits[0], hidden[0]
        logits = self._target.forward(input_ids, self.cache, tree_mask=asked.tree_mask, depths=asked.depths)
        return logits[0], None

    def _trail_of(self, root: int, slots: list[int], logits: Tensor, hidden: Tensor | None) -> Trail | None:
        if not self._needs.anything:
            return None
        own = logits[slots] if self._needs.logits else None
        return Trail(root, own, None if hidden is None else hidden[slots])

    def _choose(self, logits: Tensor) -> int:
        """Return the target's own next token from logits [1, vocab]."""
        return self._judge.own_tokens(logits, len(self._text))[0]

    def _commit(self, tokens: Sequence[int]) -> list[int]:
        self._text.extend(tokens)
        self._room -= len(tokens)
        self.stats.num_new_tokens += len(tokens)
        return list(tokens)


def _num_tested(tree: TokenTree, verdict: Verdict) -> int:
    """Return how many positions were put to the test: those accepted, and the next where there was a candidate."""
    last = verdict.path[-1] if verdict.path else -1
    return verdict.num_accepted + bool(tree.children[last + 1])
