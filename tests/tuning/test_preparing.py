"""What a guided study records, measures and keeps, on a tiny untrained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.decoder import SpeculativeDecoder
from autospec.profiling import HardwareProfile, ProfileSettings, key_of, profile, profile_path
from autospec.records import Prompt, Workload
from autospec.tuning import preparing
from autospec.tuning.events import Event, Guided, NullTracker, Warned
from autospec.tuning.knobs import Choices, Condition, Knob
from autospec.tuning.log import MeasurementLog
from autospec.tuning.measuring import Measurer
from autospec.tuning.settings import StudySettings
from autospec.tuning.space import SearchSpace
from autospec.tuning.task import Task

PROMPTS = tuple(Prompt(f"t{i}", "odd" if i % 2 else "even", f"{i}12{i}12" * (1 + i)) for i in range(4))
TREES = SearchSpace([
    Knob("drafter", Choices(("draft", "ngram"))),
    Knob("tree_shape", Choices(("chain", "optimal")), (Condition("drafter", ("draft",)),)),
    Knob("draft_length", Choices((1, 2, 3))),
    Knob("tree_nodes", Choices((2, 4)), (Condition("tree_shape", ("optimal",)),)),
])  # fmt: skip


@pytest.fixture(scope="module")
def decoder() -> SpeculativeDecoder:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    made = SpeculativeDecoder.from_pretrained(
        model, {"ngram": "ngram", "draft": model, "other": "suffix"}, device="cpu"
    )
    made.render = lambda prompt: [3 + int(digit) for digit in prompt.text]  # type: ignore[method-assign]
    return made


@pytest.fixture(scope="module")
def measured(decoder: SpeculativeDecoder) -> HardwareProfile:
    settings = ProfileSettings(budget_seconds=0.5, contexts=(4, 40), widths=(2,), batch_sizes=())
    return profile(decoder, Workload("digits", PROMPTS, PROMPTS, max_new_tokens=8), settings)


class Prepared:
    """Prepares once, and keeps what was told."""

    def __init__(self, decoder: SpeculativeDecoder, folder: Path, space: SearchSpace = TREES, **changes: Any) -> None:
        folder.mkdir(exist_ok=True)
        self.events: list[Event] = []
        sampling = changes.pop("sampling", SamplingParams())
        objective = changes.pop("objective", "tokens_per_second")
        task = Task(
            decoder=decoder,
            runner=None,  # type: ignore[arg-type]
            workload=Workload("digits", PROMPTS, PROMPTS, sampling, max_new_tokens=8),
            space=space,
            settings=StudySettings(minutes=0.1, objective=objective),
            output_dir=folder,
            machine={},
            tracker=NullTracker(),
            on_event=self.events.append,
            command="test",
            **changes,
        )
        log = MeasurementLog(folder / "measurements.jsonl")
        try:
            self.made = preparing.prepare(task, log, Measurer(None, log, self.events.append, task.now), PROMPTS)  # type: ignore[arg-type]
        finally:
            log.close()


def test_the_whole_space_is_priced_and_everything_kept(decoder: SpeculativeDecoder, tmp_path: Path) -> None:
    first = Prepared(decoder, tmp_path)
    assert first.made is not None
    (told,) = [event for event in first.events if isinstance(event, Guided)]
    # Of `draft` 3 chains and 2 optimal trees of each depth, some of which are the same; of `ngram` 3 chains.
    assert told.num_asked == told.num_priced == first.made.space.size()
    assert first.made.guide.is_complete
    assert len(told.best) == 3
    assert sorted(one.name for one in tmp_path.iterdir()) == ["measurements.jsonl", "profile.json", "trace"]
    assert set(first.made.predictor._simulator.trace.forests) == {"draft"}  # `other` is not in the space


def test_predictions_rank_by_what_is_looked_for(
    decoder: SpeculativeDecoder, measured: HardwareProfile, tmp_path: Path
) -> None:
    waits = Prepared(decoder, tmp_path / "waits", hardware=measured, objective="p95_inter_token_latency").made
    front = Prepared(decoder, tmp_path / "front", hardware=measured, objective="pareto").made
    assert waits is not None
    assert front is not None
    ranked = waits.guide.ranked()
    assert [one.log_ratio for one in ranked] == sorted((one.log_latency_ratios.mean() for one in ranked), reverse=True)
    assert {one.yardstick.name for one in ranked} == {"p95_latency_ratio"}
    assert {one.yardstick.name for one in front.guide.ranked()} == {"speedup"}
    paying = {one.config.drafter for one in front.guide.ranked() if one.log_ratio > 0.0}
    assert paying <= {one.drafter for one in front.guide.opening()}


def test_a_resumed_run_goes_on_with_what_was_kept(
    decoder: SpeculativeDecoder, measured: HardwareProfile, tmp_path: Path, monkeypatch: Any
) -> None:
    first = Prepared(decoder, tmp_path, hardware=measured).made
    monkeypatch.setattr(preparing, "profile", lambda *_: pytest.fail("profiled again"))
    monkeypatch.setattr(preparing.Recorder, "record", lambda *_: pytest.fail("recorded again"))
    second = Prepared(decoder, tmp_path, hardware=measured).made
    assert first is not None
    assert second is not None
    assert [(one.config, one.log_speedup) for one in first.guide.ranked()] == [
        (one.config, one.log_speedup) for one in second.guide.ranked()
    ]


def test_a_trace_that_was_cut_short_is_recorded_again(
    decoder: SpeculativeDecoder, measured: HardwareProfile, tmp_path: Path
) -> None:
    first = Prepared(decoder, tmp_path, hardware=measured).made
    (header,) = tmp_path.glob("trace/*/trace.json")
    header.write_text(header.read_text()[:40])
    second = Prepared(decoder, tmp_path, hardware=measured).made
    assert first is not None
    assert second is not None
    assert [one.config for one in first.guide.ranked()] == [one.config for one in second.guide.ranked()]


def test_optimal_trees_are_made_for_what_was_recorded(
    decoder: SpeculativeDecoder, measured: HardwareProfile, tmp_path: Path
) -> None:
    made = Prepared(decoder, tmp_path, hardware=measured).made
    assert made is not None
    # A draft that is the target itself is always right: the best tree of two nodes is a chain.
    params = {"drafter": "draft", "tree_shape": "optimal", "draft_length": 2, "tree_nodes": 2}
    assert made.space.config(params).tree_paths == ((0,), (0, 0))


def test_sampling_is_not_predicted(decoder: SpeculativeDecoder, tmp_path: Path) -> None:
    done = Prepared(decoder, tmp_path, sampling=SamplingParams(temperature=0.8))
    assert done.made is None
    assert done.events == []


def test_a_profile_that_was_given_is_used(
    decoder: SpeculativeDecoder, measured: HardwareProfile, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(preparing, "profile", lambda *_: pytest.fail("profiled"))
    done = Prepared(decoder, tmp_path, hardware=measured)
    assert done.made is not None
    assert done.made.predictor.profile == measured


def test_a_kept_profile_is_used_where_it_reaches_as_far_as_the_prompts(
    decoder: SpeculativeDecoder, measured: HardwareProfile, tmp_path: Path
) -> None:
    path = profile_path(tmp_path, key_of(decoder, SamplingParams()))
    path.parent.mkdir()
    measured.save(path)
    used = Prepared(decoder, tmp_path / "first", hardware=tmp_path).made
    assert used is not None
    assert used.predictor.profile == measured
    path.write_text("{}")
    done = Prepared(decoder, tmp_path / "second", hardware=tmp_path)
    assert [event.message[:24] for event in done.events if isinstance(event, Warned)] == ["costs are measured again"]
    assert done.made is not None


def test_a_profile_without_what_the_prompts_need_leaves_the_search_unguided(
    decoder: SpeculativeDecoder, tmp_path: Path
) -> None:
    settings = ProfileSettings(budget_seconds=0.5, contexts=(12, 13), widths=(), batch_sizes=())
    narrow = profile(decoder, Workload("digits", PROMPTS, PROMPTS, max_new_tokens=8), settings)
    done = Prepared(decoder, tmp_path, hardware=narrow)
    assert done.made is None
    (told,) = [event.message for event in done.events if isinstance(event, Warned)]
    assert told.startswith("nothing is predicted, the search goes without: ")


def test_the_recording_is_as_deep_and_wide_as_the_space() -> None:
    knobs = [
        Knob("drafter", Choices(("draft", "early_exit"))),
        Knob("draft_length", Choices((2, 5))),
        Knob("tree_shape", Choices(("chain", "beam"))),
        Knob("tree_width", Choices((3, 4)), (Condition("tree_shape", ("beam",)),)),
        Knob("exit_layer", Choices((2, 4)), (Condition("drafter", ("early_exit",)),)),
    ]
    budget = preparing._budget(SearchSpace(knobs))
    assert (budget.max_depth, budget.width, budget.exit_layers) == (5, 4, (2, 4))
    assert budget.max_nodes > 0
    assert preparing._budget(SearchSpace(knobs[:2])).max_nodes == 0
    assert SpecConfig("draft", 5) in list(SearchSpace(knobs[:2]).walk())


def test_what_the_cost_aware_rule_reads_comes_from_the_profile(
    decoder: SpeculativeDecoder, measured: HardwareProfile, tmp_path: Path
) -> None:
    knobs = [Knob("drafter", Choices(("draft",))), Knob("draft_length", Choices((6,)))]
    space = SearchSpace([*knobs, Knob("stop_rule", Choices(("static", "cost_aware")))])
    made = Prepared(decoder, tmp_path, space, hardware=measured).made
    assert made is not None
    assert set(decoder.costs) == {"draft"}
    assert decoder.costs["draft"].target == measured.cost_curve("draft", 18).target  # between 6 and 30 tokens before
    config = SpecConfig("draft", 6, stop_rule="cost_aware")
    outputs = decoder.generate(
        [decoder.render(one) for one in PROMPTS], config=config, max_new_tokens=8, ignore_eos=True
    )
    price = made.predictor.uncorrected(config)
    assert price is not None
    assert price.num_steps.tolist() == [output.stats.num_steps for output in outputs]
    Prepared(decoder, tmp_path / "again", TREES, hardware=measured)
    assert decoder.costs == {}  # a space without the rule has none
