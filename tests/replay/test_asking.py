"""Drafters of one's own, through the protocol alone, and what is added to a trace on demand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from autospec.config import SpecConfig
from autospec.engine.decoder import SpeculativeDecoder
from autospec.engine.drafters import DraftPlan, Needs, Trail
from autospec.engine.tree import TokenTree, chain
from autospec.errors import ReplayError, ReplayMiss
from autospec.replay import RecordedPrompt, Recorder, RecordingBudget, Simulator, Trace


class OwnDrafter:
    """Drafts the target's second thoughts: at an odd length its best token again and again, else what stood there."""

    source, has_probs, shapes = "own", False, ("chain",)
    needs = Needs(hidden_layers=(-1,), logits=True)

    def start(self, prompt_ids: Sequence[int], plan: DraftPlan) -> None:
        self.text, self.best, self.cache = list(prompt_ids), 0, plan.target_cache

    def propose(self, max_length: int) -> TokenTree:
        assert self.cache.length == len(self.text) - 1  # as in a live run, all but the last token
        tokens = [self.best] * max_length if len(self.text) % 2 else self.text[-8 : -8 + max_length]
        return chain(torch.tensor(tokens[:max_length], dtype=torch.int64))

    def commit(self, token_ids: Sequence[int], trail: Trail | None = None) -> None:
        assert trail is not None
        assert trail.logits is not None
        assert trail.hidden is not None
        self.text += token_ids
        assert trail.position + len(trail.hidden) == len(self.text) - 1
        self.best = int(trail.logits[-1].argmax())


@pytest.fixture(scope="module")
def own(pair: SpeculativeDecoder) -> SpeculativeDecoder:
    return SpeculativeDecoder(pair.target, {"own": OwnDrafter(), "ngram": pair.drafters["ngram"]})


@pytest.fixture
def own_trace(own: SpeculativeDecoder, prompts: list[RecordedPrompt]) -> Trace:
    return Recorder(own, RecordingBudget(max_depth=3)).record(prompts[:2], 24)


@pytest.mark.parametrize(
    "config",
    [
        SpecConfig("own", 3),
        SpecConfig("own", 5),
        SpecConfig("own", 4, stop_rule="heuristic", draft_length_start=2),
        SpecConfig("ngram+own", 3),
        SpecConfig("ngram+own", 3, combine="merge", tree_shape="trie", tree_nodes=5),
    ],
    ids=lambda config: config.short(),
)
def test_a_drafter_without_probabilities_is_replayed(
    own: SpeculativeDecoder, own_trace: Trace, prompts: list[RecordedPrompt], config: SpecConfig, tmp_path: Path
) -> None:
    replay = Simulator(own_trace, recorder=Recorder(own)).replay(config)
    loaded = Simulator(Trace.load(own_trace.save(tmp_path))).replay(config)
    for row, prompt in enumerate(prompts[:2]):
        live = own.generate([prompt.prompt_ids], config=config, max_new_tokens=24, ignore_eos=True)[0].stats
        for stats in (replay.stats(row), loaded.stats(row)):
            assert stats.num_drafted == live.num_drafted
            assert stats.position_accepted == live.position_accepted
            assert stats.num_steps == live.num_steps


def test_a_longer_draft_than_was_stored_is_missed_without_a_recorder(own_trace: Trace) -> None:
    assert Simulator(own_trace).replay(SpecConfig("own", 3)).nodes.max() == 3
    with pytest.raises(ReplayMiss, match="one of 'own' is not"):
        Simulator(own_trace).replay(SpecConfig("own", 4))


def test_what_is_added_on_demand_keeps_to_the_bound(own: SpeculativeDecoder, own_trace: Trace) -> None:
    narrow = Recorder(own, RecordingBudget(max_bytes=own_trace.num_bytes + 100))
    with pytest.raises(ReplayError, match="a trace must fit"):
        Simulator(own_trace, recorder=narrow).replay(SpecConfig("own", 8))


def test_a_recorder_without_the_drafter_is_refused(pair: SpeculativeDecoder, own_trace: Trace) -> None:
    with pytest.raises(ReplayError, match="a draft is added by a decoder with its drafter, 'own'"):
        Simulator(own_trace, recorder=Recorder(pair)).replay(SpecConfig("own", 8))
