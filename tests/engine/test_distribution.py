"""Law 2: what the whole engine emits under sampling follows the target's own distribution.

Table models of 3 tokens, thousands of seeds, a chi-square test over whole outputs, and negative controls that the
same test must catch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.acceptance import judge
from autospec.engine.decoder import SpeculativeDecoder
from autospec.engine.drafters import DraftPlan, Needs, SmallModelDrafter, Trail
from autospec.engine.tree import TokenTree, chain

PROMPT = [0, 1, 2, 0, 1, 1, 2]
NUM_TOKENS, DRAFT_LENGTH = 4, 2
NUM_SEEDS, NUM_FEW_SEEDS = 1200, 800
PLAIN = SamplingParams(temperature=1.0)
FILTERED = SamplingParams(temperature=1.6, top_k=2, top_p=0.85)


@pytest.fixture(scope="module")
def target(table: Callable[..., Tensor], table_model: Any) -> Any:
    return table_model(table(0))


@pytest.fixture(scope="module")
def small(table: Callable[..., Tensor], table_model: Any) -> Any:
    return table_model(0.5 * table(0) + 0.5 * table(1))


@pytest.fixture(scope="module")
def laws(table: Callable[..., Tensor], exact_joint: Any) -> dict[SamplingParams, dict[tuple[int, ...], float]]:
    return {sampling: exact_joint(table(0), PROMPT, NUM_TOKENS, sampling) for sampling in (PLAIN, FILTERED)}


def generate(
    decoder: SpeculativeDecoder, config: SpecConfig | None, sampling: SamplingParams, num_seeds: int = NUM_SEEDS
) -> list[tuple[int, ...]]:
    prompts = [PROMPT] * num_seeds
    generations = decoder.generate(prompts, config=config, sampling=sampling, max_new_tokens=NUM_TOKENS)
    num_accepted = sum(generation.stats.num_accepted for generation in generations)
    assert config is None or 0 < num_accepted < sum(generation.stats.num_drafted for generation in generations)
    return [generation.token_ids for generation in generations]


@pytest.fixture(scope="module")
def plain(target: Any) -> dict[SamplingParams, list[tuple[int, ...]]]:
    decoder = SpeculativeDecoder(target)
    return {sampling: generate(decoder, None, sampling) for sampling in (PLAIN, FILTERED)}


@pytest.mark.parametrize("sampling", [PLAIN, FILTERED], ids=["plain", "filtered"])
def test_plain_sampling_follows_the_target(plain: Any, laws: Any, chi_square: Any, sampling: SamplingParams) -> None:
    counts = Counter(plain[sampling])
    assert len(counts) > 10
    assert chi_square(counts, laws[sampling]) > 1e-3


def test_the_engine_leaves_the_distribution_unchanged(
    case: Any, target: Any, small: Any, plain: Any, laws: Any, chi_square: Any
) -> None:
    decoder = SpeculativeDecoder(target, {case.drafter: case.make_drafter(small, target)})
    config = case.config(DRAFT_LENGTH)
    if case.accept_rule == "exact":  # the very outputs of plain sampling, seed by seed
        assert generate(decoder, config, PLAIN, NUM_FEW_SEEDS) == plain[PLAIN][:NUM_FEW_SEEDS]
    else:
        assert chi_square(Counter(generate(decoder, config, PLAIN)), laws[PLAIN]) > 1e-3


def test_temperature_top_k_and_top_p_act_on_both_sides(
    accepting: Any, target: Any, small: Any, laws: Any, chi_square: Any
) -> None:
    decoder = SpeculativeDecoder(target, {accepting.drafter: accepting.make_drafter(small, target)})
    outputs = generate(decoder, accepting.config(DRAFT_LENGTH), FILTERED, NUM_FEW_SEEDS)
    assert chi_square(Counter(outputs), laws[FILTERED]) > 1e-3


class OverconfidentDrafter(SmallModelDrafter):
    """The classic bug: takes the most probable tokens, but says that they were sampled."""

    def propose(self, max_length: int) -> TokenTree:
        rows = super().propose(max_length).draft_probs
        if rows is None:
            return chain(torch.empty(0, dtype=torch.int64))
        row = self._probs_here()
        return chain(row.argmax()[None], row[None])

    def _probs_here(self) -> Tensor:
        return self.model.logits[tuple(self.running.text[-2:])].softmax(dim=-1)  # type: ignore[attr-defined]


class PeekingDrafter:
    """Another bug: stops before a token because of that token, so that only likely ones are ever verified."""

    source, has_probs, shapes, needs = "peeking", True, ("chain",), Needs()

    def __init__(self, inner: SmallModelDrafter) -> None:
        self._inner = inner

    def start(self, prompt_ids: Sequence[int], plan: DraftPlan) -> None:
        self._inner.start(prompt_ids, plan)

    def commit(self, token_ids: Sequence[int], trail: Trail | None = None) -> None:
        self._inner.commit(token_ids)

    def propose(self, max_length: int) -> TokenTree:
        tree = self._inner.propose(max_length)
        if tree.draft_probs is None or tree.num_nodes == 0:
            return tree
        chosen = tree.draft_probs.gather(-1, tree.token_ids[:, None])[:, 0]
        length = int((chosen >= 0.4).long().cumprod(dim=-1).sum())
        return chain(tree.token_ids[:length], tree.draft_probs[:length])


@pytest.mark.parametrize("rule", ["rejection", "block"])
@pytest.mark.parametrize("bug", [OverconfidentDrafter, PeekingDrafter])
def test_the_test_catches_drafters_that_bias_the_output(
    bug: type[Any], rule: str, target: Any, small: Any, laws: Any, chi_square: Any
) -> None:
    drafter = bug(small, 3) if bug is OverconfidentDrafter else bug(SmallModelDrafter(small, 3))
    decoder = SpeculativeDecoder(target, {"bug": drafter})
    config = SpecConfig("bug", DRAFT_LENGTH, accept_rule=rule)
    assert chi_square(Counter(generate(decoder, config, PLAIN, NUM_FEW_SEEDS)), laws[PLAIN]) < 1e-6


class ReorderedDrafter(SmallModelDrafter):
    """Draws siblings without replacement and hands them over in another order."""

    def propose(self, max_length: int) -> TokenTree:
        tree = super().propose(max_length)
        if tree.draft_probs is None:
            return tree
        order = sorted(range(tree.num_nodes), key=lambda node: -tree.tokens[node])
        return TokenTree(tree.token_ids[order], tree.parents, tree.draft_probs)


@pytest.mark.parametrize("rule", ["multi_candidate", "traversal"])
@pytest.mark.parametrize("bug", [OverconfidentDrafter, ReorderedDrafter])
def test_the_test_catches_them_under_rules_for_trees(
    bug: type[Any], rule: str, target: Any, small: Any, laws: Any, chi_square: Any
) -> None:
    tree: dict[str, Any] = {"tree_shape": "static", "tree_paths": ((0,), (1,))}
    decoder = SpeculativeDecoder(target, {"bug": bug(small, 3)})
    config = SpecConfig("bug", DRAFT_LENGTH, accept_rule=rule, **tree)
    assert chi_square(Counter(generate(decoder, config, PLAIN, NUM_FEW_SEEDS)), laws[PLAIN]) < 1e-6


@pytest.mark.parametrize(("rule", "name"), [("exact", "uniforms"), ("coupled", "gumbels")])
def test_the_test_catches_biased_numbers_where_drafts_cannot_bias(
    rule: str, name: str, target: Any, small: Any, laws: Any, chi_square: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = getattr(judge, name)
    monkeypatch.setattr(judge, name, lambda *args: made(*args) ** 2)
    decoder = SpeculativeDecoder(target, {"draft": SmallModelDrafter(small, 3)})
    outputs = generate(decoder, SpecConfig("draft", DRAFT_LENGTH, accept_rule=rule), PLAIN, NUM_FEW_SEEDS)
    assert chi_square(Counter(outputs), laws[PLAIN]) < 1e-6


def test_exact_matching_forgives_even_those(target: Any, small: Any, plain: Any) -> None:
    decoder = SpeculativeDecoder(target, {"bug": OverconfidentDrafter(small, 3)})
    few = generate(decoder, SpecConfig("bug", DRAFT_LENGTH), PLAIN, NUM_FEW_SEEDS)
    assert few == plain[PLAIN][:NUM_FEW_SEEDS]
