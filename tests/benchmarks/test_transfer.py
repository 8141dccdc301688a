"""Prompts of another length, and how a choice is judged: by repeats that chose nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from autospec.config import SpecConfig

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def transfer(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import transfer

    return transfer


def test_long_prompts_are_recorded_ones_behind_others_and_the_models_read_them(transfer: Any, tmp_path: Path) -> None:
    import torch

    threads = torch.get_num_threads()
    here = transfer.Situated(transfer.Setting(threads, "float32", prompt_length=1500), tmp_path)
    assert here.decoder.target.usable_length == 5120
    recorded = {one.prompt_id: one.text for one in here._recorded}
    for prompt in here.prompts:
        own = recorded[prompt.prompt_id]
        assert prompt.text.endswith(own)
        assert len(own) < len(prompt.text)
        assert 700 < len(here.decoder.render(prompt)) <= 1500
    generation = here.decoder.generate([here.prompts[0].text], max_new_tokens=2, ignore_eos=True)[0]
    assert len(generation.token_ids) == 2


def test_a_choice_is_judged_by_the_repeats_that_did_not_choose(transfer: Any) -> None:
    """By hand: the choice is at 1.2; another is at 1.5 in the repeats that choose, and at 1.25 in those that judge."""
    own, other = SpecConfig("ngram", 4), SpecConfig("draft", 4)
    half = transfer.AGAIN // 2

    class Planted:
        def run(self, job: str, setting: Any, configs: Sequence[SpecConfig], repeats: int = 1) -> Any:
            speeds = {own: [1.2] * repeats, other: [1.5] * min(half, repeats) + [1.25] * max(repeats - half, 0)}
            found = {one: speeds.get(one, [1.0] * repeats) for one in configs}
            return {
                one.config_hash: {name: [math.log(value) for value in values] for name in ("a", "b")}
                for one, values in found.items()
            }

    chosen = {"chosen": own.to_json(), "machine": {}, "trace": "", "num_priced": 1}
    chosen["predicted"] = {own.config_hash: math.log(1.26)}
    row = transfer._row(transfer.SETTINGS[0], chosen, [own], Planted())
    assert row["best"] == other.to_json()
    assert row["best_speedup"]["value"] == pytest.approx(1.25)
    assert row["measured_speedup"]["value"] == pytest.approx(1.2)
    assert row["regret"] == pytest.approx(1 - 1.2 / 1.25)
    assert row["tokens_per_second_mape"] == pytest.approx(0.05)
