"""Acceptance through the whole engine, on table models: what every rule promises, and bugs that must be caught.

The chi-square test of every lossless rule over drafters, shapes and stopping rules stands in test_distribution.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from autospec.config import SamplingParams, SpecConfig
from autospec.engine import growth
from autospec.engine.acceptance import judge
from autospec.engine.decoder import SpeculativeDecoder
from autospec.engine.drafters import DraftPlan, NgramDrafter, SmallModelDrafter
from autospec.engine.tree import TokenTree
from autospec.errors import ConfigError
from autospec.records import Generation
from autospec.rules import ACCEPT_RULES

PROMPT = [0, 1, 2, 0, 1, 1, 2]
NUM_TOKENS, NUM_SEEDS, NUM_FEW = 4, 800, 60
PLAIN, GREEDY = SamplingParams(temperature=1.0), SamplingParams()
TREE: dict[str, Any] = {"tree_shape": "static", "tree_paths": ((0,), (1,), (0, 0), (0, 1), (1, 0))}
CHAIN_RULES = [SpecConfig("small", 2, accept_rule=rule) for rule in ("rejection", "block", "coupled")]
TREE_RULES = [
    SpecConfig("small", 2, accept_rule=rule, with_replacement=replaced, **TREE)
    for rule in ("multi_candidate", "traversal")
    for replaced in (False, True)
]
LOSSY = [name for name, facts in ACCEPT_RULES.items() if not facts.is_lossless]


def short(config: SpecConfig) -> str:
    return config.short().replace(" ", "-")


@pytest.fixture(scope="module")
def target(table: Callable[..., Tensor], table_model: Any) -> Any:
    return table_model(table(0))


@pytest.fixture(scope="module")
def small(table: Callable[..., Tensor], table_model: Any) -> Any:
    return table_model(0.5 * table(0) + 0.5 * table(1))


@pytest.fixture(scope="module")
def law(table: Callable[..., Tensor], exact_joint: Any) -> dict[tuple[int, ...], float]:
    wanted: dict[tuple[int, ...], float] = exact_joint(table(0), PROMPT, NUM_TOKENS, PLAIN)
    return wanted


def generate(
    target: Any, drafter: Any, config: SpecConfig, num_seeds: int = NUM_SEEDS, num_tokens: int = NUM_TOKENS
) -> list[Generation]:
    decoder = SpeculativeDecoder(target, {"small": drafter})
    return decoder.generate([PROMPT] * num_seeds, config=config, sampling=PLAIN, max_new_tokens=num_tokens)


def counts_of(outputs: list[Generation]) -> Counter[tuple[int, ...]]:
    return Counter(output.token_ids for output in outputs)


@pytest.mark.parametrize("config", [*CHAIN_RULES, *TREE_RULES], ids=short)
@pytest.mark.parametrize("temperature", [0.0, 2.5])
def test_a_temperature_of_its_own_for_the_drafter_changes_no_output(
    config: SpecConfig, temperature: float, target: Any, small: Any, law: Any, chi_square: Any
) -> None:
    outputs = generate(target, SmallModelDrafter(small, 3), replace(config, draft_temperature=temperature))
    assert chi_square(counts_of(outputs), law) > 1e-3


class MisstatingDrafter(SmallModelDrafter):
    """A bug: the rows it gives are sharper than those it draws from."""

    def propose(self, max_length: int) -> TokenTree:
        tree = super().propose(max_length)
        if tree.draft_probs is None:
            return tree
        rows = tree.draft_probs**2
        return replace(tree, draft_probs=rows / rows.sum(dim=-1, keepdim=True))


class TopDrafter(SmallModelDrafter):
    """The classic bug in trees: takes the most probable children, but says that they were drawn."""

    def start(self, prompt_ids: Any, plan: DraftPlan) -> None:
        super().start(prompt_ids, replace(plan, config=replace(plan.config, accept_rule="exact")))

    def propose(self, max_length: int) -> TokenTree:
        tree = super().propose(max_length)
        texts = {-1: self.running.text}
        for node, parent in enumerate(tree.parents):
            texts[node] = [*texts[parent], int(tree.token_ids[node])]
        rows = [self.model.logits[tuple(texts[parent][-2:])] for parent in tree.parents]  # type: ignore[attr-defined]
        return replace(tree, draft_probs=torch.stack(rows).softmax(dim=-1)) if rows else tree


@pytest.mark.parametrize("config", [*CHAIN_RULES[:2], *TREE_RULES], ids=short)
def test_rows_that_were_not_drawn_from_are_caught(
    config: SpecConfig, target: Any, small: Any, law: Any, chi_square: Any
) -> None:
    outputs = generate(target, MisstatingDrafter(small, 3), config)
    assert chi_square(counts_of(outputs), law) < 1e-5


@pytest.mark.parametrize("config", TREE_RULES, ids=short)
def test_most_probable_children_with_softmax_rows_are_caught(
    config: SpecConfig, target: Any, small: Any, law: Any, chi_square: Any
) -> None:
    assert chi_square(counts_of(generate(target, TopDrafter(small, 3), config)), law) < 1e-6


def test_noise_shared_by_all_positions_is_caught(
    target: Any, small: Any, law: Any, chi_square: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = judge.key_of
    for room in (judge, growth):
        monkeypatch.setattr(room, "key_of", lambda seed, position, use, draw=0: real(seed, 0, use, draw))
    outputs = generate(target, SmallModelDrafter(small, 3), CHAIN_RULES[2])
    assert chi_square(counts_of(outputs), law) < 1e-6


def test_coupled_output_does_not_depend_on_the_drafter(target: Any, small: Any) -> None:
    coupled = CHAIN_RULES[2]
    first = generate(target, SmallModelDrafter(small, 3), coupled, NUM_FEW)
    for drafter, config in (
        (SmallModelDrafter(target, 3), coupled),
        (NgramDrafter(), coupled),
        (SmallModelDrafter(small, 3), replace(coupled, **TREE)),
        (SmallModelDrafter(small, 3), replace(coupled, tree_shape="best_first", tree_nodes=5)),
    ):
        outputs = generate(target, drafter, config, NUM_FEW)
        assert [one.token_ids for one in outputs] == [one.token_ids for one in first]


def num_accepted(target: Any, drafter: Any, config: SpecConfig) -> int:
    return sum(one.stats.num_accepted for one in generate(target, drafter, config, 200))


@pytest.mark.parametrize("shape", [{}, {**TREE, "tree_paths": ((0,), (0, 0), (1,))}], ids=["chain", "tree"])
def test_shared_noise_makes_target_and_drafter_agree_more_often(
    shape: dict[str, Any], target: Any, small: Any
) -> None:
    exact, coupled = (
        num_accepted(target, SmallModelDrafter(small, 3), SpecConfig("small", 2, accept_rule=rule, **shape))
        for rule in ("exact", "coupled")
    )
    assert coupled > exact + 20


@pytest.mark.parametrize("config", [*CHAIN_RULES, *TREE_RULES], ids=short)
def test_a_drafter_equal_to_the_target_is_always_accepted(config: SpecConfig, target: Any) -> None:
    outputs = generate(target, SmallModelDrafter(target, 3), config, NUM_FEW)
    assert sum(output.stats.num_accepted for output in outputs) > 0
    for output in outputs:
        assert output.stats.position_accepted == output.stats.position_tested


def test_a_drafted_position_follows_the_contrast(
    table: Any, table_model: Any, target: Any, chi_square: Any, exact_joint: Any
) -> None:
    # Three tokens of one draft: the first is the prefill's, the second drafted, the third the bonus, or drawn plainly.
    config = SpecConfig("small", 1, accept_rule="contrastive", accept_threshold=0.3, accept_delta=0.8)
    plain, drafts = table(0), table(1)
    kept = plain >= 0.3 * plain.amax(dim=-1, keepdim=True)
    contrast = (plain**1.8 / drafts**0.8) * kept
    contrast = contrast / contrast.sum(dim=-1, keepdim=True)
    expected = {}
    for text in product(range(3), repeat=3):
        whole = [*PROMPT, *text]
        rows = (plain, contrast, plain)
        probs = [float(row[tuple(whole[at - 2 : at])][whole[at]]) for row, at in zip(rows, (7, 8, 9), strict=True)]
        expected[text] = probs[0] * probs[1] * probs[2]
    counts = counts_of(generate(target, SmallModelDrafter(table_model(drafts), 3), config, num_tokens=3))
    assert chi_square(counts, expected) > 1e-3
    assert chi_square(counts, exact_joint(plain, PROMPT, 3, PLAIN)) < 1e-4  # lossy indeed


@pytest.mark.parametrize(
    ("rule", "shape"),
    [(rule, shape) for rule in LOSSY for shape in SmallModelDrafter.shapes if shape in ACCEPT_RULES[rule].shapes],
)
@pytest.mark.parametrize("sampling", [GREEDY, PLAIN], ids=["greedy", "sampled"])
def test_under_lossy_rules_too_the_seed_alone_decides(
    rule: str, shape: str, sampling: SamplingParams, target: Any, small: Any
) -> None:
    drafter = SmallModelDrafter(small, 3)
    paths = {"tree_paths": TREE["tree_paths"]} if shape in ("static", "optimal") else {}
    config = SpecConfig("small", 3, accept_rule=rule, accept_threshold=0.3, tree_shape=shape, **paths)
    decoder = SpeculativeDecoder(target, {"small": drafter})
    together = decoder.generate([PROMPT, PROMPT[2:]] * 5, config=config, sampling=sampling, max_new_tokens=12)
    alone = decoder.generate([PROMPT[2:]], config=config, sampling=replace(sampling, seed=1), max_new_tokens=12)[0]
    assert alone.token_ids == together[1].token_ids
    assert alone.stats.position_accepted == together[1].stats.position_accepted
    assert sum(one.stats.num_accepted for one in together) > 0


@pytest.mark.parametrize("rule", ["typical", "lenient", "relaxed", "margin"])
def test_a_lossy_rule_keeps_more_of_a_greedy_draft(rule: str, target: Any, small: Any) -> None:
    delta = 0.05 if rule == "typical" else 0.9
    lossy = SpecConfig("small", 2, accept_rule=rule, accept_threshold=0.05, accept_delta=delta, draft_temperature=0.0)
    strict = SpecConfig("small", 2, accept_rule="rejection", draft_temperature=0.0)
    assert num_accepted(target, SmallModelDrafter(small, 3), lossy) > num_accepted(
        target, SmallModelDrafter(small, 3), strict
    )


def test_text_lookup_cannot_serve_a_rule_that_reads_the_drafters_mind(target: Any) -> None:
    decoder = SpeculativeDecoder(target, {"small": NgramDrafter()})
    with pytest.raises(ConfigError, match="accept_rule 'contrastive' needs draft probabilities, but drafter 'small'"):
        decoder.generate([PROMPT], config=SpecConfig("small", 2, accept_rule="contrastive"))
