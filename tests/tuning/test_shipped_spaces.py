"""What ships in search_spaces/ runs on what ships in pocket/: no trial is wasted on what the engine refuses."""

from __future__ import annotations

import numpy as np
import pytest

from autospec import pocket
from autospec.config import SamplingParams
from autospec.engine.decoder import SpeculativeDecoder
from autospec.rules import ACCEPT_RULES
from autospec.tuning.space import SearchSpace

GREEDY, SAMPLED = SamplingParams(), SamplingParams(temperature=0.8, top_p=0.95)
BUILT_IN = {name: name for name in ("ngram", "suffix", "recycling", "early_exit", "lookahead")}


@pytest.fixture(scope="module")
def decoder() -> SpeculativeDecoder:
    return SpeculativeDecoder.from_pretrained(pocket.target_path(), {"draft": pocket.draft_path(), **BUILT_IN})


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", ["chain", "smoke", "tree", "drafters", "full", "lossy"])
def test_the_engine_takes_whatever_is_drawn(name: str, sampling: SamplingParams, decoder: SpeculativeDecoder) -> None:
    space, rng = SearchSpace.load(name, decoder.drafters).under(sampling), np.random.default_rng(1)
    for _ in range(200):
        params = space.draw(rng)
        assert params is not None
        decoder.check(space.config(params))


def test_only_the_lossy_space_has_lossy_rules_and_it_has_all_of_them_beside_a_lossless_one() -> None:
    for name in ("chain", "smoke", "tree", "drafters", "full"):
        assert SearchSpace.load(name).lossy_faults() == []
    rules = next(knob for knob in SearchSpace.load("lossy").knobs if knob.name == "accept_rule").domain.grid() or ()
    assert {name for name in rules if not ACCEPT_RULES[str(name)].is_lossless} == {
        name for name, facts in ACCEPT_RULES.items() if not facts.is_lossless
    }
    assert "exact" in rules
