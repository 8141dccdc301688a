"""The law of replay: what a trace gives for a configuration is what a live run gives, prompt by prompt."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.decoder import SpeculativeDecoder
from autospec.errors import ReplayError, ReplayMiss
from autospec.records import StepStats
from autospec.replay import RecordedPrompt, Recorder, RecordingBudget, Replay, Simulator, Trace

COUNTS = ("num_steps", "num_drafted", "num_accepted", "num_new_tokens", "num_step_tokens")
POSITIONS = ("position_tested", "position_accepted")
NEAR, TIE = 1e-5, 1e-4


@dataclass
class CallCounter:
    """Counts what the recorded drafters are asked to run."""

    calls: int = 0
    run: int = 0

    def watch(self, drafter: Any, patch: pytest.MonkeyPatch) -> None:
        expand = drafter.expand

        def counted(tree: Any, nodes: Any) -> Any:
            self.calls += 1
            self.run += len(nodes) * (nodes[0] != -1)
            return expand(tree, nodes)

        patch.setattr(drafter, "expand", counted, raising=True)


def live_runs(
    pair: SpeculativeDecoder,
    prompts: list[RecordedPrompt],
    config: SpecConfig,
    patch: pytest.MonkeyPatch,
    num_new: int = 32,
) -> list[tuple[StepStats, int, int]]:
    runs = []
    for prompt in prompts:
        counter = CallCounter()
        with patch.context() as inner:
            for name in ("draft", "early_exit"):
                counter.watch(pair.drafters[name], inner)
            output = pair.generate([prompt.prompt_ids], config=config, max_new_tokens=num_new, ignore_eos=True)[0]
        runs.append((output.stats, counter.calls, counter.run))
    return runs


def is_excused(trace: Trace, replay: Replay, row: int) -> bool:
    """Tell whether what decides at a visited position of a prompt is as near to deciding otherwise as rounding.

    The target's or the drafter's two best candidates, or the probability that a stopping rule compares.
    """
    contexts = replay.contexts[replay.prompts == row]
    behind = trace.top_logprobs[trace.text_starts[row] + contexts[0] - 1 : trace.text_starts[row + 1] - 1]
    if np.any(behind[:, 0] - behind[:, 1] < TIE):
        return True
    positions = trace.position_starts[row] + contexts - trace.prompts[row].num_prompt - 1
    for name, forest in trace.forests.items():
        if name.partition("@")[0] in replay.config.drafter_names:
            best = forest.rows.logprobs[positions]
            is_near = np.abs(np.exp(best[:, 0]) - replay.config.stop_threshold) < NEAR
            if np.any(is_near) or np.any(best[:, 0] - best[:, 1] < TIE):
                return True
    return False


def differences(replay: Replay, row: int, run: tuple[StepStats, int, int]) -> list[str]:
    own, (stats, calls, run_nodes) = replay.stats(row), run
    found = [name for name in (*COUNTS, *POSITIONS) if getattr(own, name) != getattr(stats, name)]
    found += ["calls"] * bool(replay.per_prompt(replay.calls)[row] != calls)
    return found + ["run"] * bool(replay.per_prompt(replay.run)[row] != run_nodes)


def check_law(
    pair: SpeculativeDecoder,
    prompts: list[RecordedPrompt],
    trace: Trace,
    configs: list[SpecConfig],
    patch: pytest.MonkeyPatch,
) -> None:
    simulator = Simulator(trace, pair.drafters, recorder=Recorder(pair, RecordingBudget(width=6)))
    num_excused, num_tokens = 0, 0
    for config in configs:
        replay = simulator.replay(config)
        for row, run in enumerate(live_runs(pair, prompts, config, patch)):
            num_tokens += run[0].num_new_tokens
            found = differences(replay, row, run)
            if found and is_excused(trace, replay, row):
                num_excused += 1
            else:
                assert not found, (config, row, found, replay.stats(row), run)
    print(f"{num_excused} excuses in {num_tokens} tokens of {len(configs)} configurations")
    assert num_excused <= max(1, num_tokens // 10_000)


@pytest.mark.parametrize("seed", range(2))
def test_replay_equals_live_runs(
    pair: SpeculativeDecoder,
    prompts: list[RecordedPrompt],
    trace: Trace,
    draw_config: Callable[[random.Random], SpecConfig],
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    numbers = random.Random(seed)
    check_law(pair, prompts, trace, [draw_config(numbers) for _ in range(15)], monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 110))
def test_replay_equals_live_runs_for_many_configurations(
    pair: SpeculativeDecoder,
    prompts: list[RecordedPrompt],
    trace: Trace,
    draw_config: Callable[[random.Random], SpecConfig],
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    numbers = random.Random(seed)
    check_law(pair, prompts, trace, [draw_config(numbers) for _ in range(30)], monkeypatch)


def test_steps_hold_what_a_cost_model_asks(trace: Trace) -> None:
    config = SpecConfig("draft", 3)
    replay = Simulator(trace).replay(config)
    own = replay.prompts == 0
    # Every step begins where the one before it ended, and the last one ends with the output.
    contexts, written = replay.contexts[own], replay.accepted[own] + 1
    assert contexts[0] == trace.prompts[0].num_prompt + 1
    np.testing.assert_array_equal(np.diff(contexts), written[:-1])
    assert contexts[-1] + written[-1] == trace.prompts[0].num_prompt + trace.prompts[0].num_new
    # A chain takes a forward for each token, and the last token is never run.
    np.testing.assert_array_equal(replay.calls, replay.nodes)
    np.testing.assert_array_equal(replay.run, np.maximum(replay.nodes - 1, 0))


def test_speculation_off_takes_a_step_for_every_token(trace: Trace) -> None:
    replay = Simulator(trace, max_new_tokens=10).replay(SpecConfig())
    assert replay.per_prompt().tolist() == [9] * len(trace.prompts)
    assert replay.per_prompt(replay.nodes).tolist() == [0] * len(trace.prompts)


def test_configurations_do_not_change_each_other(
    trace: Trace, draw_config: Callable[[random.Random], SpecConfig], pair: SpeculativeDecoder
) -> None:
    numbers = random.Random(7)
    configs = [config for config in (draw_config(numbers) for _ in range(40)) if config.tree_shape == "chain"]
    together = Simulator(trace, pair.drafters).replay_all(configs)
    for config, replay in zip(configs, together, strict=True):
        alone = Simulator(trace, pair.drafters).replay(config)
        np.testing.assert_array_equal(alone.contexts, replay.contexts)
        np.testing.assert_array_equal(alone.nodes, replay.nodes)


def test_a_draft_that_was_not_recorded_is_missed_and_then_recorded(
    pair: SpeculativeDecoder, prompts: list[RecordedPrompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = Recorder(pair, RecordingBudget(max_depth=2, width=6, max_nodes=0)).record(prompts[:1], 32)
    config = SpecConfig("draft", 6)
    with pytest.raises(ReplayMiss, match="draft x6 exact"):
        Simulator(trace).replay(config)
    replay = Simulator(trace, recorder=Recorder(pair)).replay(config)
    assert differences(replay, 0, live_runs(pair, prompts[:1], config, monkeypatch)[0]) == []
    np.testing.assert_array_equal(Simulator(trace).replay(config).nodes, replay.nodes)


def test_a_wider_node_than_was_recorded_is_missed(trace: Trace) -> None:
    with pytest.raises(ReplayMiss, match="6 candidates, not 7"):
        Simulator(trace).replay(SpecConfig("draft", 2, tree_shape="beam", tree_width=7))


@pytest.mark.parametrize("rule", ["lenient", "relaxed", "margin", "contrastive"])
def test_a_rule_that_leaves_the_recorded_text_is_refused(trace: Trace, rule: str) -> None:
    with pytest.raises(ReplayError, match=f"must keep the target's own tokens, but '{rule}'"):
        Simulator(trace).replay(SpecConfig("draft", 2, accept_rule=rule))


def test_a_drafter_that_the_trace_does_not_know_is_refused(trace: Trace) -> None:
    with pytest.raises(ReplayError, match="recorded or given, but 'other'"):
        Simulator(trace).replay(SpecConfig("other", 2))


def test_a_trace_that_would_be_too_large_is_refused_before_anything_runs(
    pair: SpeculativeDecoder, prompts: list[RecordedPrompt]
) -> None:
    with pytest.raises(ReplayError, match="must fit 1000 bytes, but would take about"):
        Recorder(pair, RecordingBudget(max_bytes=1000)).record(prompts, 32)


def test_a_trace_of_other_sampling_is_refused(trace: Trace) -> None:
    with pytest.raises(ReplayError, match="must be recorded under the sampling asked for"):
        Simulator(trace, sampling=SamplingParams(temperature=0.8))
    # Greedy decoding has no filters and no seed.
    assert Simulator(trace, sampling=SamplingParams(top_k=5, seed=9)).replay(SpecConfig()).num_prompts


def test_what_configurations_miss_is_recorded_together(
    pair: SpeculativeDecoder, prompts: list[RecordedPrompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(pair, RecordingBudget(max_depth=4, width=4, max_nodes=0, exit_layers=(2,)))
    trace = recorder.record(prompts[:2], 16)
    shapes = [("best_first", 2, 6), ("best_first", 3, 9), ("beam", 3, 8), ("chain", 1, 1)]
    trees = [
        SpecConfig("draft", 6, tree_shape=shape, tree_width=width, tree_nodes=nodes) for shape, width, nodes in shapes
    ]
    exits = [replace(tree, drafter="early_exit", exit_layer=2) for tree in trees]
    asked, extend = list[tuple[str, int]](), recorder.extend

    def counted(trace: Trace, key: str, configs: list[SpecConfig], *rest: Any) -> None:
        asked.append((key, len(configs)))
        extend(trace, key, configs, *rest)

    monkeypatch.setattr(recorder, "extend", counted)
    simulator = Simulator(trace, pair.drafters, recorder=recorder)
    simulator.may_record = False
    for config in (*trees, *exits):
        with pytest.raises(ReplayMiss):
            simulator.replay(config)
    simulator.may_record = True
    assert simulator.parts_to_record(exits[0]) == ("early_exit@2",)
    assert simulator.seconds_to_record(exits) > simulator.seconds_to_record(trees) > 0.0
    simulator.record([*trees, *exits])
    assert asked == [("draft", 4), ("early_exit@2", 4)]
    alone = Simulator(trace, pair.drafters)
    for config in (*trees, *exits):
        for row, run in enumerate(live_runs(pair, prompts[:2], config, monkeypatch, 16)):
            assert not differences(alone.replay(config), row, run)
