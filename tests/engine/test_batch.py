"""Prompts decoded side by side: every row gets what it gets alone, whoever sits beside it, joins or leaves."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from autospec.config import SamplingParams, SpecConfig
from autospec.engine import memory
from autospec.engine.batch import Batch
from autospec.engine.cache import KVCache
from autospec.engine.decoder import SpeculativeDecoder
from autospec.engine.drafters import MedusaDrafter, NgramDrafter, SmallModelDrafter, Trail
from autospec.engine.drafters.checkpoint import HeadCheckpoint
from autospec.engine.drafters.medusa import MedusaHeads
from autospec.engine.drafting import propose_all
from autospec.engine.model import CausalLM
from autospec.engine.session import Job, Session
from autospec.errors import ConfigError, DrafterError, ModelError
from autospec.records import Generation

PROMPTS = [
    [1, 2, 3, 4, 5, 6, 1, 2, 3],
    [10, 11, 12, 13, 10, 11, 12, 13, 14, 10, 11],
    [7],
    [20, 21, 22, 20, 21],
    [5, 6, 5, 6, 5, 6, 7],
]
GREEDY, SAMPLED = SamplingParams(), SamplingParams(temperature=0.5, top_p=0.95, seed=11)
NUM_TOKENS = 14
BLOCK = {"weight": (32, 32), "bias": (32,)}  # of a head


@dataclass
class World:
    """A target and something that drafts like it."""

    target: CausalLM
    small: CausalLM

    def decoder(self, case: Any) -> SpeculativeDecoder:
        return SpeculativeDecoder(self.target, {case.drafter: case.make_drafter(self.small, self.target)})


# Lean, lean with a window, transformers' own, and lean by compiled pieces.
@pytest.fixture(
    scope="module", params=["llama", "mistral", "gpt2", pytest.param("compiled", marks=pytest.mark.compiler)]
)
def world(request: pytest.FixtureRequest, tiny_model: Any, noisy_copy: Any, compiled_model: Any) -> World:
    model = tiny_model("llama" if request.param == "compiled" else request.param, seed=3)
    if request.param == "compiled":
        return World(compiled_model(model), compiled_model(noisy_copy(model, 0.04)))
    return World(CausalLM(model, "target"), CausalLM(noisy_copy(model, 0.04), "small"))


def generate(decoder: SpeculativeDecoder, config: Any, sampling: SamplingParams, batch_size: int) -> list[Generation]:
    return decoder.generate(
        PROMPTS,
        config=config,
        sampling=sampling,
        max_new_tokens=NUM_TOKENS,
        ignore_eos=True,
        batch_size=batch_size,
    )


def counts(output: Generation) -> tuple[int, ...]:
    stats = output.stats
    return stats.num_steps, stats.num_drafted, stats.num_accepted, stats.num_new_tokens


def check_same(decoder: SpeculativeDecoder, together: Sequence[Generation], alone: Sequence[Generation]) -> None:
    """The same tokens in the same steps; a first difference is excused by a tie of the target."""
    num_same = 0
    for number, (one, other) in enumerate(zip(together, alone, strict=True)):
        assert one.prompt_ids == other.prompt_ids == tuple(PROMPTS[number])
        if one.token_ids == other.token_ids:
            num_same += counts(one) == counts(other)
            continue
        pairs = zip(one.token_ids, other.token_ids, strict=True)
        first = next(place for place, (mine, theirs) in enumerate(pairs) if mine != theirs)
        sampling = replace(SAMPLED, seed=SAMPLED.seed + number)
        gaps = [decoder.tie_gap(one.prompt_ids, other.token_ids, first, how) for how in (GREEDY, sampling)]
        assert min(gaps) < 1e-4
    assert num_same >= len(PROMPTS) - 1


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_every_row_gets_what_it_gets_alone(world: World, accepting: Any, sampling: SamplingParams) -> None:
    decoder, config = world.decoder(accepting), accepting.config(4)
    alone = generate(decoder, config, sampling, 1)
    check_same(decoder, generate(decoder, config, sampling, 2), alone)


@pytest.mark.parametrize("batch_size", [2, 3, 5, 9])
def test_rows_join_as_others_leave_whatever_the_size(world: World, batch_size: int) -> None:
    decoder = SpeculativeDecoder(world.target, {"draft": SmallModelDrafter(world.small, world.target.vocab_size)})
    for config in (SpecConfig(), SpecConfig("draft", 3)):
        check_same(decoder, generate(decoder, config, GREEDY, batch_size), generate(decoder, config, GREEDY, 1))


def test_rows_may_be_configured_differently(world: World) -> None:
    asked: list[tuple[int, str | None]] = []

    class ByCategory:
        def choose(
            self, batch_size: int = 1, context_length: int | None = None, category: str | None = None
        ) -> SpecConfig:
            asked.append((batch_size, category))
            return {"a": SpecConfig(), "b": SpecConfig("draft", 3), "c": SpecConfig("ngram", 4)}[category or "a"]

    drafters = {"draft": SmallModelDrafter(world.small, world.target.vocab_size), "ngram": NgramDrafter()}
    decoder, categories = SpeculativeDecoder(world.target, drafters), ["a", "b", "c", "b", "a"]
    options: dict[str, Any] = {"max_new_tokens": NUM_TOKENS, "ignore_eos": True, "category": categories}
    together = decoder.generate(PROMPTS, config=ByCategory(), batch_size=4, **options)
    assert asked == [(4, category) for category in categories]
    check_same(decoder, together, decoder.generate(PROMPTS, config=ByCategory(), **options))
    assert [output.stats.num_drafted > 0 for output in together] == [False, True, True, True, False]


def test_rows_end_by_themselves(world: World) -> None:
    decoder = SpeculativeDecoder(world.target, {"ngram": NgramDrafter()})
    free = generate(decoder, None, GREEDY, 1)
    world.target.eos_token_ids = frozenset({free[0].token_ids[4]})
    try:
        options: dict[str, Any] = {"max_new_tokens": NUM_TOKENS, "config": SpecConfig("ngram", 4)}
        together = decoder.generate(PROMPTS, batch_size=3, **options)
        alone = decoder.generate(PROMPTS, **options)
    finally:
        world.target.eos_token_ids = frozenset()
    assert together[0].stop_reason == "eos"
    assert [(one.token_ids, one.stop_reason) for one in together] == [
        (one.token_ids, one.stop_reason) for one in alone
    ]


def test_the_cache_of_every_row_is_that_of_a_fresh_prefill(world: World) -> None:
    batch = Batch(world.target, 2, 64)
    drafters = SmallModelDrafter(world.small, world.target.vocab_size).fork(2)
    sessions = []
    for row, drafter in enumerate(drafters):
        job = Job(tuple(PROMPTS[row]), SpecConfig("draft", 3), GREEDY, 0, NUM_TOKENS)
        session, text = batch.join(row, drafter, job)
        session.start_drafter()
        sessions.append((session, [*PROMPTS[row], *text]))
    for _ in range(3):
        for (_, text), (_, tokens) in zip(sessions, batch.step(), strict=True):
            text.extend(tokens)
    for session, text in sessions:
        fresh = KVCache(len(text))
        world.target.forward(torch.tensor([text[:-1]]), fresh)
        assert session.cache.length == len(text) - 1
        for layer, keys in session.cache.keys.items():
            own = keys[:, :, : session.cache.length]
            torch.testing.assert_close(own, fresh.keys[layer][:, :, : fresh.length], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("has_drafter", "draft", "verify"),
    [
        ((True, True, True, True), 1 / 4, 1 / 4),
        ((True, False, True, False), 1 / 2, 1 / 4),
        ((False, False, False, False), 0.0, 2 / 4),  # as in the plain loop, where all is the target's
    ],
)
def test_the_seconds_of_a_step_are_shared_out(
    world: World, has_drafter: tuple[bool, ...], draft: float, verify: float
) -> None:
    ticks = itertools.count()  # every reading is a second after the one before
    batch, drafters = Batch(world.target, 4, 64, now=lambda: float(next(ticks))), NgramDrafter().fork(4)
    sessions = []
    for row, drafter in enumerate(drafters):
        job = Job(tuple(PROMPTS[row]), SpecConfig("ngram", 3), GREEDY, 0, NUM_TOKENS)
        session, _ = batch.join(row, drafter if has_drafter[row] else None, job)
        if has_drafter[row]:
            session.start_drafter()
        session.stats.draft_seconds = 0.0  # of its start
        sessions.append(session)
    for _ in range(2):
        batch.step()
    for drafts, session in zip(has_drafter, sessions, strict=True):
        assert session.stats.draft_seconds == (2 * draft if drafts else 0.0)
        assert session.stats.verify_seconds == 2 * verify
        assert session.stats.accept_seconds == 2.0  # one after the other, each its own


def test_drafts_that_grow_side_by_side_take_one_forward_a_depth(table_model: Any, table: Any, make_plan: Any) -> None:
    model = table_model(table(1))
    calls: list[int] = []
    forward_rows = model.forward_rows
    model.forward_rows = lambda asked, *rest: calls.append(len(asked)) or forward_rows(asked, *rest)
    drafters = SmallModelDrafter(model, 3).fork(3)
    for drafter in drafters:
        drafter.start([1, 2, 0], make_plan(SpecConfig("draft", 4), GREEDY))
    limits = zip(drafters, (2, 0, 4), strict=True)
    trees = propose_all([(drafter, limit, lambda method: nullcontext()) for drafter, limit in limits])
    assert [tree.num_nodes for tree in trees] == [2, 0, 4]
    assert calls == [2, 2, 1, 1]  # the second wants none, the first ends after two
    alone = SmallModelDrafter(model, 3)
    alone.start([1, 2, 0], make_plan(SpecConfig("draft", 4), GREEDY))
    assert trees[2].tokens == alone.propose(4).tokens


def test_rows_that_are_mixed_up_are_seen(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = SpeculativeDecoder(world.target, {"draft": SmallModelDrafter(world.small, world.target.vocab_size)})
    config, run = SpecConfig("draft", 3), SmallModelDrafter.expand_all
    alone = generate(decoder, config, GREEDY, 1)
    monkeypatch.setattr(SmallModelDrafter, "expand_all", classmethod(lambda cls, questions: run(questions)[::-1]))
    with pytest.raises(AssertionError):
        check_same(decoder, generate(decoder, config, GREEDY, 3), alone)


def test_heads_are_asked_once_a_depth_for_all_rows(tiny_model: Any, make_plan: Any) -> None:
    target = CausalLM(tiny_model("llama"), "target")
    weights = {f"{head}.0.linear.{part}": torch.full(size, 0.01) for head in (0, 1) for part, size in BLOCK.items()}
    heads = MedusaHeads(HeadCheckpoint("heads", {"medusa_num_heads": 2}, weights), target)
    asked: list[tuple[int, int]] = []
    say = heads.logits
    heads.logits = lambda hidden, head: asked.append((head, len(hidden))) or say(hidden, head)  # type: ignore
    drafters = MedusaDrafter(heads, "heads").fork(3)
    for number, drafter in enumerate(drafters):
        drafter.start([1, 2], make_plan(SpecConfig("heads", 2), GREEDY))
        drafter.commit([3], Trail(0, None, torch.full((2, 32), float(number))))
    limits = zip(drafters, (2, 0, 1), strict=True)
    trees = propose_all([(drafter, limit, lambda method: nullcontext()) for drafter, limit in limits])
    assert [tree.num_nodes for tree in trees] == [2, 0, 1]
    assert asked == [(0, 2), (1, 1)]  # the second wants none, the last ends after one


def test_a_drafter_for_one_prompt_at_a_time_is_refused_before_anything_runs(tiny_model: Callable[..., Any]) -> None:
    class Alone:
        source, has_probs, shapes, needs = "alone", False, ("chain",), NgramDrafter.needs

        def start(self, prompt_ids: Sequence[int], plan: Any) -> None:
            raise AssertionError("it must not be started")

        def propose(self, max_length: int) -> Any: ...

        def commit(self, token_ids: Sequence[int], trail: Any = None) -> None: ...

    decoder = SpeculativeDecoder(CausalLM(tiny_model("llama"), "target"), {"mine": Alone()})
    with pytest.raises(ConfigError, match="must have the method `fork`, but 'mine' serves one prompt at a time"):
        decoder.generate(PROMPTS, config=SpecConfig("mine", 2), batch_size=2)


def test_a_drafter_that_fails_in_a_batch_is_named(world: World) -> None:
    class Failing(NgramDrafter):
        def propose(self, max_length: int) -> Any:
            raise KeyError("lost")

    decoder = SpeculativeDecoder(world.target, {"mine": Failing()})
    with pytest.raises(DrafterError, match="drafter 'mine' failed in `propose`"):
        decoder.generate(PROMPTS, config=SpecConfig("mine", 2), batch_size=2)


@pytest.mark.parametrize("method", ["begin", "expand_all", "end"])
def test_a_drafter_for_all_rows_that_fails_is_named(world: World, method: str, monkeypatch: Any) -> None:
    def fail(*_: Any) -> Any:
        raise KeyError("lost")

    monkeypatch.setattr(SmallModelDrafter, method, fail)
    check_named(world, method)


def test_a_drafter_whose_logits_cannot_be_used_is_named(world: World, monkeypatch: Any) -> None:
    monkeypatch.setattr(SmallModelDrafter, "expand_all", lambda questions: [torch.zeros(0, 0) for _ in questions])
    check_named(world, "expand_all")


def check_named(world: World, method: str) -> None:
    drafter = SmallModelDrafter(world.small, world.target.vocab_size)
    decoder = SpeculativeDecoder(world.target, {"other": NgramDrafter(), "mine": drafter})
    with pytest.raises(DrafterError, match=f"drafter 'mine' failed in `{method}`"):
        decoder.generate(PROMPTS, config=SpecConfig("mine", 2), batch_size=2)


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True])
def test_sizes_that_are_none_are_refused(world: World, batch_size: Any) -> None:
    with pytest.raises(ConfigError, match="`batch_size` must be an integer of at least 1"):
        SpeculativeDecoder(world.target).generate(PROMPTS, batch_size=batch_size)


def test_a_prompt_that_does_not_fit_is_refused_in_a_batch_too(world: World) -> None:
    with pytest.raises(ModelError, match="must fit the context"):
        SpeculativeDecoder(world.target).generate(PROMPTS, max_new_tokens=1 << 20, batch_size=2)


def test_the_same_batch_runs_again_where_its_caches_are_all_that_fits(
    tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = SpeculativeDecoder(CausalLM(tiny_model("llama"), "target"))
    first = decoder.generate(PROMPTS, max_new_tokens=NUM_TOKENS, batch_size=2)
    monkeypatch.setattr(memory, "_UNCHECKED", 0)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 0)
    again = decoder.generate(PROMPTS, max_new_tokens=NUM_TOKENS, batch_size=2)
    assert [one.token_ids for one in again] == [one.token_ids for one in first]
    with pytest.raises(ModelError, match="keys and values must fit the memory, but 3 x"):
        decoder.generate(PROMPTS, max_new_tokens=NUM_TOKENS, batch_size=3)


def test_slots_for_trees_stand_beside_the_text() -> None:
    job = Job((1, 2, 3), SpecConfig("draft", 3, tree_shape="beam", tree_width=2, tree_nodes=7), GREEDY, 0, 5)
    assert Session.slots_for(None, job) == 3 + 5 + 7
    assert Session.slots_for(None, replace(job, config=SpecConfig())) == 3 + 5
