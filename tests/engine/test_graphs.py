"""A model that launches its forwards whole decodes as one that runs operation by operation, prompt after prompt."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from functools import partialmethod
from typing import Any
from weakref import ref

import pytest
import torch

from autospec.config import SamplingParams, SpecConfig
from autospec.engine import memory
from autospec.engine.batch import Batch
from autospec.engine.cache import KVCache
from autospec.engine.cache_pool import PooledCache
from autospec.engine.decoder import SpeculativeDecoder
from autospec.engine.drafters import EarlyExitDrafter, NgramDrafter, SmallModelDrafter
from autospec.engine.graphs import Graphs
from autospec.engine.launching import Compiled, CudaGraphs, Launching, Recorded, Run, usual_launching
from autospec.engine.lean.fixed import ChainForm, FixedChain
from autospec.engine.model import CausalLM
from autospec.engine.plans import Shape, bucket, reach_of
from autospec.engine.rows import RowTokens
from autospec.engine.session import Job
from autospec.errors import ModelError

PROMPTS = [[1, 2, 3, 4, 5, 6, 1, 2, 3], [10, 11, 12, 13, 10, 11, 12, 13, 14, 10, 11], [7, 8, 9, 7, 8]]
GREEDY, SAMPLED = SamplingParams(), SamplingParams(temperature=0.7, top_p=0.95, seed=11)
KINDS = {"llama": 0, "mistral": 3, "qwen2": 1, "qwen3": 0}  # grouped heads, windows, both and biases, head norms
CONFIGS = [
    SpecConfig(),
    SpecConfig("draft", 4),
    SpecConfig("draft", 6, stop_rule="heuristic", draft_length_start=1),
    SpecConfig("draft", 6, stop_rule="confidence", stop_threshold=0.3),
    SpecConfig("draft", 4, tree_shape="beam", tree_width=3, tree_nodes=8),
    SpecConfig("draft", 4, tree_shape="best_first", tree_width=3, tree_nodes=8),
    SpecConfig("draft", 3, tree_shape="static", tree_paths=((0,), (1,), (0, 0), (1, 0), (0, 0, 0))),
    SpecConfig("draft", 3, accept_rule="rejection"),
    SpecConfig("ngram", 4),
    SpecConfig("early_exit", 3, exit_layer=1),
]


class Watched(Recorded):
    """Counts what is made, and what is launched."""

    def __init__(self, free_bytes: float = float("inf")) -> None:
        super().__init__()
        self.num_made = self.num_launched = 0
        self.free_bytes = free_bytes
        self.asked: list[int] = []

    def make(self, run: Run) -> Run:
        self.num_made += 1
        made = super().make(run)

        def launch() -> Any:
            self.num_launched += 1
            return made()

        return launch

    def has_room(self, num_bytes: int) -> bool:
        self.asked.append(num_bytes)
        return num_bytes <= self.free_bytes


class Wrong(Recorded):
    """Computes something else."""

    def make(self, run: Run) -> Run:
        made = super().make(run)
        return lambda: [output.roll(1, -1) for output in made()]


def models(tiny_model: Any, noisy_copy: Any, kind: str) -> list[CausalLM]:
    target = tiny_model(kind, seed=KINDS[kind])
    return [CausalLM(target, "target"), CausalLM(noisy_copy(target, 0.04), "small")]


def decoder_of(target: CausalLM, small: CausalLM) -> SpeculativeDecoder:
    drafters = {
        "draft": SmallModelDrafter(small, target.vocab_size),
        "ngram": NgramDrafter(),
        "early_exit": EarlyExitDrafter(target),
    }
    return SpeculativeDecoder(target, drafters)


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_drafts_are_those_of_eager_forwards(tiny_model: Any, noisy_copy: Any, kind: str) -> None:
    eager = decoder_of(*models(tiny_model, noisy_copy, kind))
    watched, launched_models = Watched(), models(tiny_model, noisy_copy, kind)
    for model in launched_models:
        model.launch_by(watched)
    launched, num_accepted, num_drafted = decoder_of(*launched_models), 0, 0
    for config in CONFIGS:
        for sampling in (GREEDY, SAMPLED) if kind == "mistral" else (GREEDY,):
            how: dict[str, Any] = {"config": config, "sampling": sampling, "max_new_tokens": 12, "ignore_eos": True}
            before = watched.num_launched
            for ours, theirs in zip(launched.generate(PROMPTS, **how), eager.generate(PROMPTS, **how), strict=True):
                assert ours.token_ids == theirs.token_ids
                assert ours.stats.num_drafted == theirs.stats.num_drafted
                assert ours.stats.num_accepted == theirs.stats.num_accepted
                num_accepted += ours.stats.num_accepted
                num_drafted += ours.stats.num_drafted
            assert watched.num_launched > before
    assert 0 < num_accepted < num_drafted


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_rows_of_a_batch_are_launched_together_and_get_what_they_get_alone(
    tiny_model: Any, noisy_copy: Any, kind: str
) -> None:
    eager = decoder_of(*models(tiny_model, noisy_copy, kind))
    watched, launched_models = Watched(), models(tiny_model, noisy_copy, kind)
    for model in launched_models:
        model.launch_by(watched)
    launched = decoder_of(*launched_models)
    prompts = [*PROMPTS, [3, 1, 4, 1, 5], [9, 9]]  # two wait until others have left
    for config in CONFIGS:
        for sampling in (GREEDY, SAMPLED):
            how: dict[str, Any] = {"config": config, "sampling": sampling, "max_new_tokens": 12, "ignore_eos": True}
            before = watched.num_launched
            alone = eager.generate(prompts, **how)
            together = launched.generate(prompts, batch_size=3, **how)
            for ours, theirs in zip(together, alone, strict=True):
                assert ours.token_ids == theirs.token_ids, config
                assert ours.stats.num_drafted == theirs.stats.num_drafted
                assert ours.stats.num_accepted == theirs.stats.num_accepted
            assert watched.num_launched > before


def test_a_plain_step_of_a_batch_is_one_launch(tiny_model: Any) -> None:
    watched, target = Watched(), CausalLM(tiny_model("llama"), "target")
    target.launch_by(watched)
    outputs = SpeculativeDecoder(target).generate(PROMPTS, max_new_tokens=9, ignore_eos=True, batch_size=3)
    assert [output.stats.num_steps for output in outputs] == [8] * 3
    assert watched.num_launched == 8
    assert watched.num_made == 1


def rows_of(*texts: list[int]) -> list[RowTokens]:
    return [RowTokens(row, text) for row, text in enumerate(texts) if text]


def test_rows_that_ask_nothing_keep_what_they_have(tiny_model: Any) -> None:
    """Padding goes to the last slot; a row that waits, and one that nobody uses, are as they were."""
    watched, model = Watched(), CausalLM(tiny_model("llama"), "model")
    eager = CausalLM(tiny_model("llama"), "eager")
    model.launch_by(watched)
    cache, expected = model.new_cache(40, 4), KVCache(40, 4)
    assert isinstance(cache, PooledCache)
    pairs = ((model, cache), (eager, expected))
    for one, own in pairs:
        for row, length in enumerate((7, 3, 9)):
            one.forward(torch.arange(length)[None], own.row(row), num_logits=1)
    for asked in (rows_of([5], [], [6, 7, 8]), rows_of([], [1, 2]), rows_of([1], [2], [3]), rows_of([], [], [4] * 5)):
        ours, theirs = (one.forward_rows(asked, own, (0, -1)) for one, own in pairs)
        for (logits, hidden), (other_logits, other_hidden) in zip(ours, theirs, strict=True):
            torch.testing.assert_close(logits, other_logits, rtol=1e-4, atol=1e-4)
            assert hidden is not None
            assert other_hidden is not None
            torch.testing.assert_close(hidden, other_hidden, rtol=1e-4, atol=1e-4)
        assert cache.lengths == expected.lengths
        for layer, keys in expected.keys.items():
            for row, length in enumerate(expected.lengths):
                own = cache.keys[layer][row, :, :length]
                torch.testing.assert_close(own, keys[row, :, :length], rtol=1e-4, atol=1e-4)
            assert not cache.keys[layer][3, :, :-1].any(), "nobody uses it"
    assert watched.num_launched == 4


def test_trees_and_numbers_of_logits_of_rows_are_their_own(tiny_model: Any) -> None:
    watched, model = Watched(), CausalLM(tiny_model("mistral", seed=3), "model")
    eager = CausalLM(tiny_model("mistral", seed=3), "eager")
    model.launch_by(watched)
    cache, expected = model.new_cache(40, 2), KVCache(40, 2)
    seen = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]]).bool()
    asked = [RowTokens(0, [5, 6, 7], seen, (0, 1, 1)), RowTokens(1, [8, 9, 10, 11], num_logits=2)]
    answers = []
    for one, own in ((model, cache), (eager, expected)):
        for row, length in enumerate((6, 11)):
            one.forward(torch.arange(length)[None], own.row(row), num_logits=1)
        answers.append(one.forward_rows(asked, own))
    for (ours, _), (theirs, _) in zip(*answers, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert [len(logits) for logits, _ in answers[0]] == [3, 2]
    assert watched.num_launched == 1


def test_a_full_row_that_asks_nothing_is_not_written_over(tiny_model: Any) -> None:
    watched, model = Watched(), CausalLM(tiny_model("llama", max_position_embeddings=1024), "model")
    model.launch_by(watched)
    cache = model.new_cache(20, 2)
    model.forward(torch.arange(cache.capacity)[None] % 64, cache.row(0), num_logits=1)
    model.forward(torch.arange(5)[None], cache.row(1), num_logits=1)
    before = cache.keys[0][0].clone()
    model.forward_rows([RowTokens(1, [3])], cache)
    assert torch.equal(cache.keys[0][0], before)
    assert watched.num_made == 0


def test_what_is_no_number_does_not_outlive_its_text(tiny_model: Any) -> None:
    target = CausalLM(tiny_model("llama"), "target")
    target.launch_by(Recorded())
    batch = Batch(target, 2, 40)
    for row in range(2):
        batch.join(row, None, Job((1, 2, 3), SpecConfig(), GREEDY, 0, 8))
    with torch.inference_mode():
        batch._cache.keys[0][1, :, 5:30] = float("nan")
    batch.leave(batch.sessions[1])
    session, _ = batch.join(1, None, Job((4, 5), SpecConfig(), GREEDY, 0, 8))
    for _, tokens in batch.step():
        assert tokens
    assert session.cache.length == 3
    assert not batch._cache.keys[0].isnan().any()


def test_rows_without_room_for_padding_run_anew(tiny_model: Any) -> None:
    watched, model = Watched(), CausalLM(tiny_model("llama", max_position_embeddings=1024), "model")
    model.launch_by(watched)
    cache = model.new_cache(20, 2)
    for row in range(2):
        model.forward(torch.arange(cache.capacity - 2)[None] % 64, cache.row(row), num_logits=1)
    model.forward_rows(rows_of([1], [2]), cache)
    assert watched.num_made == 1, "the last slot is free"
    model.forward_rows(rows_of([1], [2]), cache)
    assert watched.num_made == 1
    assert cache.lengths == [cache.capacity] * 2


def test_launches_of_rows_that_compute_something_else_are_not_taken(tiny_model: Any) -> None:
    model, eager = (CausalLM(tiny_model("llama"), name) for name in ("model", "eager"))
    model.launch_by(Wrong())
    cache, expected = model.new_cache(40, 2), KVCache(40, 2)
    pairs = ((model, cache), (eager, expected))
    for one, own in pairs:
        for row in range(2):
            one.forward(torch.tensor([[1, 2]]), own.row(row))
    with pytest.warns(UserWarning, match="launched whole they compute something else"):
        ours = model.forward_rows(rows_of([3], [4]), cache)
    for (logits, _), (others, _) in zip(ours, eager.forward_rows(rows_of([3], [4]), expected), strict=True):
        assert torch.equal(logits, others)
    assert model.num_launches == 0


def test_a_greedy_chain_is_one_launch_and_prompts_share_them(tiny_model: Any, noisy_copy: Any) -> None:
    models_of, launching = models(tiny_model, noisy_copy, "llama"), [Watched(), Watched()]
    for model, own in zip(models_of, launching, strict=True):
        model.launch_by(own)
    decoder, how = decoder_of(*models_of), {"config": CONFIGS[1], "max_new_tokens": 16, "ignore_eos": True}
    (first,) = decoder.generate(PROMPTS[:1], **how)
    target, small = launching
    # The first draft begins with the prompt and then runs three tokens by themselves; a last step may draft none.
    assert small.num_launched - 3 in (first.stats.num_steps - 1, first.stats.num_steps - 2)
    assert target.num_launched == first.stats.num_steps
    made, launched = ([getattr(own, name) for own in launching] for name in ("num_made", "num_launched"))
    decoder.generate(PROMPTS[:1], **how)
    list(decoder.stream(PROMPTS[0], **how))
    assert [own.num_made for own in launching] == made
    assert [own.num_launched for own in launching] == [3 * number for number in launched], "prompts run alike"


RULES: list[dict[str, Any]] = [
    {"stop_rule": "confidence", "stop_threshold": 0.2},
    {"stop_rule": "entropy", "stop_threshold": 0.9},
    {"stop_rule": "cumulative", "stop_threshold": 0.05},
    {"stop_rule": "adaptive", "stop_threshold": 0.2},
    {"stop_rule": "cost_aware"},
]


@pytest.mark.parametrize(
    ("drafter", "sampling"),
    [("draft", GREEDY), ("draft", SAMPLED), ("early_exit", SamplingParams(temperature=1.0, top_k=5, seed=3))],
)
def test_rules_and_draws_end_launched_drafts_where_they_end_others(
    tiny_model: Any, noisy_copy: Any, drafter: str, sampling: SamplingParams
) -> None:
    eager, launched_models = (
        decoder_of(*models(tiny_model, noisy_copy, "llama")),
        models(tiny_model, noisy_copy, "llama"),
    )
    for model in launched_models:
        model.launch_by(Recorded())
    launched, lengths = decoder_of(*launched_models), set[float]()
    for rule in ({}, *RULES):
        config = SpecConfig(drafter, 7, accept_rule="rejection", **rule)
        how: dict[str, Any] = {"config": config, "sampling": sampling, "max_new_tokens": 24, "ignore_eos": True}
        for ours, theirs in zip(launched.generate(PROMPTS, **how), eager.generate(PROMPTS, **how), strict=True):
            assert ours.token_ids == theirs.token_ids, rule
            assert ours.stats.num_steps == theirs.stats.num_steps
            assert ours.stats.num_drafted == theirs.stats.num_drafted, rule
            assert ours.stats.num_accepted == theirs.stats.num_accepted
            lengths.add(ours.stats.num_drafted / ours.stats.num_steps)
    assert len(lengths) > 4, "rules do end drafts"


def test_a_draft_that_a_rule_may_end_is_launched_in_pieces_and_a_drawn_one_whole(
    tiny_model: Any, noisy_copy: Any
) -> None:
    """A rule that never ends drafts of 6 tokens: pieces of 4 and 2; without a rule, one launch, drawn or not."""
    rules: list[tuple[dict[str, Any], int]] = [({"stop_rule": "confidence", "stop_threshold": 0.0}, 2), ({}, 1)]
    for rule, num_pieces in rules:
        for sampling in (GREEDY, SAMPLED):
            target, small = models(tiny_model, noisy_copy, "llama")
            watched = Watched()
            small.launch_by(watched)
            config = SpecConfig("draft", 6, **rule)
            (output,) = decoder_of(target, small).generate(
                PROMPTS[:1], config=config, sampling=sampling, max_new_tokens=12, ignore_eos=True
            )
            assert output.stats.num_drafted > 6
            # The first draft begins with the prompt and runs token by token; later ones are shorter near the end.
            first, rest = 5, output.stats.num_steps - 1
            assert watched.num_launched <= first + num_pieces * rest
            assert watched.num_launched >= first + rest - 1


def test_seeds_share_launches(tiny_model: Any, noisy_copy: Any) -> None:
    target, small = models(tiny_model, noisy_copy, "llama")
    watched = Watched()
    small.launch_by(watched)
    decoder, made = decoder_of(target, small), list[int]()
    for seed in (1, 2, 3):
        sampling = SamplingParams(temperature=0.7, seed=seed)
        decoder.generate(PROMPTS[:1], config=SpecConfig("draft", 2), sampling=sampling, max_new_tokens=24)
        made.append(watched.num_made)
    assert made[1] == made[2]


def test_a_draw_from_something_else_is_refused(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = CausalLM(tiny_model("llama"), "model")
    model.launch_by(Recorded())
    usual = FixedChain._row
    monkeypatch.setattr(FixedChain, "_row", lambda self, logits: usual(self, -logits))
    cache = model.new_cache(40)
    model.forward(torch.tensor([[1, 2, 3]]), cache)
    with pytest.warns(UserWarning, match="begin with another token"):
        assert model.draft_chain([4], cache, ChainForm(2, 64, SamplingParams(temperature=0.3)), [1, 2]) is None
    assert cache.length == 3


def test_layers_of_the_target_draft_in_one_launch_too(tiny_model: Any) -> None:
    watched, target = Watched(), CausalLM(tiny_model("llama"), "target")
    target.launch_by(watched)
    decoder = SpeculativeDecoder(target, {"early_exit": EarlyExitDrafter(target)})
    (output,) = decoder.generate(PROMPTS[:1], config=CONFIGS[-1], max_new_tokens=16, ignore_eos=True)
    drafts = watched.num_launched - output.stats.num_steps
    assert drafts in (output.stats.num_steps, output.stats.num_steps - 1), "a last step may draft nothing"


def check_drafts(model: CausalLM, other: CausalLM, fresh: list[int], length: int, vocab_size: int) -> list[int]:
    """Draft in one launch, and one by one by another model of the same weights."""
    text = list(range(20))
    cache, expected = model.new_cache(40), KVCache(40)
    for one, own in ((model, cache), (other, expected)):
        one.forward(torch.tensor([text]), own, num_logits=1)
    outputs = model.draft_chain(fresh, cache, ChainForm(length, vocab_size))
    assert outputs is not None
    tokens = outputs[0].tolist()
    assert cache.length == 20 + len(fresh) + length - 1
    wanted = list[int]()
    for _ in range(length):
        logits = other.forward(torch.tensor([fresh]), expected, num_logits=1)
        fresh = [int(logits[0, 0, :vocab_size].argmax())]
        wanted += fresh
    assert tokens == wanted
    following = torch.tensor([[3, 4]])
    torch.testing.assert_close(
        model.forward(following, cache), other.forward(following, expected), rtol=1e-4, atol=1e-4
    )
    return tokens


@pytest.mark.parametrize("kind", KINDS)
def test_chains_are_what_single_forwards_draft(tiny_model: Any, noisy_copy: Any, kind: str) -> None:
    model, _ = models(tiny_model, noisy_copy, kind)
    other = CausalLM(tiny_model(kind, seed=KINDS[kind]), "eager")
    model.launch_by(Recorded())
    drafts = [
        check_drafts(model, other, fresh, length, vocab_size)
        for fresh, length, vocab_size in (([5], 4, 64), ([5, 6], 4, 64), ([7, 8, 9], 1, 64), ([9], 6, 3), ([9], 6, 99))
    ]
    assert max(drafts[3]) < 3
    assert drafts[3] != drafts[4]


def test_what_cannot_be_one_launch_is_told(tiny_model: Any) -> None:
    model = CausalLM(tiny_model("llama"), "model")
    cache = model.new_cache(40)
    assert model.draft_chain([1], cache, ChainForm(3, 64)) is None, "it runs by no launches"
    model.launch_by(Recorded())
    cache = model.new_cache(40)
    assert model.draft_chain([1], cache, ChainForm(3, 64)) is None, "nothing was run yet"
    model.forward(torch.tensor([[1, 2, 3]]), cache)
    assert model.draft_chain([1, 2, 3, 4, 5], cache, ChainForm(3, 64)) is None, "too many tokens of the text"
    assert model.draft_chain([1], KVCache(40), ChainForm(3, 64)) is None, "a cache whose memory dies with it"
    assert cache.length == 3


def test_a_cache_that_moved_is_not_launched_into_its_old_place(tiny_model: Any) -> None:
    watched, model = Watched(), CausalLM(tiny_model("llama"), "model")
    eager = CausalLM(tiny_model("llama"), "eager")
    model.launch_by(watched)
    cache, expected = model.new_cache(20), KVCache(1000)
    for ids in ([[1, 2, 3]], [[4]], [[5]], "grow", [[6]], [[7, 8]]):
        if ids == "grow":
            cache.reserve(600)
            continue
        ours, theirs = (one.forward(torch.tensor(ids), own) for one, own in ((model, cache), (eager, expected)))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert watched.num_launched == 4
    assert watched.num_made == 3, "one token before, one after, and two"


def test_at_the_end_of_the_room_every_operation_runs_anew(tiny_model: Any) -> None:
    watched, model = Watched(), CausalLM(tiny_model("llama", max_position_embeddings=1024), "model")
    model.launch_by(watched)
    cache = model.new_cache(20)
    model.forward(torch.arange(cache.capacity - 3)[None] % 64, cache, num_logits=1)
    assert model.forward(torch.tensor([[1, 2, 3]]), cache).shape == (1, 3, 64), "three would be filled up to four"
    assert watched.num_made == 0
    cache.crop(0, cache.capacity - 4)
    model.forward(torch.tensor([[1, 2, 3]]), cache)
    assert watched.num_made == 1


def test_only_some_numbers_of_logits_are_launched_and_hidden_states_come_along(tiny_model: Any) -> None:
    watched, model = Watched(), CausalLM(tiny_model("llama"), "model")
    eager = CausalLM(tiny_model("llama"), "eager")
    model.launch_by(watched)
    cache, expected = model.new_cache(60), KVCache(60)
    pairs = ((model, cache), (eager, expected))
    for one, own in pairs:
        one.forward(torch.arange(9)[None], own)
    ids = torch.tensor([[1, 2, 3]])
    for num_logits, num_made in ((0, 1), (3, 1), (1, 2), (2, 2)):
        ours, theirs = (one.forward(ids, own, num_logits=num_logits) for one, own in pairs)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        assert watched.num_made == num_made
    for num_logits in (0, 1):
        ours, theirs = (one.forward_with_hidden(ids, own, (0, 1, -1), num_logits=num_logits) for one, own in pairs)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert watched.num_made == 4


def test_what_came_out_is_not_written_over_by_the_next_launch(tiny_model: Any) -> None:
    class InPlace(Recorded):
        """Writes into the same tensors each time, as a graph does."""

        def make(self, run: Run) -> Run:
            made = super().make(run)
            held = [output.clone() for output in made()]

            def launch() -> Any:
                for one, other in zip(held, made(), strict=True):
                    one.copy_(other)
                return held

            return launch

    model = CausalLM(tiny_model("llama"), "model")
    model.launch_by(InPlace())
    cache = model.new_cache(40)
    model.forward(torch.tensor([[1, 2, 3]]), cache)
    first = model.forward(torch.tensor([[4]]), cache)
    kept = first.clone()
    model.forward(torch.tensor([[9]]), cache)
    assert torch.equal(first, kept)


def test_without_room_for_a_launch_it_is_not_made(tiny_model: Any) -> None:
    watched, model = Watched(free_bytes=0), CausalLM(tiny_model("llama"), "model")
    model.launch_by(watched)
    cache = model.new_cache(40)
    for _ in range(3):
        model.forward(torch.tensor([[1, 2]]), cache)
    assert watched.num_made == 0
    assert len(watched.asked) == 1, "the first runs the prompt; once refused, a shape stays so"
    # At least the masks, and the logits of 2 tokens: 64 numbers of 4 bytes each.
    assert watched.asked[0] >= 2 * 128 * 4 + 2 * 64 * 4


@pytest.mark.parametrize(("error", "warns"), [(RuntimeError("no compiler"), True), (torch.OutOfMemoryError(), False)])
def test_where_none_can_be_made_operations_run_one_by_one(tiny_model: Any, error: Exception, warns: bool) -> None:
    class Failing(Launching):
        num_tried = 0

        def make(self, run: Run) -> Run:
            self.num_tried += 1
            raise error

    failing, model = Failing(), CausalLM(tiny_model("llama"), "model")
    model.launch_by(failing)
    cache, expected = model.new_cache(40), KVCache(40)
    eager = CausalLM(tiny_model("llama"), "eager")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for ids in ([[1, 2]], [[3]], [[4, 5]], [[6]]):
            ours, theirs = (one.forward(torch.tensor(ids), own) for one, own in ((model, cache), (eager, expected)))
            assert torch.equal(ours, theirs)
    assert [str(one.message).endswith("no compiler") for one in caught] == [True] * warns
    assert failing.num_tried == (1 if warns else 2), "memory may do for another shape"


def test_launches_that_compute_something_else_are_not_taken(tiny_model: Any) -> None:
    model, eager = (CausalLM(tiny_model("llama"), name) for name in ("model", "eager"))
    model.launch_by(Wrong())
    cache, expected = model.new_cache(40), KVCache(40)
    pairs = ((model, cache), (eager, expected))
    for one, own in pairs:
        one.forward(torch.tensor([[1, 2]]), own)
    with pytest.warns(UserWarning, match="launched whole they compute something else"):
        ours = model.forward(torch.tensor([[3]]), cache)
    assert torch.equal(ours, eager.forward(torch.tensor([[3]]), expected))
    assert torch.equal(*(one.forward(torch.tensor([[4, 5]]), own) for one, own in pairs))
    assert model.num_launches == 0


def test_memory_that_waits_for_the_next_prompt_counts_as_free(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = CausalLM(tiny_model("llama", max_position_embeddings=4096), "model")
    model.launch_by(Recorded())
    used, other = model.new_cache(400), model.new_cache(900)
    assert isinstance(used, PooledCache)
    assert isinstance(other, PooledCache)
    for cache in (used, other):
        model.forward(torch.tensor([[1, 2]]), cache)
    other.release()
    monkeypatch.setattr(memory, "_UNCHECKED", 0)
    # 256 bytes of each token: see `test_memory.py`.
    monkeypatch.setattr(memory, "free_bytes", lambda device: 500 * 256)
    model.check_room(1, 900)
    with pytest.raises(ModelError, match="1 x 1,000 tokens"):
        model.check_room(1, 1000)
    with pytest.raises(ModelError, match="1 x 900 tokens"):
        model.check_room(1, 900)  # was let go of in vain
    assert type(model.new_cache(192)) is PooledCache
    assert type(model.new_cache(193)) is KVCache, "512 slots do not fit, but 193 do"


def test_sizes_are_powers_of_two_and_slots_come_in_few_numbers() -> None:
    assert [bucket(size) for size in (1, 2, 3, 4, 5, 8, 9, 128)] == [1, 2, 4, 4, 8, 8, 16, 128]
    assert [reach_of(slots) for slots in (1, 128, 129, 192, 193, 256, 257, 384, 385)] == [
        *(128, 128, 192, 192, 256, 256, 384, 384, 512)
    ]
    assert Shape(1, 128, 1) != Shape(1, 128, 1, wants_hidden=True)


def test_capturing_warms_up_on_a_stream_of_its_own_and_replays_into_the_same_tensors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[str] = []

    class Fake:
        """Stands for a stream, an event, a graph, a context: tells what is done to it."""

        def __init__(self, name: str) -> None:
            self.name = name

        def __getattr__(self, method: str) -> Any:
            return lambda *others: log.append(" ".join([self.name, method, *(other.name for other in others)]))

        def __enter__(self) -> None:
            log.append(f"enter {self.name}")

        def __exit__(self, *_: Any) -> None:
            log.append(f"leave {self.name}")

    main, device = Fake("main"), torch.device("cuda", 0)
    captured: list[dict[str, Any]] = []
    fakes = {
        "graph_pool_handle": lambda: "pool",
        "Event": lambda: Fake("event"),
        "Stream": lambda device: Fake("side"),
        "stream": lambda stream: Fake(f"with {stream.name}"),
        "current_stream": lambda device=None: main,
        "CUDAGraph": lambda: Fake("graph"),
        "graph": lambda graph, **options: captured.append(options) or Fake("capture"),
        "device": lambda device: Fake("device"),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    output = torch.zeros(1)

    def run() -> tuple[torch.Tensor]:
        log.append("run")
        return (output,)

    launching = CudaGraphs(device)
    with launching.turn():
        replay = launching.make(run)
        log.append("made")
        assert replay()[0] is output
    known = ref(run)
    del run
    gc.collect()
    assert known() is not None, "a graph reads tensors that only its run may know"
    assert log == [
        *("enter device", "main wait_event event"),
        *("side wait_stream main", "enter with side", "run", "run", "leave with side", "main wait_stream side"),
        *("enter capture", "run", "leave capture", "made", "graph replay"),
        *("event record main", "leave device"),
    ]
    assert captured[0]["pool"] == "pool"
    monkeypatch.setattr("autospec.engine.launching.free_bytes", lambda where: {device: 100}[where])
    assert launching.has_room(100)
    assert not launching.has_room(101)
    assert usual_launching(device, compiles=True).has_room(100)  # type: ignore[union-attr]


def test_code_that_is_launched_is_compiled_once_and_keeps_others_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="eager"))
    made = list[Run]()

    class Called(Launching):
        def make(self, run: Run) -> Run:
            made.append(run)
            return run

        def has_room(self, num_bytes: int) -> bool:
            return num_bytes <= 10

    then, number = Called(), torch.zeros(1)
    launching = Compiled(then)
    with launching.turn():
        assert then._lock.locked()
        launch = launching.make(lambda: [number + 1])
    assert made == [launch]
    number.fill_(4)
    assert launch()[0].tolist() == [5.0]
    assert launching.has_room(10)
    assert not launching.has_room(11)


def test_a_cpu_launches_nothing(tiny_model: Any) -> None:
    assert usual_launching(torch.device("cpu"), compiles=False) is None
    assert usual_launching(torch.device("cpu"), compiles=True) is None
    model = CausalLM(tiny_model("llama"), "model")
    assert not isinstance(model._forward, Graphs)
    model.launch_by(Recorded())
    assert model.is_lean
    model.launch_by(None)
    assert not isinstance(model._forward, Graphs)
    other = CausalLM(tiny_model("gpt2"), "other")
    other.launch_by(Recorded())
    assert not other.is_lean


def test_a_loop_that_drafts_something_else_is_refused(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = CausalLM(tiny_model("llama"), "model")
    model.launch_by(Recorded())
    monkeypatch.setattr(FixedChain, "_chosen", lambda self, logits, row, place: logits.argmin(dim=-1))
    cache = model.new_cache(40)
    model.forward(torch.tensor([[1, 2, 3]]), cache)
    with pytest.warns(UserWarning, match="begin with another token"):
        assert model.draft_chain([4], cache, ChainForm(3, 64)) is None
    assert cache.length == 3
    assert model.num_launches == 0


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_captured_graphs_decode_alike(tiny_model: Callable[..., Any], noisy_copy: Any, kind: str) -> None:
    target = tiny_model(kind, seed=KINDS[kind])
    pairs = [
        [CausalLM(noisy_copy(model, 0.0).to("cuda"), "model") for model in (target, noisy_copy(target, 0.04))]
        for _ in range(2)
    ]
    assert all(isinstance(model._forward, Graphs) for model in pairs[0])
    for model in pairs[1]:
        model.launch_by(None)
    launched, eager = (decoder_of(*pair) for pair in pairs)
    for config in CONFIGS:
        how: dict[str, Any] = {"config": config, "max_new_tokens": 16, "ignore_eos": True}
        for ours, theirs in zip(launched.generate(PROMPTS, **how), eager.generate(PROMPTS, **how), strict=True):
            assert ours.token_ids == theirs.token_ids
