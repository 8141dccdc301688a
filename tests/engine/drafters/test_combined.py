"""Combined drafters: which draft is used, how drafts are merged, and what every part is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.cache import KVCache
from autospec.engine.decoder import SpeculativeDecoder
from autospec.engine.drafters import (
    CombinedDrafter,
    Drafter,
    DraftPlan,
    Needs,
    NgramDrafter,
    RecyclingDrafter,
    SmallModelDrafter,
    Trail,
)
from autospec.engine.termination import Stopping
from autospec.engine.tree import TokenTree, chain
from autospec.errors import ConfigError

A, B, C, D, E = 10, 11, 12, 13, 14


class Scripted:
    """Proposes what it was made with, and remembers what it was told."""

    source, has_probs = "scripted", True

    def __init__(self, *token_ids: int, shapes: Sequence[str] = ("chain", "trie"), needs: Needs | None = None) -> None:
        self.tree = chain(torch.tensor(token_ids, dtype=torch.int64))
        self.shapes, self.needs = tuple(shapes), needs or Needs()
        self.told: list[Any] = []

    def start(self, prompt_ids: Sequence[int], plan: DraftPlan) -> None:
        self.plan, self.told = plan, []

    def propose(self, max_length: int) -> TokenTree:
        return self.tree

    def commit(self, token_ids: Sequence[int], trail: Trail | None = None) -> None:
        self.told.append((list(token_ids), trail))


def plan(combine: str = "fallback", sampling: SamplingParams | None = None, **knobs: Any) -> DraftPlan:
    config = SpecConfig("a+b", 8, combine=combine, **knobs)
    return DraftPlan(config, sampling or SamplingParams(), 0, 100, Stopping(config), KVCache(1))


def merged(*parts: Scripted, nodes: int = 100) -> list[tuple[int, ...]]:
    drafter = CombinedDrafter({str(number): part for number, part in enumerate(parts)}, "merge")
    drafter.start([A], plan("merge", tree_shape="trie", tree_nodes=nodes))
    tree = drafter.propose(4)
    found: list[tuple[int, ...]] = []
    for token, parent in zip(tree.token_ids.tolist(), tree.parents, strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return found


def test_the_first_that_has_a_draft_is_used_with_its_rows() -> None:
    nothing, first, second = Scripted(), Scripted(A), Scripted(B)
    first.tree = chain(torch.tensor([A]), torch.ones(1, 20) / 20)
    drafter = CombinedDrafter({"a": nothing, "b": first, "c": second}, "fallback")
    assert isinstance(drafter, Drafter)
    drafter.start([A], plan())
    assert drafter.propose(4) is first.tree
    first.tree = nothing.tree
    assert drafter.propose(4) is second.tree
    second.tree = nothing.tree
    assert drafter.propose(4).num_nodes == 0


def test_beginnings_of_all_drafts_come_before_the_end_of_any() -> None:
    # Weights: a 1, b 1/2, c 1/3 from the first; d 1, e 1/2 from the second. Equals in the order of the drafters.
    parts = Scripted(A, B, C), Scripted(D, E)
    assert merged(*parts) == [(A,), (D,), (A, B), (D, E), (A, B, C)]
    assert merged(*parts, nodes=3) == [(A,), (D,), (A, B)]


def test_where_drafts_agree_weights_add_up() -> None:
    # d e is in two drafts: d 2, e 1.
    assert merged(Scripted(A, B), Scripted(D, E), Scripted(D, E, C)) == [(D,), (A,), (D, E), (A, B), (D, E, C)]
    assert merged(Scripted(), Scripted(D)) == [(D,)]
    assert merged(Scripted(), Scripted()) == []


def test_merged_parts_draft_without_drawing() -> None:
    knobs: dict[str, Any] = {"tree_shape": "trie", "tree_width": 3, "tree_nodes": 9}
    sampling = SamplingParams(temperature=0.7, top_k=5)
    for shapes, shape, temperature in (
        (("chain", "beam", "trie"), "trie", 0.7),
        (("chain", "static", "beam", "best_first"), "best_first", 0.7),
        (("beam", "chain"), "beam", 0.7),
        (("chain", "static"), "chain", 0.0),
    ):
        part = Scripted(shapes=shapes)
        CombinedDrafter({"a": part, "b": Scripted()}, "merge").start([A], plan("merge", sampling, **knobs))
        assert (part.plan.config.drafter, part.plan.config.tree_shape) == ("a", shape)
        assert part.plan.sampling == SamplingParams(temperature=temperature, top_k=5)
        assert part.plan.config.tree_nodes == (16 if shape == "chain" else 9)


def test_shapes_are_those_that_all_parts_can_draft() -> None:
    chains, tries, statics = Scripted(shapes=("chain",)), Scripted(), Scripted(shapes=("static",))
    assert CombinedDrafter({"a": chains, "b": tries}, "fallback").shapes == ("chain",)
    assert CombinedDrafter({"a": statics, "b": tries}, "fallback").shapes == ()
    assert CombinedDrafter({"a": chains, "b": tries}, "merge").shapes == ("trie",)
    assert CombinedDrafter({"a": statics, "b": tries}, "merge").shapes == ()
    tries.has_probs = False
    assert CombinedDrafter({"a": chains}, "fallback").has_probs
    assert not CombinedDrafter({"a": chains, "b": tries}, "fallback").has_probs


def test_every_part_is_told_every_commit_and_what_it_asked_for() -> None:
    one = Scripted(needs=Needs((3, 1)))
    two = Scripted(needs=Needs((1, 5), logits=True))
    three = Scripted()
    drafter = CombinedDrafter({"a": one, "b": two, "c": three}, "fallback")
    assert (drafter.needs.hidden_layers, drafter.needs.logits) == ((3, 1, 5), True)
    drafter.start([A], plan())
    hidden = torch.tensor([[30.0, 31, 10, 11, 50, 51]])  # two numbers of each layer
    logits = torch.zeros(1, 4)
    drafter.commit([B], Trail(7, logits, hidden))
    drafter.commit([C, D])
    (_, first), (last, nothing) = one.told
    assert (first.position, first.logits, first.hidden.tolist()) == (7, None, [[30, 31, 10, 11]])
    assert (last, nothing) == ([C, D], None)
    assert two.told[0][1].hidden.tolist() == [[10, 11, 50, 51]]
    assert two.told[0][1].logits is logits
    assert three.told == [([B], None), ([C, D], None)]


# ----- in the decoder


@pytest.fixture
def decoder(table: Any, table_model: Any) -> SpeculativeDecoder:
    small = SmallModelDrafter(table_model(0.5 * table(0) + 0.5 * table(1)), 3)
    drafters = {"ngram": NgramDrafter(), "draft": small, "recycling": RecyclingDrafter()}
    return SpeculativeDecoder(table_model(table(0)), drafters)


PROMPT = [0, 1, 2, 0, 1, 1, 2]


@pytest.mark.parametrize(
    "config",
    [
        SpecConfig("ngram+draft", 3),
        SpecConfig("recycling+ngram+draft", 3),
        SpecConfig("ngram+draft", 3, combine="merge", tree_shape="trie", tree_nodes=7),
        SpecConfig("recycling+draft", 3, combine="merge", tree_shape="trie", tree_nodes=7),
    ],
)
def test_combinations_run_by_name(decoder: SpeculativeDecoder, config: SpecConfig) -> None:
    plain = decoder.generate([PROMPT], max_new_tokens=20)[0]
    output = decoder.generate([PROMPT], config=config, max_new_tokens=20)[0]
    assert output.token_ids == plain.token_ids
    assert 0 < output.stats.num_accepted < output.stats.num_drafted


def test_what_cannot_be_combined_is_refused(decoder: SpeculativeDecoder) -> None:
    for config, message in (
        (SpecConfig("ngram+darft", 4), r"must be one of \['draft', 'ngram', 'recycling'\], but got 'darft'"),
        (SpecConfig("ngram+draft", 4, stop_rule="confidence"), "'ngram.draft' has none"),
        (
            SpecConfig("ngram+draft", 4, tree_shape="beam"),
            r"'ngram.draft' drafts the shapes \['chain'\], but got 'beam'",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            decoder.check(config)
    with pytest.raises(ConfigError, match=r"must be without \+, but got \['a\+b'\]"):
        SpeculativeDecoder(decoder.target, {"a+b": NgramDrafter()})
