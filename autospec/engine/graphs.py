"""A lean forward in size buckets: one launch for each number of rows, tokens, slots attended over, and what is wanted.

Prompts, and whatever has no room or no bucket, run as they always do. Knows what may be launched and how that is
checked, not how launches are made, kept and filled.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from autospec.engine.cache import KVCache
from autospec.engine.cache_pool import PooledCache, Store
from autospec.engine.launches import Launches
from autospec.engine.launching import Launching
from autospec.engine.lean import LeanForward
from autospec.engine.lean.fixed import ChainForm
from autospec.engine.masks import NewTokens
from autospec.engine.plans import RowsPlan, Shape, TextPlan, bucket, reach_of
from autospec.engine.probing import differ
from autospec.engine.rows import FlatRows
from autospec.engine.sampling import to_probs

MOST_TOKENS = 128  # of a forward; more are a prompt's, whose products are large enough to hide launches
_MOST_OF_ROWS = 256  # of a forward of several rows
_MOST_FRESH = 4  # tokens of a text that a draft loop may begin with


class Graphs:
    """Runs a lean forward by launches where it can; see `autospec.engine.forwards.Forward`.

    Args:
        lean: What runs.
        launching: How launches are made.
    """

    def __init__(self, lean: LeanForward, launching: Launching) -> None:
        self.lean, self._launches = lean, Launches(lean, launching)
        self._is_checked = self._are_rows_checked = False
        self._checked_forms = set[ChainForm]()

    def run(
        self, input_ids: Tensor, new: NewTokens, cache: KVCache, num_logits: int, wants_hidden: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run tokens; see `Forward`."""
        num_new, store = new.num_new, _store_of(cache)
        wants_all = num_logits in (0, num_new)
        if store is not None and num_new <= MOST_TOKENS and (wants_all or num_logits == 1):
            size = bucket(num_new)
            num_slots = cache.length + size
            shape = Shape(size, _reach(num_slots, cache), size if wants_all else 1, wants_hidden)
            outputs = self._launches.outputs(store, TextPlan(input_ids, new, shape, num_slots))
            if outputs is not None:
                logits, *hidden = outputs
                if not self._is_checked:
                    self._check(logits, input_ids, new, cache)
                if not self._launches.is_refused:
                    return logits[:, : num_new if wants_all else 1], tuple(hidden[0][:, :, :num_new]) if hidden else ()
        return self.lean.run(input_ids, new, cache, num_logits, wants_hidden)

    def chain(
        self, token_ids: Sequence[int], cache: KVCache, form: ChainForm, draws: Sequence[int] = ()
    ) -> list[Tensor] | None:
        """Draft tokens behind a text, one after the other, in one launch.

        Args:
            token_ids: Of the text, behind those cached.
            cache: Written to, but for the last of the tokens drafted; not advanced.
            form: Of the draft.
            draws: Numbers by which tokens are drawn, if they are: see `uniform_bits`.

        Returns:
            What `FixedChain` returns; None where they must be drafted one by one.
        """
        num_fresh, store = len(token_ids), _store_of(cache)
        if store is None or num_fresh > _MOST_FRESH:
            return None
        size = max(2, bucket(num_fresh))  # a text has one or two tokens that were not run
        num_slots = cache.length + max(size, num_fresh + form.length - 1)
        shape = Shape(size, _reach(num_slots, cache), 1, form=form)
        new = NewTokens(cache.lengths, num_fresh)
        outputs = self._launches.outputs(store, TextPlan(torch.tensor([token_ids]), new, shape, num_slots, draws))
        if outputs is not None and form not in self._checked_forms:
            self._check_loop(outputs, token_ids, cache, form)
        return None if self._launches.is_refused else outputs

    def run_rows(self, flat: FlatRows, cache: KVCache, wants_hidden: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run tokens of several rows; see `Forward`."""
        store = cache.store if isinstance(cache, PooledCache) else None
        size = bucket(flat.most_new)
        num_rows = 0 if store is None else min(bucket(flat.num_rows), store.num_rows)
        if store is not None and num_rows * size <= _MOST_OF_ROWS:
            shape = Shape(size, _reach(flat.longest, cache), size, wants_hidden, num_rows=num_rows)
            plan = RowsPlan(flat, shape)
            outputs = self._launches.outputs(store, plan)
            if outputs is not None:
                logits, hidden = plan.flattened(outputs)
                if not self._are_rows_checked:
                    self._check_rows(logits, flat, cache)
                if not self._launches.is_refused:
                    return logits, hidden
        return self.lean.run_rows(flat, cache, wants_hidden)

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits; see `Forward`."""
        return self.lean.head(hidden)

    def keep(self, layers: Sequence[int]) -> Graphs:
        """Return one of some of its layers; see `LeanForward`."""
        return Graphs(self.lean.keep(layers), self._launches.launching)

    @property
    def num_launches(self) -> int:
        """How many shapes can be launched now."""
        return self._launches.num_made

    def _check(self, logits: Tensor, input_ids: Tensor, new: NewTokens, cache: KVCache) -> None:
        """Refuse all launches if the first has other logits [1, wanted, vocab] than what it stands for."""
        num_logits = min(logits.shape[1], new.num_new)
        expected, _ = self.lean.run(input_ids, new, cache, num_logits, wants_hidden=False)
        self._is_checked = True
        self._compare(logits[:, :num_logits], expected)

    def _check_rows(self, logits: Tensor, flat: FlatRows, cache: KVCache) -> None:
        """Refuse all launches if the first of rows has other logits [1, wanted, vocab] than what it stands for."""
        expected, _ = self.lean.run_rows(flat, cache, wants_hidden=False)
        self._are_rows_checked = True
        self._compare(logits, expected)

    def _compare(self, logits: Tensor, expected: Tensor) -> None:
        if differ(logits.float(), expected.float(), expected.dtype):
            self._launches.refuse("launched whole they compute something else")

    def _check_loop(
        self, outputs: Sequence[Tensor], token_ids: Sequence[int], cache: KVCache, form: ChainForm
    ) -> None:
        """Refuse all launches if the first loop of a form begins otherwise than its first forward says.

        The most probable tokens begin with one that is far from that; drawn ones are drawn from something else.
        """
        new = NewTokens(cache.lengths, len(token_ids))
        logits, _ = self.lean.run(torch.tensor([token_ids]), new, cache, 1, wants_hidden=False)
        scores = logits[0, -1, : form.vocab_size].float()
        self._checked_forms.add(form)
        is_single = logits.dtype == torch.float32
        if form.sampling.is_greedy:
            token = int(outputs[0].flatten()[0])
            limit = 0.01 if is_single else 0.5  # standard deviations: those of a tie are less
            is_wrong = bool(scores.max() - scores[token] > limit * scores.std())
        else:
            apart = (outputs[1][0, : len(scores)] - to_probs(scores, form.sampling)).abs().sum() / 2
            is_wrong = bool(apart > (0.05 if is_single else 0.3))  # a token at the edge of a filter may be in or out
        if is_wrong:
            self._launches.refuse("drafts launched whole begin with another token")


def _store_of(cache: KVCache) -> Store | None:
    """Return the memory of a text that launches may go on with; None of prompts, and of caches that take it along.

    A prompt runs alike whether or not its memory was another's before.
    """
    if not isinstance(cache, PooledCache) or cache.store is None or cache.store.num_rows > 1:
        return None
    return cache.store if cache.length > 0 else None


def _reach(num_slots: int, cache: KVCache) -> int:
    return min(reach_of(num_slots), cache.capacity)
