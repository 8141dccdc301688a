"""Drafts of drafters that do not keep to what was asked: an error that names the drafter, never a wrong text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.decoder import SpeculativeDecoder
from autospec.engine.drafters import DraftPlan, Needs, Trail
from autospec.engine.tree import TokenTree, chain
from autospec.errors import DrafterError

VOCAB = 3


class Stubborn:
    """Proposes one draft, whatever it is asked for."""

    source, has_probs, shapes, needs = "stubborn", True, ("chain", "best_first"), Needs()

    def __init__(self, draft: Any) -> None:
        self.draft = draft

    def start(self, prompt_ids: Sequence[int], plan: DraftPlan) -> None: ...

    def propose(self, max_length: int) -> Any:
        return self.draft

    def commit(self, token_ids: Sequence[int], trail: Trail | None = None) -> None: ...


def ids(*tokens: int) -> Tensor:
    return torch.tensor(tokens, dtype=torch.int64)


def generate(table: Any, table_model: Any, draft: Any, **knobs: Any) -> Any:
    decoder = SpeculativeDecoder(table_model(table(0)), {"mine": Stubborn(draft)})
    sampling = SamplingParams(temperature=1.0)
    return decoder.generate([[0, 1]], config=SpecConfig("mine", 2, **knobs), sampling=sampling, max_new_tokens=12)


WIDE = TokenTree(ids(0, 1), (-1, -1))
BEST_FIRST = {"tree_shape": "best_first", "tree_nodes": 3}


@pytest.mark.parametrize(
    ("draft", "knobs", "message"),
    [
        (None, {}, "must propose a `TokenTree`, but proposed None"),
        ([1, 2], {}, r"must propose a `TokenTree`, but proposed \[1, 2\]"),
        (chain(ids(0, 1, 2)), {}, "may draft at most 2 tokens along a path here, but drafted 3"),
        (chain(ids(0, 1, 2)), BEST_FIRST, "may draft at most 2 tokens along a path here, but drafted 3"),
        (WIDE, {}, r"must draft a chain, but drafted a tree with the parents \(-1, -1\)"),
        (TokenTree(ids(*[0] * 6), (-1,) * 6), BEST_FIRST, "may draft at most 5 nodes here, but drafted 6"),
        (chain(ids(0, VOCAB)), {}, r"must lie in 0 \.\. 2, but they reach from 0 to 3"),
        (chain(ids(-1)), {}, r"must lie in 0 \.\. 2, but they reach from -1 to -1"),
        (chain(torch.tensor([1.0])), {}, r"must be of type torch\.int64, but are torch\.float32"),
        (chain(ids(0), torch.ones(1, 4) / 4), {}, r"draft_probs of .* of shape \(1, 3\), but are \(1, 4\)"),
        (
            chain(ids(0), torch.full((1, VOCAB), math.nan)),
            {},
            r"must be rows that sum to 1 .* but they sum to \[nan\]",
        ),
        (chain(ids(0), torch.zeros(1, VOCAB)), {}, r"must be rows that sum to 1 .* but they sum to \[0\.0\]"),
        (chain(ids(0), torch.full((1, VOCAB), 2.0)), {}, r"must be rows that sum to 1 .* but they sum to \[6\.0\]"),
        (chain(ids(0), torch.tensor([[0.0, 0.5, 0.5]])), {}, r"above 0 for the token .* give their tokens \[0\.0\]"),
        (
            TokenTree(ids(0), (-1,), draft_logits=torch.ones(1, 2)),
            {},
            r"draft_logits of .* of shape \(1, 3\), but are \(1, 2\)",
        ),
    ],
)
@pytest.mark.parametrize("rule", ["exact", "multi_candidate"])
def test_a_draft_that_cannot_be_verified_names_its_drafter(
    rule: str, draft: Any, knobs: dict[str, Any], message: str, table: Any, table_model: Any
) -> None:
    with pytest.raises(DrafterError, match=message) as caught:
        generate(table, table_model, draft, accept_rule=rule, **knobs)
    assert "drafter 'mine'" in str(caught.value)


def test_a_draft_at_every_limit_is_taken(table: Any, table_model: Any) -> None:
    # Two levels and five nodes, with the tokens at both ends of the vocabulary; near the end it is too deep.
    full = TokenTree(ids(0, 2, 1, 0, 2), (-1, -1, 0, 0, 1))
    with pytest.raises(DrafterError, match="at most 1 tokens along a path here, but drafted 2"):
        generate(table, table_model, full, **BEST_FIRST)
    flat = TokenTree(ids(0, 2, 1), (-1, -1, -1))
    with pytest.raises(DrafterError, match="at most 0 tokens along a path here, but drafted 1"):
        generate(table, table_model, flat, **BEST_FIRST)


@pytest.mark.parametrize("combine", ["fallback", "merge"])
def test_of_several_drafters_the_one_is_named(combine: str, table: Any, table_model: Any) -> None:
    parts = {"good": Stubborn(chain(ids())), "bad": Stubborn([1])}
    for part in parts.values():
        part.shapes = ("chain", "trie")
    decoder = SpeculativeDecoder(table_model(table(0)), parts)
    config = SpecConfig("good+bad", 2, combine=combine, tree_shape="trie" if combine == "merge" else "chain")
    with pytest.raises(DrafterError, match=r"drafter 'bad' must propose a `TokenTree`, but proposed \[1\]"):
        decoder.generate([[0, 1]], config=config)


def test_a_drawn_draft_is_not_merged(table: Any, table_model: Any) -> None:
    drawn = Stubborn(chain(ids(0), torch.ones(1, VOCAB) / VOCAB))
    decoder = SpeculativeDecoder(table_model(table(0)), {"good": Stubborn(chain(ids())), "drawn": drawn})
    config = SpecConfig("good+drawn", 2, combine="merge", tree_shape="trie")
    with pytest.raises(DrafterError, match=r"must not be drawn, but drafter 'drawn' gave `draft_probs`"):
        decoder.generate([[0, 1]], config=config)


class Failing(Stubborn):
    """Raises in one of its methods."""

    def __init__(self, method: str, error: Exception) -> None:
        super().__init__(chain(ids(0)))
        setattr(self, method, self._fail)
        self.error = error

    def _fail(self, *arguments: Any) -> Any:
        raise self.error


@pytest.mark.parametrize("method", ["start", "propose", "commit"])
def test_a_drafter_that_raises_is_named_with_its_method(method: str, table: Any, table_model: Any) -> None:
    decoder = SpeculativeDecoder(table_model(table(0)), {"mine": Failing(method, KeyError("left\nright"))})
    with pytest.raises(DrafterError, match=rf"drafter 'mine' failed in `{method}`: KeyError: ") as caught:
        decoder.generate([[0, 1]], config=SpecConfig("mine", 2), max_new_tokens=12)
    assert isinstance(caught.value.__cause__, KeyError)
    decoder.drafters["mine"] = Failing(method, DrafterError("said so itself"))
    with pytest.raises(DrafterError, match=r"^said so itself$"):
        decoder.generate([[0, 1]], config=SpecConfig("mine", 2), max_new_tokens=12)


def test_a_tree_that_cannot_be_made_is_its_drafter_s_fault(table: Any, table_model: Any) -> None:
    class Cyclic(Stubborn):
        def propose(self, max_length: int) -> Any:
            return TokenTree(ids(0, 1), (0, 0))

    decoder = SpeculativeDecoder(table_model(table(0)), {"mine": Cyclic(None)})
    with pytest.raises(DrafterError, match="drafter 'mine' failed in `propose`: AssertionError"):
        decoder.generate([[0, 1]], config=SpecConfig("mine", 2), max_new_tokens=12)


def test_parents_may_be_a_list() -> None:
    assert TokenTree(ids(0, 1), [-1, 0]).is_chain  # type: ignore[arg-type]
