"""Mean accepted tokens of small trees, worked out by hand, against many steps of the whole engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.drafters import Drafter, DraftPlan, Needs, SmallModelDrafter, Trail
from autospec.engine.session import Job, Session
from autospec.engine.tree import TokenTree

TARGET, DRAFT = (0.5, 0.3, 0.2), (0.2, 0.3, 0.5)  # the same behind every text, so that steps are independent
NUM_TOKENS = 3000
PATHS = ((0,), (1,), (0, 0), (0, 0, 0))


class OneTree:
    """Tokens 0 and 1 behind the root; behind 0 another 0, and a 1 behind that; behind 1 a 0. All as certain."""

    source, has_probs, shapes, needs = "tree", False, ("static",), Needs()

    def start(self, prompt_ids: Sequence[int], plan: DraftPlan) -> None: ...

    def propose(self, max_length: int) -> TokenTree:
        return TokenTree(torch.tensor([0, 1, 0, 0, 1]), (-1, -1, 0, 1, 2))

    def commit(self, token_ids: Sequence[int], trail: Trail | None = None) -> None: ...


def check_mean(table_model: Any, drafter: Drafter, config: SpecConfig, at_least: Sequence[float]) -> None:
    """Compare with P(at least 1 accepted), P(at least 2), ...; their sum is the mean."""
    rows = torch.tensor(TARGET, dtype=torch.float64).expand(3, 3, 3)
    target = table_model(rows, context_length=2 * NUM_TOKENS)
    session = Session(target, drafter, Job((0, 1), config, SamplingParams(temperature=1.0), 1, NUM_TOKENS))
    session.prefill()
    session.start_drafter()
    while session.room > config.draft_length:  # from there on drafts would be cut
        session.step()
    mean = sum(at_least)
    second = sum((2 * number - 1) * chance for number, chance in enumerate(at_least, start=1))
    error = math.sqrt((second - mean**2) / session.stats.num_steps)
    assert error < 0.04
    assert abs(session.stats.num_accepted / session.stats.num_steps - mean) < 3.5 * error


@pytest.mark.parametrize("rule", ["exact", "multi_candidate", "traversal"])
def test_certain_children(table_model: Any, rule: str) -> None:
    # The target says 0 with 0.5 and 1 with 0.3. Depth 1: 0.5 + 0.3. Depth 2: 0 0 with 0.25 and 1 0 with 0.15.
    # Depth 3: 0 0 1 with 0.075. Every rule keeps what the target would have said: 1.275 tokens.
    config = SpecConfig("tree", 3, accept_rule=rule, tree_shape="static", tree_paths=(*PATHS, (1, 0)))
    check_mean(table_model, OneTree(), config, [0.8, 0.4, 0.075])


@pytest.mark.parametrize(("replaced", "first"), [(False, 0.82), (True, 0.76)])
def test_drawn_children(table_model: Any, replaced: bool, first: float) -> None:
    # A drawn token is kept with min(0.5, 0.2) + min(0.3, 0.3) + min(0.2, 0.5) = 0.7. Rejected is only token 2, and
    # then the target wants what the drafter gave too little of: token 0 for certain. The sibling, drawn from what is
    # left of the drafter's row, (0.2, 0.3) / 0.5, is it with 0.4; drawn from the whole row, with 0.2. So one of the
    # two is kept with 0.7 + 0.3 * 0.4 = 0.82, or 0.7 + 0.3 * 0.2 = 0.76. Only the first has children.
    draft = table_model(torch.tensor(DRAFT, dtype=torch.float64).expand(3, 3, 3), context_length=2 * NUM_TOKENS)
    config = SpecConfig(
        "draft",
        3,
        accept_rule="multi_candidate",
        with_replacement=replaced,
        tree_shape="static",
        tree_paths=PATHS,
    )
    check_mean(table_model, SmallModelDrafter(draft, 3), config, [first, 0.49, 0.343])


def test_a_chain_of_drawn_tokens(table_model: Any) -> None:
    # 0.7 of each that is reached: 0.7 + 0.49 + 0.343.
    draft = table_model(torch.tensor(DRAFT, dtype=torch.float64).expand(3, 3, 3), context_length=2 * NUM_TOKENS)
    config = SpecConfig("draft", 3, accept_rule="rejection")
    check_mean(table_model, SmallModelDrafter(draft, 3), config, [0.7, 0.49, 0.343])
