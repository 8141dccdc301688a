"""The small-model drafter on table models: what it feeds, what it draws, and where it stops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.cache import KVCache
from autospec.engine.drafters import Drafter, DraftPlan, SmallModelDrafter
from autospec.engine.sampling import Use, pick, to_probs, uniform
from autospec.engine.termination import Stopping
from autospec.engine.tree import TokenTree

GREEDY, SAMPLED = SamplingParams(), SamplingParams(temperature=1.0)


def cycle(vocab_size: int = 3) -> Tensor:
    """Rows in which token + 1 follows every token with probability 0.9."""
    rows = torch.full((vocab_size,) * 3, 0.1 / (vocab_size - 1), dtype=torch.float64)
    for token in range(vocab_size):
        rows[:, token, (token + 1) % vocab_size] = 0.9
    return rows


@pytest.fixture
def model(table_model: Any) -> Any:
    return table_model(cycle())


def plan(config: SpecConfig, sampling: SamplingParams, seed: int, capacity: int = 100) -> DraftPlan:
    return DraftPlan(config, sampling, seed, capacity, Stopping(config), KVCache(1))


def start(
    model: Any, prompt: list[int], sampling: SamplingParams = GREEDY, capacity: int = 100, **knobs: Any
) -> SmallModelDrafter:
    drafter = SmallModelDrafter(model, 3)
    drafter.start(prompt, plan(SpecConfig("draft", 8, **knobs), sampling, seed=5, capacity=capacity))
    model.fed.clear()
    return drafter


def ids(tree: TokenTree) -> list[int]:
    return tree.token_ids.tolist()


def test_a_greedy_draft_is_the_model_s_own_continuation(model: Any) -> None:
    drafter = start(model, [0, 1])
    tree = drafter.propose(4)
    assert ids(tree) == [2, 0, 1, 2]
    assert tree.draft_probs is None  # nothing was drawn: one-hot
    assert model.fed == [[0, 1], [2], [0], [1]]  # the last token of a draft is never fed


def test_a_sampled_draft_carries_the_rows_it_was_drawn_from(table: Callable[..., Tensor], table_model: Any) -> None:
    sampling = SamplingParams(temperature=0.7, top_p=0.9)
    drafter = start(table_model(table(3)), [0, 1], sampling)
    tree = drafter.propose(3)
    text = [0, 1]
    for depth, token in enumerate(ids(tree)):
        row = to_probs(table(3)[text[-2], text[-1]].log().float(), sampling)
        torch.testing.assert_close(tree.draft_probs[depth], row)
        assert token == pick(row, torch.tensor(uniform(5, 2 + depth, Use.DRAFT, depth), dtype=torch.float64))
        text.append(token)
    assert len(text) == 5


def test_full_acceptance_leaves_two_tokens_to_feed(model: Any) -> None:
    drafter = start(model, [0, 1])
    drafter.propose(3)
    model.fed.clear()
    drafter.commit([2, 0, 1, 2])  # the whole draft and the bonus
    assert ids(drafter.propose(2)) == [0, 1]
    assert model.fed == [[1, 2], [0]]  # the last drafted token was never fed


@pytest.mark.parametrize(("committed", "draft"), [([1], [2, 0]), ([2, 2], [0, 1]), ([2, 0, 0], [1, 2])])
def test_after_a_rejection_only_the_correction_is_fed(model: Any, committed: list[int], draft: list[int]) -> None:
    drafter = start(model, [0, 1])
    drafter.propose(3)
    model.fed.clear()
    drafter.commit(committed)
    assert ids(drafter.propose(2)) == draft
    assert model.fed == [committed[-1:], draft[:1]]


def test_a_commit_that_leaves_the_draft_early_keeps_only_what_agrees(model: Any) -> None:
    drafter = start(model, [0, 1])
    assert ids(drafter.propose(4)) == [2, 0, 1, 2]
    model.fed.clear()
    drafter.commit([2, 2, 1, 1])  # leaves the draft at its second token, and goes on
    assert ids(drafter.propose(1)) == [2]
    assert model.fed == [[2, 1, 1]]


def test_steps_in_which_it_was_not_asked_are_caught_up_in_one_forward(model: Any) -> None:
    drafter = start(model, [0, 1])
    drafter.propose(2)
    model.fed.clear()
    drafter.commit([2, 2])
    drafter.commit([1])
    drafter.commit([1, 0])
    assert model.fed == []
    assert ids(drafter.propose(1)) == [1]
    assert model.fed == [[2, 1, 1, 0]]


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_asking_twice_gives_the_same_draft(
    table: Callable[..., Tensor], table_model: Any, sampling: SamplingParams
) -> None:
    drafter = start(table_model(table(3)), [0, 1, 1], sampling)
    first, longer = drafter.propose(3), drafter.propose(5)
    assert ids(longer)[:3] == ids(first)
    assert ids(drafter.propose(3)) == ids(first)


def test_confidence_keeps_the_token_that_ends_the_draft(table_model: Any) -> None:
    # Behind (1, 2) the model is unsure: 0.4 for its best token. Everywhere else 0.9.
    rows = cycle()
    rows[1, 2] = torch.tensor([0.4, 0.3, 0.3])
    model = table_model(rows)
    drafter = start(model, [0, 0], stop_rule="confidence", stop_threshold=0.5)
    assert ids(drafter.propose(6)) == [1, 2, 0]
    drafter = start(model, [0, 0], stop_rule="confidence", stop_threshold=0.4 - 1e-3)
    assert len(ids(drafter.propose(6))) == 6
    drafter = start(model, [0, 0], stop_rule="confidence", stop_threshold=1.0)
    assert ids(drafter.propose(6)) == [1]


def test_confidence_under_sampling_looks_at_the_filtered_probability_of_the_drawn_token(table_model: Any) -> None:
    model = table_model(cycle())
    certain = SamplingParams(temperature=1.0, top_k=1)  # one token is left, with probability 1
    drafter = start(model, [0, 0], certain, stop_rule="confidence", stop_threshold=0.99)
    assert len(ids(drafter.propose(4))) == 4
    for seed in range(50):
        drafter = SmallModelDrafter(model, 3)
        config = SpecConfig("draft", 8, stop_rule="confidence", stop_threshold=0.5)
        drafter.start([0, 0], plan(config, SAMPLED, seed=seed))
        tree = drafter.propose(8)
        chosen = tree.draft_probs.gather(-1, tree.token_ids[:, None])[:, 0]
        assert (chosen[:-1] >= 0.5).all()
        assert chosen[-1] < 0.5 or tree.num_nodes == 8


def test_tokens_beyond_the_target_s_vocabulary_are_cut(table_model: Any) -> None:
    # The draft model has two padded tokens, and would love to draft one of them.
    rows = torch.full((5, 5, 5), 0.01, dtype=torch.float64)
    rows[:, :, 4] = 0.9
    rows[:, :, 2] = 0.07
    for sampling in (GREEDY, SAMPLED):
        tree = start(table_model(rows), [0, 1], sampling).propose(4)
        assert max(ids(tree)) <= 2
        if tree.draft_probs is not None:
            assert tree.draft_probs.shape == (4, 3)
            torch.testing.assert_close(tree.draft_probs.sum(dim=-1), torch.ones(4))
    assert ids(start(table_model(rows), [0, 1]).propose(3)) == [2, 2, 2]


def test_tokens_the_draft_model_does_not_have_are_never_drafted(table_model: Any) -> None:
    rows = torch.full((2, 2, 2), 0.5, dtype=torch.float64)
    for seed in range(20):
        drafter = SmallModelDrafter(table_model(rows), 3)
        drafter.start([0, 1], plan(SpecConfig("draft", 8), SAMPLED, seed=seed))
        tree = drafter.propose(4)
        assert max(ids(tree)) <= 1
        assert tree.draft_probs[:, 2].tolist() == [0.0] * 4


def test_drafts_end_at_the_draft_model_s_context(table_model: Any) -> None:
    model = table_model(cycle(), context_length=6)
    drafter = start(model, [0, 1, 2, 0])
    assert ids(drafter.propose(8)) == [1, 2, 0]  # two fit behind the text, and the last is never fed
    drafter.commit([1, 2, 0])
    assert drafter.propose(8).num_nodes == 0
    drafter.commit([1])
    assert drafter.propose(8).num_nodes == 0


def test_drafts_end_at_the_usable_length_of_the_draft_model(table_model: Any) -> None:
    model = table_model(cycle())
    model.usable_length = 5
    assert start(model, [0, 1, 2, 0]).propose(8).num_nodes == 2


def test_nothing_is_drafted_where_nothing_is_asked_for(model: Any) -> None:
    drafter = start(model, [0, 1])
    assert drafter.propose(0).num_nodes == 0
    assert model.fed == []


def test_it_is_a_drafter_with_probabilities(model: Any) -> None:
    drafter = SmallModelDrafter(model, 3)
    assert isinstance(drafter, Drafter)
    assert drafter.has_probs
    assert drafter.source == "table"
