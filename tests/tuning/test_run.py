"""The whole of `tune` on a real, tiny, untrained model: every part meets every other."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from autospec.config import SamplingParams
from autospec.engine.decoder import SpeculativeDecoder
from autospec.errors import WorkloadError
from autospec.policy import load_policy
from autospec.records import Measurement, Prompt, Workload
from autospec.replay import Simulator, Trace
from autospec.tuning import SearchSpace, StudySettings, tune
from autospec.tuning.confirm import Confirmation
from autospec.tuning.events import Event, Warned
from autospec.tuning.log import read_measurements
from autospec.tuning.run import run_task


@pytest.fixture(scope="module")
def decoder() -> SpeculativeDecoder:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    decoder = SpeculativeDecoder.from_pretrained(model, {"ngram": "ngram", "draft": model}, device="cpu")
    decoder.render = lambda prompt: [3 + int(digit) for digit in prompt.text]  # type: ignore[method-assign]
    return decoder


@pytest.mark.parametrize("sampling", [SamplingParams(), SamplingParams(temperature=0.8, top_p=0.95)])
def test_tune_writes_a_policy_that_loads(decoder: SpeculativeDecoder, tmp_path: Path, sampling: SamplingParams):
    workload = Workload(
        "digits",
        tune=tuple(Prompt(f"t{i}", "odd" if i % 2 else "even", f"{i}12{i}12") for i in range(4)),
        held_out=tuple(Prompt(f"h{i}", "odd" if i % 2 else "even", f"{i}34{i}34") for i in range(4)),
        sampling=sampling,
        max_new_tokens=8,
    )
    settings = StudySettings(trials=3, minutes=1.0, prompts_per_trial=4, finalist_prompts=4, finalists=1)
    result = tune(decoder, workload, SearchSpace.load("smoke"), output_dir=tmp_path / "run", settings=settings)
    assert result.finished
    # Whether more trials promise anything is the machine's to say.
    assert result.stop_reason in ("trials", "converged: nothing is predicted to be faster")
    assert result.num_live_trials >= 2
    policy = load_policy(tmp_path / "run" / "policy.json")
    assert policy.choose() == result.policy.choose()
    assert policy.sampling == sampling
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert set(written["speedup"]) == {"value", "low", "high", "num_prompts"}
    assert set(written["categories"]) == {"odd", "even"}
    assert set(written["bootstrap"]) == {"speedup", "categories", "overall_speedup"}
    assert set(written["bootstrap"]["categories"]) == {"odd", "even"}
    assert all(set(claim["bootstrap"]) == {"low", "high"} for claim in written["claims"].values())
    error = written["cost_model_error"]
    assert written["num_replayed_trials"] == error["num_priced"] == SearchSpace.load("smoke").size()
    assert error["uncorrected"]["num_pairs"] == error["by_config"]["num_pairs"] >= 1
    assert (error["num_expected"], error["acceptance"]) == (0, [])
    if sampling.is_greedy:
        assert {one["drafter"] for one in error["independence"]} == {"draft", "ngram"}
        # The draft is the target itself: always accepted, and the formula says so.
        (own,) = [one for one in error["independence"] if one["drafter"] == "draft"]
        assert own["acceptance"] == own["after_accepted"] == 1.0
    else:
        assert [one["drafter"] for one in error["independence"]] == ["ngram"]  # the other's chains are drawn
    assert [one["measured_speedup"]["num_prompts"] for one in error["held_out"]] == [4] * len(error["held_out"])
    assert written["token_identity"]["num_different"] == 0
    found = read_measurements(tmp_path / "run" / "measurements.jsonl")
    assert all(one.identical for one in found)
    # What was priced by replaying is what was run, under sampling too.
    check_replayed(tmp_path / "run", found)


def check_replayed(folder: Path, found: list[Measurement]) -> None:
    """Every measurement of the search took the steps that the kept trace says."""
    (kept,) = (folder / "trace").iterdir()
    simulator = Simulator(Trace.load(kept))
    rows = {prompt.prompt_id: row for row, prompt in enumerate(simulator.trace.prompts)}
    measured = [one for one in found if one.stage == "search" and not one.config.is_off]
    assert measured
    for one in measured:
        own = simulator.replay(one.config).stats(rows[one.prompt_id])
        assert (own.num_steps, own.num_drafted, own.num_accepted) == (
            one.stats.num_steps,
            one.stats.num_drafted,
            one.stats.num_accepted,
        )


def test_a_study_that_is_not_guided_records_and_profiles_nothing(decoder: SpeculativeDecoder, tmp_path: Path):
    prompts = tuple(Prompt(f"t{i}", "one", f"{i}12{i}12") for i in range(8))
    workload = Workload("digits", prompts[:4], prompts[4:], max_new_tokens=8)
    settings = StudySettings(trials=1, minutes=1.0, prompts_per_trial=4, finalist_prompts=4, guided=False)
    result = tune(decoder, workload, SearchSpace.load("smoke"), output_dir=tmp_path, settings=settings)
    assert result.predicted is None
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "measurements.jsonl", "policy.json", "result.json", "study.journal",
    ]  # fmt: skip


def test_prompts_that_do_not_fit_are_refused_before_anything_is_written(decoder: SpeculativeDecoder, tmp_path: Path):
    prompts = tuple(Prompt(f"t{i}", "one", f"{i}12{i}12") for i in range(4))
    workload = Workload("digits", prompts, (Prompt("long", "one", "1" * 121),), max_new_tokens=8)
    with pytest.raises(
        WorkloadError, match=r"128 tokens, but .* room for 120 and 1 prompts are longer.*'long' \(121\)"
    ):
        tune(decoder, workload, SearchSpace.load("smoke"), output_dir=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_mismatch_fails_the_trial_with_its_evidence(
    decoder: SpeculativeDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A decoder that spoils the tokens of one drafter: the study goes on without it."""
    generate = decoder.generate

    def spoiled(prompts, *, config, **options):  # type: ignore[no-untyped-def]
        outputs = generate(prompts, config=config, **options)
        if config.drafter == "draft":
            object.__setattr__(outputs[0], "token_ids", (0, *outputs[0].token_ids[1:]))
        return outputs

    monkeypatch.setattr(decoder, "generate", spoiled)
    workload = Workload(
        "digits",
        tune=tuple(Prompt(f"t{i}", "one", f"{i}12{i}12") for i in range(4)),
        held_out=tuple(Prompt(f"h{i}", "one", f"{i}34{i}34") for i in range(4)),
        max_new_tokens=8,
    )
    settings = StudySettings(trials=6, minutes=0.0, prompts_per_trial=4, finalist_prompts=4, max_failures=9)
    tune(decoder, workload, SearchSpace.load("smoke"), output_dir=tmp_path / "run", settings=settings)
    lines = [json.loads(line) for line in (tmp_path / "run" / "measurements.jsonl").read_text().splitlines()]
    reasons = [line["failure"]["reason"] for line in lines if "failure" in line]
    assert reasons
    assert all(reason.startswith("MismatchError") and "differs at token 0" in reason for reason in reasons)


def test_what_t_and_bootstrap_disagree_about_is_warned_of(
    fakes: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    events: list[Event] = []
    monkeypatch.setattr(Confirmation, "disputes", lambda self: [f"{len(self.claims)} claims are disputed"])
    result = run_task(fakes.make_task(tmp_path, on_event=events.append))
    num_claims = len(result.confirmation.claims)
    assert num_claims > 0
    assert [one.message for one in events if isinstance(one, Warned)][-1] == f"{num_claims} claims are disputed"
    written = json.loads((tmp_path / "result.json").read_text())
    check, speedup = written["bootstrap"]["speedup"], written["speedup"]
    assert check["low"] < speedup["value"] < check["high"]
    assert written["bootstrap"]["categories"]["code"]["low"] == pytest.approx(
        written["categories"]["code"]["low"], rel=0.1
    )
