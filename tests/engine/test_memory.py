"""What cannot fit is refused beforehand, with the arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from autospec.engine import memory
from autospec.engine.decoder import SpeculativeDecoder
from autospec.engine.memory import check_cache, check_weights
from autospec.engine.model import CausalLM, load_model
from autospec.engine.model_facts import numbers_per_token
from autospec.errors import ModelError

CPU, GIB = torch.device("cpu"), 1 << 30


@pytest.fixture
def one_gib_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: GIB)


def test_caches_beyond_what_is_free_are_refused(one_gib_free: None) -> None:
    check_cache(8, 2048, 64 << 10, CPU)  # exactly 1 GiB
    expected = r"must fit the memory, but 8 x 2,049 tokens x 64.0 KiB = 1.0 GiB, and 1.0 GiB are free on cpu"
    with pytest.raises(ModelError, match=expected):
        check_cache(8, 2049, 64 << 10, CPU)


def test_weights_are_counted_in_the_format_in_which_they_are_loaded(one_gib_free: None, tmp_path: Path) -> None:
    for number in range(2):
        with (tmp_path / f"model-{number}.safetensors").open("wb") as file:
            file.truncate(300 << 20)
    check_weights("big", tmp_path, torch.bfloat16, torch.bfloat16, CPU)
    expected = r"those of `big` take 0.31 billion numbers x 4 bytes = 1.2 GiB, and 1.0 GiB are free on cpu"
    with pytest.raises(ModelError, match=expected):
        check_weights("big", tmp_path, torch.bfloat16, torch.float32, CPU)
    check_weights("nothing", tmp_path / "elsewhere", torch.bfloat16, torch.float32, CPU)


def test_loading_and_generating_ask(
    tiny_checkpoint: Path, tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = SpeculativeDecoder(CausalLM(tiny_model("llama"), "target"))
    monkeypatch.setattr(memory, "_UNCHECKED", 0)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    with pytest.raises(ModelError, match="weights must fit the memory"):
        load_model(str(tiny_checkpoint), device="cpu")
    # 2 layers x keys and values x 2 heads x 8 numbers x 4 bytes = 256 bytes.
    for batch_size, rows in ((1, 1), (2, 2)):
        with pytest.raises(ModelError, match=rf"{rows} x 7 tokens x 0.2 KiB"):
            decoder.generate([[1, 2], [3, 4]], max_new_tokens=5, batch_size=batch_size)


@pytest.mark.parametrize(
    ("kind", "expected"), [("llama", 2 * 2 * 2 * 8), ("gpt2", 2 * 2 * 4 * 8), ("opt", 2 * 2 * 4 * 8)]
)
def test_every_kind_says_what_a_token_keeps(tiny_model: Callable[..., Any], kind: str, expected: int) -> None:
    assert numbers_per_token(tiny_model(kind).config) == expected
