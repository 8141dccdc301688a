"""How drafts are drawn and what they carry; the laws of growth stand in test_laws.py and test_distribution.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import permutations, product

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.growth import Growing, Growth, grow
from autospec.engine.sampling import Use, gumbels, key_of, to_probs
from autospec.engine.termination import Stopping
from autospec.engine.tree import TokenTree

ROW = [0.5, 0.3, 0.15, 0.05]
SAMPLED = SamplingParams(temperature=1.0)
PAIR = ((0,), (1,))


class Fixed:
    """The same row behind every node, or one that depends on the node's token."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def expand(self, tree: Growing, nodes: Sequence[int]) -> Tensor:
        return self.rows[[0 if node < 0 else 1 + tree.token_ids[node] for node in nodes]].log()


FIXED = Fixed(torch.tensor([ROW] * 5))
OWN = Fixed(
    torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1], [0.25] * 4, [0.1, 0.6, 0.2, 0.1]])
)


def draft(
    config: SpecConfig, seed: int = 0, position: int = 7, sampling: SamplingParams = SAMPLED, expander: Fixed = FIXED
) -> TokenTree:
    return grow(expander, Growth(config, sampling, seed, position, config.draft_length, Stopping(config)))


def tree_config(rule: str, paths: Sequence[tuple[int, ...]], replaced: bool = False) -> SpecConfig:
    depth = max(map(len, paths))
    return SpecConfig(
        "draft", depth, accept_rule=rule, tree_shape="static", tree_paths=tuple(paths), with_replacement=replaced
    )


@pytest.mark.parametrize("replaced", [False, True], ids=["without", "with"])
def test_siblings_are_drawn_in_order(replaced: bool) -> None:
    config = tree_config("multi_candidate", PAIR, replaced)
    counts = Counter(tuple(draft(config, seed).token_ids.tolist()) for seed in range(4000))
    if replaced:
        law = {(a, b): ROW[a] * ROW[b] for a, b in product(range(4), repeat=2)}
    else:
        law = {(a, b): ROW[a] * ROW[b] / (1.0 - ROW[a]) for a, b in permutations(range(4), 2)}
    assert set(counts) <= set(law)
    assert chisquare([counts[pair] for pair in law], [4000 * p for p in law.values()]).pvalue > 1e-3


def test_a_gap_in_the_ranks_does_not_lose_the_first_draw() -> None:
    config = tree_config("multi_candidate", ((1,), (3,)))
    counts = Counter(int(draft(config, seed).token_ids[0]) for seed in range(2000))
    assert chisquare([counts[token] for token in range(4)], [2000 * p for p in ROW]).pvalue > 1e-3


@pytest.mark.parametrize("replaced", [False, True], ids=["without", "with"])
def test_draws_behind_different_nodes_and_in_different_steps_are_independent(replaced: bool) -> None:
    config = tree_config("traversal", (*PAIR, (0, 0), (1, 0)), replaced)
    cells: Counter[tuple[int, int]] = Counter()
    again: Counter[tuple[int, int]] = Counter()
    for seed in range(2000):
        tree = draft(config, seed)
        cells[tuple(tree.token_ids[2:].tolist())] += 1  # type: ignore[index]
        # The next step drafts the second position again, now as its first.
        again[int(tree.token_ids[2]), int(draft(config, seed, position=8).token_ids[0])] += 1
    law = {(a, b): 2000 * ROW[a] * ROW[b] for a, b in product(range(4), repeat=2)}
    for counts in (cells, again):
        assert chisquare([counts[pair] for pair in law], list(law.values())).pvalue > 1e-3


def test_drawn_siblings_carry_the_row_that_they_were_drawn_from() -> None:
    tree = draft(tree_config("traversal", (*PAIR, (0, 0), (0, 1), (1, 0))), expander=OWN)
    assert tree.draft_probs is not None
    for node, parent in enumerate(tree.parents):
        row = OWN.rows[0 if parent < 0 else 1 + int(tree.token_ids[parent])]
        torch.testing.assert_close(tree.draft_probs[node], row)
    assert len(set(tree.token_ids[:2].tolist())) == 2


def test_no_more_is_drawn_without_replacement_than_there_is() -> None:
    one = Fixed(torch.tensor([[0.0, 0.6, 0.4, 0.0]] * 5))
    tree = draft(tree_config("multi_candidate", ((0,), (1,), (2,), (2, 0), (0, 0))), expander=one)
    assert tree.parents == (-1, -1, 0)
    assert set(tree.token_ids[:2].tolist()) == {1, 2}


@pytest.mark.parametrize("rule", ["exact", "typical", "multi_candidate"])
def test_greedy_drafters_take_the_most_probable_children(rule: str) -> None:
    tree = draft(tree_config(rule, PAIR), sampling=SamplingParams())
    assert (tree.token_ids.tolist(), tree.draft_probs) == ([0, 1], None)


def test_coupled_children_are_those_the_noise_favours() -> None:
    noise = gumbels([key_of(3, 7, Use.NOISE), key_of(3, 8, Use.NOISE)], 4)
    tree = draft(tree_config("coupled", (*PAIR, (0, 0), (1, 0))), seed=3)
    scores = torch.tensor(ROW).log() + noise
    assert tree.token_ids.tolist() == [*scores[0].topk(2).indices.tolist(), *[int(scores[1].argmax())] * 2]
    chain = draft(SpecConfig("draft", 2, accept_rule="coupled"), seed=3)
    assert chain.token_ids.tolist() == scores.argmax(dim=-1).tolist()


@pytest.mark.parametrize("sampling", [SAMPLED, SamplingParams()], ids=["sampled", "greedy"])
@pytest.mark.parametrize("shape", ["chain", "static", "beam", "best_first"])
def test_what_the_drafter_thought_is_carried_where_the_rule_reads_it(shape: str, sampling: SamplingParams) -> None:
    paths = {"tree_paths": (*PAIR, (0, 0), (1, 0))} if shape == "static" else {}
    config = SpecConfig("draft", 2, tree_shape=shape, tree_nodes=4, accept_rule="contrastive", **paths)  # type: ignore[arg-type]
    tree = draft(config, sampling=sampling, expander=OWN)
    assert tree.num_nodes == (2 if shape == "chain" else 4)
    assert tree.draft_logits is not None
    for node, parent in enumerate(tree.parents):
        row = OWN.rows[0 if parent < 0 else 1 + int(tree.token_ids[parent])]
        torch.testing.assert_close(tree.draft_logits[node].softmax(dim=-1), row)
    assert draft(SpecConfig("draft", 2), sampling=sampling).draft_logits is None


def test_filters_act_on_what_is_drawn() -> None:
    sampling = SamplingParams(temperature=2.0, top_k=2)
    tree = draft(tree_config("multi_candidate", ((0,), (1,), (2,))), sampling=sampling)
    assert sorted(tree.token_ids.tolist()) == [0, 1]
    assert tree.draft_probs is not None
    torch.testing.assert_close(tree.draft_probs[0], to_probs(torch.tensor(ROW).log(), sampling))
