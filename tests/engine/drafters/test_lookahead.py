"""Windows of guesses, against a table model worked out by hand and against forwards without a shared cache.

The laws run over it in test_laws.py and test_distribution.py, with the target itself.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.cache import KVCache
from autospec.engine.decoder import SpeculativeDecoder
from autospec.engine.drafters import CombinedDrafter, DraftPlan, EarlyExitDrafter, LookaheadDrafter, NgramDrafter
from autospec.engine.drafters.lookahead import num_window_nodes
from autospec.engine.model import CausalLM
from autospec.engine.termination import Stopping
from autospec.engine.tree import TokenTree
from autospec.errors import ConfigError, ReplayMiss
from autospec.replay import RecordedPrompt, Recorder, Simulator


@pytest.fixture
def adding(table_model: Any) -> Any:
    """A target that writes the sum of the last two tokens modulo 4."""
    probs = torch.full((4, 4, 4), 0.01)
    for one in range(4):
        for two in range(4):
            probs[one, two, (one + two) % 4] = 0.97
    return table_model(probs)


def started(target: Any, text: list[int], **knobs: Any) -> LookaheadDrafter:
    config = SpecConfig("lookahead", 6, **knobs)
    cache = KVCache(len(text) + num_window_nodes(config))
    target.forward(torch.tensor([text[:-1]]), cache)
    drafter = LookaheadDrafter(target)
    drafter.start(text, DraftPlan(config, SamplingParams(), 0, len(text), Stopping(config), cache))
    return drafter


def paths(tree: TokenTree) -> list[list[int]]:
    found: list[list[int]] = []
    for token, parent in zip(tree.token_ids.tolist(), tree.parents, strict=True):
        found.append([*(found[parent] if parent >= 0 else []), token])
    return found


# Behind 2 0 2 the rows are 3 2 0 2, then 3 1 1 2 2, then 3 1 0 2 3 0; the diagonals 3 1 0, 2 1 2, 0 2 3 and 2 2 0.
SMALL = {"lookahead_window": 4, "lookahead_ngram": 3}


@pytest.mark.parametrize(("last", "expected"), [(3, [1, 0]), (0, [2, 3]), (2, [2, 0]), (1, [])])
def test_a_chain_is_the_newest_ngram_of_the_last_token(adding: Any, last: int, expected: list[int]) -> None:
    drafter = started(adding, [2, 0, 2, 3, last], **SMALL)
    assert drafter.propose(6).token_ids.tolist() == expected
    assert drafter.propose(1).token_ids.tolist() == expected[:1]
    assert drafter.propose(0).num_nodes == 0


def test_a_trie_holds_several_ngrams_the_newest_first(adding: Any) -> None:
    text = [2, 0, 2, 3, 2]
    wide = started(adding, text, **SMALL, tree_shape="trie", tree_width=2, tree_nodes=8).propose(6)
    assert paths(wide) == [[2], [2, 0], [1], [1, 2]]
    narrow = started(adding, text, **SMALL, tree_shape="trie", tree_width=1, tree_nodes=8).propose(6)
    assert paths(narrow) == [[2], [2, 0]]


def test_windows_that_are_due_together_share_forwards(adding: Any) -> None:
    drafter = started(adding, [0, 1, 2, 3, 3, 2, 1, 0, 1], **SMALL)  # they begin at tokens 3 and 7
    adding.fed.clear()
    drafter.propose(2)
    assert [len(fed) for fed in adding.fed] == [8, 10]
    drafter.propose(2)  # nothing is due
    drafter.commit([1, 1])
    drafter.propose(2)
    assert len(adding.fed) == 2


def test_the_target_s_cache_is_left_as_it_was(adding: Any) -> None:
    drafter = started(adding, [0, 1, 2, 3, 3], **SMALL)
    cache = drafter._plan.target_cache
    drafter.propose(2)
    assert cache.lengths == [4]
    assert cache.keys[0][0, 0, :4, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("length", "num_forwards"), [(7, 0), (8, 2)])
def test_no_window_reaches_beyond_the_target_s_length(adding: Any, length: int, num_forwards: int) -> None:
    adding.usable_length = length  # the window behind 3 tokens runs 5 of its own
    drafter = started(adding, [2, 0, 2, 3, 2], **SMALL)
    adding.fed.clear()
    drafter.propose(2)
    assert len(adding.fed) == num_forwards


def ngrams(target: CausalLM, text: list[int], size: int, ngram: int) -> dict[int, list[tuple[int, ...]]]:
    """The pool, one window after the other, every row run from the beginning of the text."""
    pool: dict[int, list[tuple[int, ...]]] = {}
    for at in range(size - 1, len(text), size):
        rows = [[text[at], *text[at - size + 1 : at]]]
        for _ in range(ngram - 1):
            whole = [*text[:at], *rows[-1]]
            choices: Tensor = target.forward(torch.tensor([whole]), KVCache(len(whole)))[0, at:].argmax(dim=-1)
            rows.append([text[at], *choices.tolist()])
        for place in range(size):
            found = tuple(rows[step][place + step] for step in range(ngram))
            tails = pool.setdefault(found[0], [])
            pool[found[0]] = [found[1:], *(tail for tail in tails if tail != found[1:])]
    return pool


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral"])  # the last with a window shorter than the text
def test_ngrams_are_those_of_windows_run_alone(tiny_model: Any, kind: str) -> None:
    target = CausalLM(tiny_model(kind, seed=3), "target")
    text = [1, 2, 3, 4, 5, 6, 1, 2, 3, 10, 11, 12, 13, 10, 11, 12, 13, 14, 10, 11] * 2
    expected = ngrams(target, text, 3, 4)  # 13 windows, more than are run at once
    drafter = started(target, text, lookahead_window=3, lookahead_ngram=4)
    drafter.propose(3)
    assert {token: list(reversed(tails)) for token, tails in drafter._pool.items()} == expected


def test_it_is_made_from_its_source_and_drafts_beside_others(tiny_model: Any) -> None:
    target = tiny_model("llama", num_layers=4)
    sources = {"ngram": "ngram", "lookahead": "lookahead", "exit": "early_exit"}
    decoder = SpeculativeDecoder.from_pretrained(target, sources)
    assert decoder.drafters["lookahead"].source == "lookahead"
    prompt = [1, 2, 3, 4, 1, 2, 3, 4]
    plain = decoder.generate([prompt], max_new_tokens=24)[0].token_ids
    for drafter, knobs in (
        ("lookahead", {}),
        ("lookahead+ngram", {}),
        ("ngram+exit", {"tree_shape": "trie", "combine": "merge", "tree_nodes": 32, "tree_width": 8}),
    ):
        config = SpecConfig(drafter, 4, lookahead_window=4, **knobs)
        assert decoder.generate([prompt], config=config, max_new_tokens=24)[0].token_ids == plain


def test_combined_drafters_find_room_for_the_nodes_of_each(tiny_model: Any) -> None:
    target = CausalLM(tiny_model("llama", num_layers=4), "target")
    parts = {"ngram": NgramDrafter(), "lookahead": LookaheadDrafter(target), "exit": EarlyExitDrafter(target)}
    config = SpecConfig("ngram+lookahead+exit", 4, lookahead_window=4, lookahead_ngram=3)
    assert CombinedDrafter(parts, "fallback").needs.target_slots(config) == 8 * 5


@pytest.mark.parametrize(("knob", "value"), [("lookahead_window", 1), ("lookahead_ngram", 1), ("lookahead_ngram", 66)])
def test_windows_and_ngrams_hold_at_least_two_tokens(knob: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"2 <= {knob} <= .* must hold, but got {value}"):
        SpecConfig("lookahead", 4, **{knob: value})


def test_recorded_windows_end_where_the_targets_length_does(tiny_model: Any) -> None:
    target = CausalLM(tiny_model("llama", vocab_size=8, max_position_embeddings=40), "target")
    drafter = LookaheadDrafter(target)
    decoder = SpeculativeDecoder(target, {"lookahead": drafter})
    recorder, prompt = Recorder(decoder), tuple(number % 7 for number in range(20))
    trace = recorder.record([RecordedPrompt("a", "x", prompt)], 20)
    deepest = SpecConfig("lookahead", 5, lookahead_window=4, lookahead_ngram=6)
    simulator = Simulator(trace, recorder=recorder)
    simulator.record([deepest])
    # Windows of 4 at tokens 3, 7, ... 39; iteration i runs 4 + i tokens from there, within 40.
    assert (trace.windows[4][:, 0] >= 0).sum(axis=1).tolist() == [5] * 8 + [2, 0]
    alone = Simulator(trace)
    for ngram in (2, 4, 6):
        config = replace(deepest, lookahead_ngram=ngram)
        live = decoder.generate([prompt], config=config, max_new_tokens=20, ignore_eos=True)[0].stats
        assert alone.replay(config).stats(0).position_accepted == live.position_accepted
        assert alone.replay(config).stats(0).num_drafted == live.num_drafted
    with pytest.raises(ReplayMiss, match="windows must be recorded"):
        alone.replay(replace(deepest, lookahead_ngram=7))


@pytest.mark.parametrize("sampling", [SamplingParams(), SamplingParams(temperature=0.5, seed=3)])
@pytest.mark.parametrize(
    "shape", [{}, {"stop_rule": "heuristic"}, {"tree_shape": "trie", "tree_width": 3, "tree_nodes": 5}]
)
def test_a_replay_is_a_live_run(tiny_model: Any, checks: Any, shape: dict[str, Any], sampling: SamplingParams) -> None:
    target = CausalLM(tiny_model("llama", vocab_size=8), "target")
    config = SpecConfig("drafter", 3, **SMALL, **shape)
    checks.check_replay(target, LookaheadDrafter(target), config, sampling)
