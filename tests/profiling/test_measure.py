"""A whole profile under a clock that moves only where a model runs: every median is known exactly."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from autospec.config import SamplingParams
from autospec.engine.decoder import SpeculativeDecoder
from autospec.engine.drafters import EarlyExitDrafter, NgramDrafter, RecyclingDrafter, SmallModelDrafter
from autospec.engine.lean.maps import can_pack
from autospec.engine.model import CausalLM
from autospec.engine.termination import stops_by_cost
from autospec.errors import MeasurementError, ProfileError
from autospec.profiling import (
    HardwareProfile,
    ProfileSettings,
    ThreadChoice,
    key_of,
    load_profile,
    profile,
    threads_key_of,
)
from autospec.profiling.batches import ragged
from autospec.profiling.curves import Timing
from autospec.profiling.parts import ThreadPoint
from autospec.profiling.probe import StepTimes
from autospec.profiling.samples import Samples, StepKey
from autospec.profiling.schema import SCHEMA_VERSION, checksum
from autospec.profiling.visits import StepVisit

TEXT = [(7 * place + place // 5) % 60 for place in range(400)]
SETTINGS = ProfileSettings(
    contexts=(8, 40), max_tokens=32, draft_lengths=(1, 2, 4, 6), widths=(2, 4), batch_sizes=(2,), max_rounds=3
)


class FakeWatch:
    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds


class TimedLM(CausalLM):
    """Takes `rate * (10 + tokens + cached / 100)` seconds for a forward, each row of a batch alike."""

    def __init__(self, model: Any, watch: FakeWatch, rate: float) -> None:
        self.watch, self.rate = watch, 0.0
        super().__init__(model, "timed")
        self.rate = rate

    def forward(self, input_ids: Any, cache: Any, **how: Any) -> Any:
        self._pass(input_ids, cache)
        return super().forward(input_ids, cache, **how)

    def forward_with_hidden(self, input_ids: Any, cache: Any, layers: Any, **how: Any) -> Any:
        self._pass(input_ids, cache)
        return super().forward_with_hidden(input_ids, cache, layers, **how)

    def forward_rows(self, asked: Any, cache: Any, layers: Any = ()) -> Any:
        lengths = [cache.lengths[one.row] for one in asked]
        num_tokens = sum(len(one.token_ids) for one in asked)
        self.watch.seconds += self.rate * (10 + num_tokens + sum(lengths) / len(lengths) / 100)
        return super().forward_rows(asked, cache, layers)

    def _pass(self, input_ids: Any, cache: Any) -> None:
        rows, num_tokens = input_ids.shape
        self.watch.seconds += self.rate * (10 + rows * num_tokens + min(cache.lengths) / 100)


class TimedNgram(NgramDrafter):
    """Takes 0.5 s for a lookup and 0.25 s for a commit."""

    watch: FakeWatch

    def propose(self, max_length: int) -> Any:
        self.watch.seconds += 0.5
        return super().propose(max_length)

    def commit(self, token_ids: Sequence[int], trail: Any = None) -> None:
        self.watch.seconds += 0.25
        super().commit(token_ids, trail)


@pytest.fixture(scope="module")
def made(tiny_model: Any) -> HardwareProfile:
    watch = FakeWatch()
    target = TimedLM(tiny_model("llama", num_layers=4), watch, 1.0)
    ngram = TimedNgram()
    ngram.watch = watch
    draft = TimedLM(tiny_model("llama", num_layers=1, seed=3), watch, 0.01)
    drafters = {"draft": SmallModelDrafter(draft, target.vocab_size), "ngram": ngram}
    settings = replace(SETTINGS, budget_seconds=1e6)
    return profile(SpeculativeDecoder(target, drafters), TEXT, settings, watch=watch)


def test_target_forwards_are_what_the_clock_says(made: HardwareProfile) -> None:
    # a text grows by a few tokens while it is measured: each costs 0.01
    for num_tokens in (1, 5, 16, 32):
        assert made.target_seconds(num_tokens, 40) == pytest.approx(10 + num_tokens + 0.4, abs=0.48)
    assert made.target_seconds(5, 40) - made.target_seconds(5, 8) == pytest.approx(0.32, abs=0.48)
    assert made.target_seconds(4, 40, batch_size=2) == pytest.approx(10 + 8 + 0.4)
    assert made.plain_seconds(40) == pytest.approx(11.4, abs=0.1)
    assert made.prefill_seconds(40) == pytest.approx(50.0)


def test_rows_of_a_batch_differ_in_length_about_the_context() -> None:
    assert ragged(100, 5, 1000) == [50, 75, 100, 125, 150]
    assert ragged(100, 2, 30) == [70, 130]  # what the model reads ends there
    assert ragged(100, 4, -1) == [100] * 4
    assert ragged(1, 3, 10) == [1, 1, 1]


def test_a_draft_model_costs_a_forward_for_each_level(made: HardwareProfile) -> None:
    # a forward takes 0.1 and 0.01 for each row; after a draft accepted whole the first has two rows
    for depth in (1, 2, 4, 6):
        assert made.draft_seconds("draft", depth, 40) == pytest.approx(depth * 0.114, abs=0.04)
    for depth in (1, 2, 4):
        wide = made.draft_seconds("draft", depth, 40, width=4)
        assert wide == pytest.approx(depth * 0.114 + (depth - 1) * 0.03, abs=0.04)
    assert made.draft_seconds("draft", 0, 40) == 0.0


def test_levels_of_several_widths_add_what_each_takes(made: HardwareProfile) -> None:
    uniform = made.tree_draft_seconds("draft", (1, 4, 4, 4), 40)
    assert uniform == pytest.approx(made.draft_seconds("draft", 4, 40, width=4))
    assert made.tree_draft_seconds("draft", (1, 2, 4), 40) == pytest.approx(3 * 0.114 + 0.01 + 0.03, abs=0.04)
    assert made.tree_draft_seconds("draft", (), 40) == 0.0


def test_lookups_cost_the_same_at_every_depth_and_their_commit_is_the_hosts(made: HardwareProfile) -> None:
    for depth in (1, 3, 6):
        assert made.draft_seconds("ngram", depth, 20) == pytest.approx(0.5)
    assert made.host_seconds(4, 40) == pytest.approx(0.0, abs=1e-9)
    assert made.host_seconds(4, 40, "ngram") == pytest.approx(0.25, abs=1e-9)
    # told of the prompt, told of the first token, then asked
    assert made.first_draft_seconds("ngram", 40) == pytest.approx(1.0)


def test_what_a_step_takes_is_its_parts(made: HardwareProfile) -> None:
    (point,) = [
        one for one in made.drafters["draft"].points if (one.width, one.depth, one.context_length) == (1, 4, 40)
    ]
    parts = point.draft.seconds + point.verify.seconds + point.host.seconds
    assert made.step_seconds("draft", 4, 40) == parts
    assert point.num_tokens == 5
    assert parts == pytest.approx(4 * 0.114 + 15.4, abs=0.6)


def test_what_was_not_measured_is_refused(made: HardwareProfile) -> None:
    with pytest.raises(MeasurementError, match="context_length 8 to 40"):
        made.target_seconds(4, 41)
    with pytest.raises(MeasurementError, match="num_tokens 1 to 32"):
        made.target_seconds(33, 40)
    with pytest.raises(MeasurementError, match=r"drafts of 'draft' were measured for depth 1 to 6"):
        made.draft_seconds("draft", 7, 40)
    with pytest.raises(MeasurementError, match="a drafter must be one of the profile's"):
        made.draft_seconds("drft", 1, 40)


def test_a_cost_curve_serves_the_stopping_rule(made: HardwareProfile) -> None:
    costs = made.cost_curve("draft", 40)
    assert costs.draft == pytest.approx(0.114, abs=0.03)
    assert costs.target_per_token == pytest.approx(1.0, abs=0.05)
    assert costs.target == pytest.approx(11.4, abs=0.6)
    assert costs.verify(0) == pytest.approx(costs.target)
    assert costs.target_points[-1][0] == 32
    # a token in 11.4 s, and another for 1.1 s: worth it at even odds, not at one in twenty
    assert list(stops_by_cost([0.5, 0.05], 0, 1.0, costs)) == [False, True]


def test_a_profile_is_read_as_it_was_written(made: HardwareProfile, tmp_path: Path) -> None:
    made.save(tmp_path / "profile.json")
    read = load_profile(tmp_path / "profile.json")
    assert read == made
    assert read.key == made.key
    assert read.target_seconds(7, 33) == made.target_seconds(7, 33)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"wall_seconds": 1.5}, "its sha256 does not fit"),
        ({"schema_version": SCHEMA_VERSION + 1}, "needs a newer autospec"),
        ({"schema_version": 0}, "measure again with `python -m autospec profile`"),
        ({"extra": 1}, "`extra` is not a field of this schema version"),
        ({"noise": {"spread": "x", "verdict": "fine"}}, r"`noise.spread` must be a number"),
    ],
)
def test_files_that_are_not_what_was_saved_are_refused(
    made: HardwareProfile, change: dict[str, Any], fault: str, tmp_path: Path
) -> None:
    (tmp_path / "profile.json").write_text(json.dumps({**made.to_json(), **change}))
    with pytest.raises(ProfileError, match=fault):
        load_profile(tmp_path / "profile.json")


def test_a_profile_keeps_how_its_threads_were_chosen(made: HardwareProfile, tmp_path: Path) -> None:
    points = tuple(ThreadPoint(count, Timing(0.5, 0.1, 12), Timing(0.75, 0.0, 12), 1.5, 1.25, 2.0) for count in (1, 2))
    replace(made, threads=ThreadChoice(2, 256, 8, points)).save(tmp_path / "profile.json")
    read = load_profile(tmp_path / "profile.json")
    assert read.threads == ThreadChoice(2, 256, 8, points)
    assert read.key == made.key
    document = read.to_json()
    document["threads"]["points"][0]["slowdown"] = "much"
    document["sha256"] = checksum(document)
    with pytest.raises(ProfileError, match=r"`threads\.points\[0\]\.slowdown` must be a number"):
        HardwareProfile.from_json(document)


def test_a_profile_of_the_first_version_is_read_without_threads(made: HardwareProfile) -> None:
    document = {**made.to_json(), "schema_version": 1}
    del document["threads"]
    with pytest.raises(ProfileError, match="its sha256 does not fit"):
        HardwareProfile.from_json(document)
    document["sha256"] = checksum(document)
    assert replace(HardwareProfile.from_json(document), target_points=made.target_points) == made
    assert made.threads is None


@pytest.mark.parametrize("version", [1, 2])
def test_older_profiles_say_nothing_of_batches_whose_rows_stood_level(made: HardwareProfile, version: int) -> None:
    document = {**made.to_json(), "schema_version": version}
    document["sha256"] = checksum(document)
    old = HardwareProfile.from_json(document)
    assert old.target_points == tuple(one for one in made.target_points if one.batch_size == 1)
    assert old.target_seconds(4, 40) == made.target_seconds(4, 40)
    assert made.target_seconds(4, 40, batch_size=2) > 0
    with pytest.raises(MeasurementError):
        old.target_seconds(4, 40, batch_size=2)
    document["target_points"] = "none"
    document["sha256"] = checksum(document)
    with pytest.raises(ProfileError, match="`target_points` must be"):
        HardwareProfile.from_json(document)


def test_a_profile_of_compiled_models_is_another(made: HardwareProfile, tmp_path: Path) -> None:
    compiled = replace(made, compile=True)
    assert compiled.key == f"{made.key}-compiled"
    compiled.save(tmp_path / "profile.json")
    assert load_profile(tmp_path / "profile.json") == compiled


def test_a_profile_from_before_models_were_compiled_is_read_whole(made: HardwareProfile) -> None:
    document = {**made.to_json(), "schema_version": 3}
    del document["compile"]
    document["sha256"] = checksum(document)
    assert HardwareProfile.from_json(document) == made
    assert made.compile is False


def test_what_is_kept_of_compiled_models_has_keys_of_its_own(tiny_model: Any) -> None:
    decoder = SpeculativeDecoder(CausalLM(tiny_model("llama"), "tiny"), {"ngram": NgramDrafter()})

    def keys() -> list[str]:
        return [key_of(decoder, SamplingParams()), threads_key_of(decoder)]

    plain = keys()
    decoder.target.compiles = True
    assert keys() == [f"{key}-compiled" for key in plain]


def test_a_point_may_be_there_once(made: HardwareProfile) -> None:
    document = made.to_json()
    document["target_points"].append(document["target_points"][0])
    document["sha256"] = checksum(document)
    with pytest.raises(ProfileError, match="`target_points` must be all different"):
        HardwareProfile.from_json(document)


def test_what_the_budget_does_not_allow_is_left_out_and_said(tiny_model: Any) -> None:
    watch = FakeWatch()
    target = TimedLM(tiny_model("llama", num_layers=4), watch, 1.0)
    made = profile(SpeculativeDecoder(target), TEXT, replace(SETTINGS, budget_seconds=1.0), watch=watch)
    assert made.contexts == (40,)  # nearest to the reference
    assert made.left_out == ("context 8: the budget was used up",)
    assert made.noise.verdict == "unknown"  # everything was measured once


def test_every_kind_of_drafter_has_all_its_fields(tiny_model: Any) -> None:
    target = CausalLM(tiny_model("llama", num_layers=4), "target")
    draft = CausalLM(tiny_model("llama", num_layers=1, seed=3), "draft")
    drafters = {
        "draft": SmallModelDrafter(draft, target.vocab_size),
        "early_exit": EarlyExitDrafter(target),
        "recycling": RecyclingDrafter(),
    }
    settings = replace(SETTINGS, contexts=(20,), max_rounds=2, budget_seconds=1e6, batch_sizes=())
    made = profile(SpeculativeDecoder(target, drafters), TEXT, settings)
    assert set(made.drafters) == set(drafters)
    for name, costs in made.drafters.items():
        assert made.draft_seconds(name, 4, 20) > 0.0
        assert made.step_seconds(name, 2, 20, width=2) > 0.0
        assert {one.exit_layer for one in costs.contexts} == ({1, 2, 3} if name == "early_exit" else {0})
        made.cost_curve(name, 20)
    assert made.drafters["early_exit"].default_exit_layer == 2
    assert made.drafters["early_exit"].weight_bytes == 0
    maps = [module.weight for module in draft.model.modules() if isinstance(module, torch.nn.Linear)]
    # Small maps are held in two forms where they are packed.
    held = [*draft.model.parameters(), *(maps if can_pack(torch.device("cpu"), torch.float32) else ())]
    assert made.drafters["draft"].weight_bytes == sum(4 * one.numel() for one in held)
    # keys and values of 4 layers, 2 heads of 8, float32
    assert made.memory.kv_bytes_per_token == 2 * 4 * 2 * 8 * 4
    assert made.memory.target_weight_bytes > 0
    assert made.noise.verdict == "unknown"  # everything was measured twice
    assert made.fingerprint["dtype"] == "float32"
    assert torch.get_num_threads() == made.fingerprint["num_threads"]


def test_steps_are_taken_behind_steps_of_about_their_size() -> None:
    class Remembers:
        """A probe that notes how deep it was to draft."""

        def restart(self) -> float:
            asked.append([])
            return 0.0

        def step(self, limit: int) -> StepTimes:
            asked[-1].append(limit)
            return StepTimes(limit, 0.0, 0.0, 0.0)

    asked: list[list[int]] = []
    probe: Any = Remembers()
    visit = StepVisit(probe, StepKey("", 0, 1, 40), [0, 0, 1, 4, 16])
    for seed in range(16):
        visit.run(Samples(), random.Random(seed))
    assert {tuple(one) for one in asked} == {(0, 0, 1, 4, 16), (16, 4, 1, 0, 0)}
