from __future__ import annotations

import gc
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.cache import KVCache
from autospec.engine.lean.maps import can_pack
from autospec.errors import BaselineError, ConfigError, MeasurementError, MismatchError, ModelError, ScorerError
from autospec.records import Generation, Prompt, StepStats
from autospec.runners.live import LiveRunner

OFF, DRAFT = SpecConfig(), SpecConfig("draft", 4)
PROMPTS = [Prompt(f"p{index}", "code", text="x") for index in range(4)]


@dataclass
class FakeDecoder:
    """Emits planted tokens and keeps what it was asked."""

    tokens: dict[str, list[int]] = field(default_factory=dict)  # drafter to its output
    gap: float = 1.0
    dtype: torch.dtype = torch.float32
    failure: Exception | None = None
    calls: list[dict[str, Any]] = field(default_factory=list)
    gc_was_on: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        needs = SimpleNamespace(target_slots=lambda config: 0)
        self.drafters = {"draft": SimpleNamespace(needs=needs), "ngram": SimpleNamespace(needs=needs)}
        self.target = SimpleNamespace(
            device=torch.device("cpu"), dtype=self.dtype, eos_token_ids=frozenset(), forward=self.forward
        )

    def forward(self, input_ids: torch.Tensor, cache: KVCache, *, num_logits: int) -> torch.Tensor:
        """All 16 tokens are as likely as each other; the first of them is the choice."""
        cache.advance(input_ids.shape[1])
        self.gc_was_on.append(gc.isenabled())
        return torch.zeros(1, num_logits, 16)

    def render(self, prompt: Prompt) -> list[int]:
        return [7, 8, int(prompt.prompt_id[1:])]

    def check(self, config: SpecConfig) -> None:
        if config.drafter == "unknown":
            raise ConfigError("no such drafter")

    def generate(self, prompts: list[list[int]], *, config: SpecConfig, **options: Any) -> list[Generation]:
        self.calls.append({"config": config, "prompt": prompts[0], **options})
        self.gc_was_on.append(gc.isenabled())
        if self.failure is not None and not config.is_off:
            raise self.failure
        ids = tuple(self.tokens.get(config.drafter, [1, 2, 3, 4])[: options["max_new_tokens"]])
        return [
            Generation(
                ids, "", StepStats(num_steps=2, prefill_seconds=0.001, num_new_tokens=len(ids)), "length", tuple(one)
            )
            for one in prompts
        ]

    def tie_gap(self, prompt_ids: list[int], token_ids: list[int], index: int, sampling: SamplingParams) -> float:
        self.asked = (prompt_ids, token_ids, index, sampling)
        return self.gap


def runner_of(decoder: FakeDecoder, sampling: SamplingParams | None = None) -> LiveRunner:
    return LiveRunner(decoder, sampling or SamplingParams(), 12)  # type: ignore[arg-type]


def measure(runner: LiveRunner, config: SpecConfig = DRAFT, prompt: Prompt = PROMPTS[0], repeat: int = 0) -> Any:
    return runner.measure(config, prompt, stage="search", trial=3, repeat=repeat)


def orders(decoder: FakeDecoder) -> list[str]:
    """For every measurement which of the two came first; warm-up left out."""
    timed = [call for call in decoder.calls if call["max_new_tokens"] == 12]
    return [
        "".join("A" if call["config"].is_off else "B" for call in timed[i : i + 2]) for i in range(0, len(timed), 2)
    ]


def test_the_order_alternates_by_prompt_and_by_repeat():
    decoder = FakeDecoder()
    runner = runner_of(decoder)
    for repeat in (0, 1):
        for prompt in PROMPTS:
            measure(runner, prompt=prompt, repeat=repeat)
    assert orders(decoder) == ["AB", "BA", "AB", "BA", "BA", "AB", "BA", "AB"]


def test_the_order_alternates_within_every_category():
    decoder = FakeDecoder()
    runner = runner_of(decoder)
    for prompt in (PROMPTS[0], Prompt("p9", "prose"), PROMPTS[1], Prompt("p8", "prose")):
        measure(runner, prompt=prompt)
    assert orders(decoder) == ["AB", "AB", "BA", "BA"]


def test_a_configuration_is_warmed_up_once_and_shortly():
    decoder = FakeDecoder()
    runner = runner_of(decoder)
    for prompt in PROMPTS:
        measure(runner, prompt=prompt)
    warm_up = [call for call in decoder.calls if call["max_new_tokens"] == 8]
    assert [call["config"] for call in warm_up] == [OFF, DRAFT]
    assert decoder.calls[:2] == warm_up


def test_both_go_on_behind_the_end_of_text_on_the_same_prompt():
    decoder = FakeDecoder()
    measure(runner_of(decoder), prompt=PROMPTS[2])
    assert all(call["ignore_eos"] for call in decoder.calls)
    assert {tuple(call["prompt"]) for call in decoder.calls} == {(7, 8, 2)}


def test_the_record_holds_what_was_asked_and_counted():
    one = measure(runner_of(FakeDecoder()), repeat=2)
    assert (one.config, one.prompt_id, one.category, one.stage, one.trial, one.repeat) == (
        DRAFT, "p0", "code", "search", 3, 2,
    )  # fmt: skip
    assert (one.num_tokens, one.baseline_num_tokens) == (4, 4)
    assert one.identical is True
    assert one.num_excused == 0
    assert (one.difference_index, one.difference_gap) == (None, None)
    assert one.stats.num_steps == 2
    assert one.seconds > 0
    assert one.baseline_seconds > 0
    assert one.peak_memory_bytes > 1_000_000


def test_seeds_differ_by_prompt_and_stay_for_repeats():
    decoder = FakeDecoder()
    runner = runner_of(decoder, SamplingParams(temperature=0.8, seed=5))
    for prompt, repeat in ((PROMPTS[0], 0), (PROMPTS[1], 0), (PROMPTS[0], 1)):
        measure(runner, prompt=prompt, repeat=repeat)
    seeds = [call["sampling"].seed for call in decoder.calls if call["max_new_tokens"] == 12]
    assert seeds[0] == seeds[1] == seeds[4] == seeds[5]
    assert seeds[2] == seeds[3] != seeds[0]


def test_other_tokens_in_float32_are_an_error_with_its_evidence():
    decoder = FakeDecoder(tokens={"draft": [1, 2, 9, 4]}, gap=0.25)
    with pytest.raises(
        MismatchError, match=r"'p0' differs at token 2: \[1, 2, 9, 4\] instead of \[1, 2, 3, 4\].*2.50e-01"
    ):
        measure(runner_of(decoder))
    assert decoder.asked[0] == [7, 8, 0]
    assert decoder.asked[1:3] == ([1, 2, 3, 4], 2)


def test_a_tie_excuses_a_first_difference_and_nothing_is_compared_behind_it():
    one = measure(runner_of(FakeDecoder(tokens={"draft": [1, 9, 9, 9]}, gap=9e-5)))
    assert one.identical is True
    assert one.num_excused == 1
    assert (one.difference_index, one.difference_gap) == (1, 9e-5)


def test_no_tie_at_the_limit():
    with pytest.raises(MismatchError):
        measure(runner_of(FakeDecoder(tokens={"draft": [1, 9, 9, 9]}, gap=1e-4)))


def test_in_half_precision_a_difference_is_counted():
    one = measure(runner_of(FakeDecoder(tokens={"draft": [1, 9, 9, 9]}, gap=0.5, dtype=torch.bfloat16)))
    assert one.identical is False
    assert one.num_excused == 0
    assert (one.difference_index, one.difference_gap) == (1, 0.5)


def test_in_half_precision_an_output_that_merely_ended_first_has_no_gap():
    one = measure(runner_of(FakeDecoder(tokens={"draft": [1, 2, 3]}, dtype=torch.bfloat16)))
    assert one.identical is False
    assert (one.difference_index, one.difference_gap) == (3, None)


def test_a_shorter_output_is_a_difference():
    with pytest.raises(MismatchError, match="differs at token 3"):
        measure(runner_of(FakeDecoder(tokens={"draft": [1, 2, 3]}, gap=0.0)))


@pytest.mark.parametrize(("rule", "identical"), [("rejection", None), ("block", None)])
def test_under_sampling_rules_that_promise_only_the_distribution_are_not_compared(rule: str, identical: None):
    decoder = FakeDecoder(tokens={"draft": [9, 9, 9, 9]})
    one = measure(runner_of(decoder, SamplingParams(temperature=1.0)), SpecConfig("draft", 4, accept_rule=rule))
    assert one.identical is identical


def test_under_sampling_exact_promises_the_tokens():
    decoder = FakeDecoder(tokens={"draft": [9, 9, 9, 9]})
    with pytest.raises(MismatchError):
        measure(runner_of(decoder, SamplingParams(temperature=1.0)))


def test_greedily_every_lossless_rule_promises_the_tokens():
    with pytest.raises(MismatchError):
        measure(runner_of(FakeDecoder(tokens={"draft": [9]})), SpecConfig("draft", 4, accept_rule="rejection"))


@pytest.mark.parametrize("rule", ["typical", "lenient", "relaxed", "margin", "contrastive"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_lossy_rule_promises_no_tokens(rule: str, temperature: float):
    decoder = FakeDecoder(tokens={"draft": [9, 9, 9, 9]})
    one = measure(
        runner_of(decoder, SamplingParams(temperature=temperature)), SpecConfig("draft", 4, accept_rule=rule)
    )
    assert (one.identical, one.num_excused) == (None, 0)


def test_the_quality_of_a_lossy_rule_is_read_outside_the_timed_regions_and_of_no_other():
    decoder = FakeDecoder(tokens={"draft": [0, 9, 9, 9]})
    one = measure(runner_of(decoder), SpecConfig("draft", 4, accept_rule="lenient"))
    assert one.quality is not None
    assert one.quality.log_prob == pytest.approx(-math.log(16))
    assert (one.quality.loss, one.quality.agreement, one.quality.baseline_agreement) == (0.0, 0.25, 0.0)
    assert decoder.gc_was_on == [True, True, False, False, True, True, True]  # warm-up, timed, footprint, two readings
    assert measure(runner_of(FakeDecoder())).quality is None


@pytest.mark.parametrize(
    "failure", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("not enough memory: you tried\nto"),
                NotImplementedError("no kernel")],
)  # fmt: skip
def test_what_an_engine_cannot_do_is_a_measurement_error(failure: Exception):
    with pytest.raises(MeasurementError, match="draft x4") as caught:
        measure(runner_of(FakeDecoder(failure=failure)))
    assert caught.value.__cause__ is failure
    assert "\n" not in str(caught.value)


def test_errors_of_our_own_keep_their_kind():
    with pytest.raises(ModelError, match="too long"):
        measure(runner_of(FakeDecoder(failure=ModelError("too long"))))
    with pytest.raises(ConfigError):
        measure(runner_of(FakeDecoder()), SpecConfig("unknown", 4))


@pytest.mark.parametrize("failure", [torch.OutOfMemoryError("CUDA out of memory"), ModelError("too long")])
@pytest.mark.parametrize("config", [DRAFT, OFF])
def test_plain_decoding_that_fails_is_the_fault_of_no_configuration(
    failure: Exception, config: SpecConfig, monkeypatch: pytest.MonkeyPatch
):
    decoder = FakeDecoder()
    runner = runner_of(decoder)
    measure(runner, config)
    monkeypatch.setattr(decoder, "generate", refuse_off(decoder.generate, failure))
    with pytest.raises(BaselineError, match=r"prompt 'p1': plain decoding must be possible.*, but: ") as caught:
        measure(runner, config, PROMPTS[1])
    assert caught.value.__cause__ is failure


def refuse_off(generate: Callable[..., Any], failure: Exception) -> Callable[..., Any]:
    def refusing(prompts: list[list[int]], *, config: SpecConfig, **options: Any) -> list[Generation]:
        if config.is_off:
            raise failure
        return list(generate(prompts, config=config, **options))

    return refusing


def test_a_bug_is_not_taken_for_a_failed_configuration():
    with pytest.raises(KeyError):
        measure(runner_of(FakeDecoder(failure=KeyError("bug"))))


def test_the_garbage_collector_pauses_only_while_the_clock_runs():
    decoder = FakeDecoder()
    measure(runner_of(decoder))
    assert decoder.gc_was_on == [True, True, False, False, True]  # two warm-ups, two timed calls, the footprint's
    assert gc.isenabled()
    with pytest.raises(KeyError):
        measure(runner_of(FakeDecoder(failure=KeyError("bug"))))
    assert gc.isenabled()


@pytest.fixture(scope="module")
def tiny() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    from autospec.engine.decoder import SpeculativeDecoder

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    decoder = SpeculativeDecoder.from_pretrained(model, {"ngram": "ngram", "draft": model}, device="cpu")
    decoder.render = lambda prompt: [3, 4, 5, 3, 4]  # type: ignore[method-assign]
    return decoder


@pytest.mark.parametrize("config", [SpecConfig("ngram", 6), SpecConfig("draft", 3), OFF])
@pytest.mark.parametrize("sampling", [SamplingParams(), SamplingParams(temperature=0.8)])
def test_measuring_twice_gives_the_same_acceptance(tiny: Any, config: SpecConfig, sampling: SamplingParams):
    """Nothing a drafter learns on one prompt may help on the next."""
    runner = LiveRunner(tiny, sampling, 24)
    first, second = (measure(runner, config, repeat=repeat) for repeat in (0, 1))
    assert first.identical is True
    assert first.num_tokens == first.baseline_num_tokens == 24
    counts = [(one.stats.num_steps, one.stats.num_drafted, one.stats.num_accepted) for one in (first, second)]
    assert counts[0] == counts[1]
    assert 0 < first.baseline_prefill_seconds < first.baseline_seconds


def test_gaps_are_kept_of_both_sides(tiny: Any) -> None:
    one = measure(LiveRunner(tiny, SamplingParams(), 24), SpecConfig("draft", 3))
    assert len(one.stats.gap_seconds) == one.stats.num_steps
    assert len(one.baseline_gap_seconds) == 23  # one for each token behind the prefill's
    assert 0.0 < sum(one.baseline_gap_seconds) < one.baseline_seconds
    assert 0.0 < sum(one.stats.gap_seconds) < one.seconds


def test_a_footprint_is_weights_and_caches_of_what_a_configuration_names(tiny: Any) -> None:
    """Both models are the same one, so that the drafter adds its cache alone; a lookup adds nothing."""
    runner = LiveRunner(tiny, SamplingParams(), 24)
    model = tiny.target.model
    maps = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    # Small maps are held in two forms where they are packed.
    twice = can_pack(torch.device("cpu"), torch.float32)
    weights = sum(one.nbytes for one in model.parameters()) + twice * sum(one.nbytes for one in maps)
    token = 2 * 2 * 16 * 4  # keys and values of 2 layers, 16 wide, in float32
    room = 5 + 24
    assert measure(runner, OFF).footprint_bytes == weights + token * room
    assert measure(runner, SpecConfig("ngram", 6)).footprint_bytes == weights + token * room
    assert measure(runner, SpecConfig("draft", 3)).baseline_footprint_bytes == weights + token * room
    tree = SpecConfig("draft", 3, tree_shape="best_first", tree_width=2, tree_nodes=6)
    chain, branching = (measure(runner, config).footprint_bytes for config in (SpecConfig("draft", 3), tree))
    assert chain >= weights + 2 * token * room
    assert branching >= chain + token * 6  # nodes beside the path need room in the target's cache


def test_a_scorer_is_tried_on_plain_decoding_beforehand() -> None:
    decoder = FakeDecoder()
    decoder.text = SimpleNamespace(decode=lambda ids: " ".join(map(str, ids)))  # type: ignore[attr-defined]
    seen = []
    LiveRunner(decoder, SamplingParams(), 4, lambda prompt, text: float(seen.append(text) or 1)).try_scorer(PROMPTS[0])
    assert seen == ["1 2 3 4"]
    assert [call["config"] for call in decoder.calls] == [OFF]
    with pytest.raises(ScorerError, match="on prompt 'p0' it raised ZeroDivisionError"):
        LiveRunner(decoder, SamplingParams(), 4, lambda prompt, text: 1 / 0).try_scorer(PROMPTS[0])


def test_a_prompt_with_companions_is_measured_as_a_batch() -> None:
    decoder = FakeDecoder({"draft": [1, 2, 3, 4]})
    group = replace(PROMPTS[0], prompt_id="p9", companions=(PROMPTS[1], PROMPTS[2]))
    measured = measure(runner_of(decoder), prompt=group)
    timed = [call for call in decoder.calls if call["max_new_tokens"] == 12]
    assert [(call["prompt"], call["batch_size"]) for call in timed] == [([7, 8, 9], 3)] * 2
    assert (measured.num_tokens, measured.baseline_num_tokens) == (12, 12)
    assert (measured.stats.num_steps, measured.stats.num_new_tokens) == (6, 12)
    assert measured.prefill_seconds == pytest.approx(0.003)
    assert measured.identical
    assert (measured.num_outputs, measured.num_unlike) == (3, 0)
    assert measured.prompt_id == "p9"


def test_one_row_of_a_batch_that_differs_is_found_with_the_seed_of_its_row() -> None:
    class Differing(FakeDecoder):
        def generate(self, prompts: list[list[int]], *, config: SpecConfig, **options: Any) -> list[Generation]:
            outputs = super().generate(prompts, config=config, **options)
            if not config.is_off and len(outputs) > 1:
                outputs[1] = replace(outputs[1], token_ids=(1, 9, 3, 4))
            return outputs

    group = replace(PROMPTS[0], prompt_id="p9", companions=(PROMPTS[1],))
    decoder = Differing(gap=1e-5)
    measured = measure(runner_of(decoder), prompt=group)
    assert (measured.identical, measured.num_excused, measured.difference_index) == (True, 1, 1)
    seed = decoder.calls[-1]["sampling"].seed
    assert decoder.asked[0] == [7, 8, 1]
    assert decoder.asked[3].seed == seed + 1
    decoder = Differing(gap=0.5)
    with pytest.raises(MismatchError, match="differs at token 1"):
        measure(runner_of(decoder), prompt=group)


def test_every_row_of_a_batch_counts() -> None:
    """In half precision: the first row is as it should be, the second excused, the others are not."""
    outputs, gaps = [(1, 2, 3, 4), (1, 9, 3, 4), (1, 2, 9, 4), (1, 2, 3, 9)], [1e-5, 0.5, 0.25]

    class Differing(FakeDecoder):
        def generate(self, prompts: list[list[int]], *, config: SpecConfig, **options: Any) -> list[Generation]:
            made = super().generate(prompts, config=config, **options)
            rows = [replace(one, token_ids=ids) for one, ids in zip(made, outputs, strict=False)]
            return made if config.is_off else rows

        def tie_gap(self, *asked: Any) -> float:
            return gaps[asked[2] - 1]

    group = replace(PROMPTS[0], prompt_id="p9", companions=(PROMPTS[1], PROMPTS[2], PROMPTS[3]))
    measured = measure(runner_of(Differing(dtype=torch.bfloat16)), prompt=group)
    assert (measured.num_outputs, measured.num_excused, measured.num_different) == (4, 1, 2)
    assert measured.identical is False
    assert (measured.difference_index, measured.difference_gap) == (2, 0.5)
