"""A prompt that is run in pieces is the prompt run at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from autospec.engine import prefill
from autospec.engine.cache import KVCache
from autospec.engine.drafters import Needs
from autospec.engine.model import CausalLM
from autospec.engine.prefill import run_prompt

PROMPT = [(number * 7) % 64 for number in range(23)]
NEEDS = {"nothing": Needs(), "logits": Needs(logits=True), "hidden": Needs(hidden_layers=(1, -1))}


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt2"])
@pytest.mark.parametrize("needs", NEEDS.values(), ids=NEEDS)
def test_pieces_give_what_the_whole_gives(
    tiny_model: Callable[..., Any], kind: str, needs: Needs, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, caches = CausalLM(tiny_model(kind), kind), [KVCache(23), KVCache(23)]
    whole = run_prompt(model, PROMPT, caches[0], needs)
    monkeypatch.setattr(prefill, "PIECE", 5)
    pieces = run_prompt(model, PROMPT, caches[1], needs)
    assert caches[1].lengths == [23]
    assert len(pieces[0]) == (23 if needs.logits else 1)
    for one, other in zip(whole, pieces, strict=True):
        if one is None:
            assert other is None
            assert not needs.hidden_layers
        else:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    for layer, keys in caches[0].keys.items():
        torch.testing.assert_close(keys, caches[1].keys[layer], rtol=1e-4, atol=1e-4)
