"""What a guided study records, measures and keeps, on a tiny untrained model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.costs import CostCurve
from autospec.engine.decoder import SpeculativeDecoder
from autospec.policy import load_policy
from autospec.policy.build import Choice, build_policy, reproduction
from autospec.profiling import HardwareProfile, ProfileSettings, key_of, profile, profile_path
from autospec.records import Prompt, Workload
from autospec.runners.live import LiveRunner
from autospec.tuning import preparing
from autospec.tuning.events import Event, Guided, NullTracker, Warned
from autospec.tuning.knobs import Choices, Condition, Knob
from autospec.tuning.log import MeasurementLog
from autospec.tuning.measuring import Measurer
from autospec.tuning.predicted import predictions_json
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
def sampled() -> SpeculativeDecoder:
    """Two models that do not agree, and are sure enough of themselves to be told apart."""
    return tiny_pair()


def tiny_pair() -> SpeculativeDecoder:
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=128, bos_token_id=1, eos_token_id=2, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(1)
    target, drafter = LlamaForCausalLM(config).eval(), LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for own, other in zip(drafter.parameters(), target.parameters(), strict=True):
            own.copy_(0.8 * other + 0.2 * own)
    made = SpeculativeDecoder.from_pretrained(target, {"ngram": "ngram", "other_model": drafter}, device="cpu")
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
        sampling, num_new = changes.pop("sampling", SamplingParams()), changes.pop("max_new_tokens", 8)
        objective = changes.pop("objective", "tokens_per_second")
        task = Task(
            decoder=decoder,
            runner=None,  # type: ignore[arg-type]
            workload=Workload("digits", PROMPTS, PROMPTS, sampling, max_new_tokens=num_new),
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
    monkeypatch.setattr(preparing, "profile_text", lambda *_: pytest.fail("profiled again"))
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


SAMPLING = SamplingParams(temperature=0.8, top_p=0.95, seed=3)
SAMPLED = SearchSpace([
    Knob("drafter", Choices(("other_model", "ngram"))),
    Knob("draft_length", Choices((1, 3))),
    Knob("tree_shape", Choices(("chain", "optimal")), (Condition("drafter", ("other_model",)),)),
    Knob("tree_nodes", Choices((3,)), (Condition("tree_shape", ("optimal",)),)),
    Knob("accept_rule", Choices(("exact", "rejection", "multi_candidate"))),
    Knob("draft_temperature", Choices((-1.0, 0.5)), (Condition("drafter", ("other_model",)),)),
])  # fmt: skip


def test_under_sampling_what_keeps_plain_tokens_is_replayed_and_other_rules_are_expected(
    sampled: SpeculativeDecoder, tmp_path: Path
) -> None:
    done = Prepared(sampled, tmp_path, SAMPLED, sampling=SAMPLING)
    assert done.made is not None
    prices = {one.config: one for one in done.made.guide.ranked()}
    (told,) = [event for event in done.events if isinstance(event, Guided)]
    assert (told.num_asked, told.num_priced) == (done.made.space.size(), len(prices))
    # Drawn children of trees are left to the sampler: one tree for each temperature and depth.
    trees = [config for config in prices if config.tree_shape == "optimal"]
    assert {config.accept_rule for config in trees} == {"exact"}
    chains = [config for config in prices if config.tree_shape == "chain"]
    assert {config.accept_rule for config in chains} == {"exact", "rejection", "multi_candidate"}
    assert {config.draft_temperature for config in chains} == {-1.0, 0.5}
    assert {config for config, one in prices.items() if one.is_exact} == {
        config for config in prices if config.accept_rule == "exact"
    }
    assert told.num_expected == sum(config.accept_rule != "exact" for config in prices) > 0
    assert set(told.expected) == {config for config, _ in told.best if config.accept_rule != "exact"}
    rows = predictions_json(done.made)["rows"]
    assert {row["config"].get("accept_rule", "exact"): row["is_exact"] for row in rows} == {
        "exact": True, "rejection": False, "multi_candidate": False,
    }  # fmt: skip
    assert done.made.predictor.profile.sampling == SAMPLING


def test_under_sampling_the_steps_that_are_replayed_are_those_that_are_measured(
    sampled: SpeculativeDecoder, tmp_path: Path
) -> None:
    made = Prepared(sampled, tmp_path, SAMPLED, sampling=SAMPLING).made
    assert made is not None
    runner = LiveRunner(sampled, SAMPLING, 8)
    exact = [config for config in made.guide.candidates if config.accept_rule == "exact"]
    for config in exact:
        price = made.predictor.uncorrected(config)
        assert price is not None
        live = [runner.measure(config, one, stage="search", trial=1, repeat=0).stats for one in PROMPTS]
        assert price.num_steps.tolist() == [one.num_steps for one in live], config.short()
    assert len(exact) == 2 * 2 + 2 * 2 + 2


def test_a_profile_of_other_decoding_is_used_with_a_warning(
    decoder: SpeculativeDecoder, measured: HardwareProfile, tmp_path: Path
) -> None:
    done = Prepared(decoder, tmp_path, SearchSpace.load("smoke"), hardware=measured, sampling=SAMPLING)
    (told,) = [event.message for event in done.events if isinstance(event, Warned)]
    assert told.startswith("a profile should be measured under the decoding that is tuned")
    assert done.made is not None


def test_a_given_profile_of_models_that_were_compiled_is_warned_of(
    decoder: SpeculativeDecoder, measured: HardwareProfile, tmp_path: Path
) -> None:
    done = Prepared(decoder, tmp_path, SearchSpace.load("smoke"), hardware=replace(measured, compile=True))
    (told,) = [event.message for event in done.events if isinstance(event, Warned)]
    assert told == "the profile is of compiled models, but these are uncompiled"
    assert done.made is not None


def test_a_profile_that_was_given_is_used(
    decoder: SpeculativeDecoder, measured: HardwareProfile, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(preparing, "profile_text", lambda *_: pytest.fail("profiled"))
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


@pytest.mark.parametrize(
    ("asked", "is_enough"),
    [
        ({}, True),
        ({"context_lengths": (24,)}, True),
        ({"context_lengths": (24, 60)}, False),
        ({"batch_sizes": (2,)}, False),
    ],
)
def test_a_kept_profile_is_used_where_it_knows_the_lengths_and_batches_that_are_asked(
    decoder: SpeculativeDecoder, measured: HardwareProfile, tmp_path: Path, asked: dict[str, Any], is_enough: bool
) -> None:
    """It was measured to 40 tokens, one prompt at a time; a prompt has 50, the others 6 to 24."""
    path = profile_path(tmp_path, key_of(decoder, SamplingParams()))
    path.parent.mkdir()
    measured.save(path)
    tune = (*PROMPTS, Prompt("long", "even", "12345" * 10))
    workload = Workload("digits", tune, PROMPTS, max_new_tokens=8, **asked)
    task: Any = SimpleNamespace(hardware=tmp_path, decoder=decoder, workload=workload)
    trace: Any = SimpleNamespace(contexts=np.array([7, 20]))
    assert (preparing._kept(task, trace) == measured) is is_enough


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
    # The draft is the target itself, and always right: there is nothing to learn.
    assert decoder.costs["draft"].acceptance is None
    Prepared(decoder, tmp_path / "again", TREES, hardware=measured)
    assert decoder.costs == {}  # a space without the rule has none


def test_the_cost_aware_rule_reads_chances_learnt_from_the_trace_live_as_replayed(
    sampled: SpeculativeDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two tiny models cost the same, so that nothing would be worth drafting.
    monkeypatch.setattr(HardwareProfile, "cost_curve", lambda *_: CostCurve(1.0, 0.02, 0.1))
    knobs = [Knob("drafter", Choices(("other_model",))), Knob("draft_length", Choices((6, 8)))]
    space = SearchSpace([*knobs, Knob("stop_rule", Choices(("static", "cost_aware")))])
    made = Prepared(sampled, tmp_path, space, max_new_tokens=32).made
    assert made is not None
    (learnt,) = made.acceptance
    assert learnt.acceptance is not None
    own = made.predictor._simulator.costs["other_model"]
    assert sampled.costs["other_model"] == own
    assert own.acceptance == learnt.acceptance
    config = SpecConfig("other_model", 8, stop_rule="cost_aware")

    def steps(decoder: SpeculativeDecoder) -> list[tuple[int, int]]:
        outputs = [
            decoder.generate([sampled.render(one)], config=config, max_new_tokens=32, ignore_eos=True)[0].stats
            for one in PROMPTS
        ]
        return [(one.num_steps, one.num_drafted) for one in outputs]

    replay = made.predictor._simulator.replay(config)
    live = steps(sampled)
    assert live == [(replay.stats(row).num_steps, replay.stats(row).num_drafted) for row in range(len(PROMPTS))]
    # What was learnt decides: at these costs the drafter's own probabilities draft otherwise.
    plain = {"other_model": replace(own, acceptance=None)}
    assert steps(SpeculativeDecoder(sampled.target, sampled.drafters, costs=plain)) != live
    # A policy takes it along.
    workload = Workload("digits", PROMPTS, PROMPTS, max_new_tokens=32)
    policy = build_policy(sampled, workload, {}, Choice(config), {}, reproduction("test", 0))
    policy.save(tmp_path / "policy.json")
    assert load_policy(tmp_path / "policy.json").costs == {"other_model": own}
