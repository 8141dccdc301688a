"""The five laws for drafters that run beside a real target: tiny checkpoints instead of table models.

They cannot join the table of the folder above with a line: trained heads belong to one target, and a table model has
neither hidden states nor layers. A drafter's own test module gives fixtures `target` and `drafter`, asks for a `law`
and a `config`, and once more for `law_2` with a target of few tokens; laws, shapes and rules come from here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.cache import KVCache
from autospec.engine.decoder import SpeculativeDecoder
from autospec.engine.drafters import Drafter, DraftPlan, Trail
from autospec.engine.drafters.base import fork
from autospec.engine.drafting import propose_all
from autospec.engine.model import CausalLM
from autospec.engine.session import Job, Session
from autospec.engine.termination import Stopping
from autospec.engine.tree import TokenTree, chain, empty_tree
from autospec.errors import ConfigError, ReplayMiss
from autospec.replay import RecordedPrompt, Recorder, RecordingBudget, Simulator, Trace
from autospec.rules import ACCEPT_RULES, STOP_RULES

GREEDY, SAMPLED = SamplingParams(), SamplingParams(temperature=0.5, top_p=0.95, seed=11)
PLAIN = SamplingParams(temperature=1.0, seed=1)
SPREAD = 6.0  # draft temperature of law 2: from peaked rows, tokens that are drawn and the likeliest are the same
PROMPTS = ((1, 2, 3, 0, 1, 2, 3, 2), (3, 2, 1, 2, 0, 3, 3))
PATHS = ((0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0))
KNOBS: dict[str, dict[str, Any]] = {
    "chain-exact": {"draft_length": 3},
    "chain-rejection": {"draft_length": 3, "accept_rule": "rejection"},
    "chain-confidence-block": {
        "draft_length": 3,
        "accept_rule": "block",
        "stop_rule": "confidence",
        "stop_threshold": 0.2,
    },
    "static": {"draft_length": 3, "tree_shape": "static", "tree_paths": PATHS},
    "beam": {"draft_length": 3, "tree_shape": "beam", "tree_width": 2, "tree_nodes": 7},
    "best_first": {"draft_length": 3, "tree_shape": "best_first", "tree_width": 3, "tree_nodes": 6},
}


# Every shape under every stopping rule and every lossless rule, where they go together, for `make test-all`.
SHAPES: dict[str, dict[str, Any]] = {
    "chain": {},
    "static": {"tree_paths": PATHS},
    "optimal": {"tree_paths": ((0,), (1,), (2,), (0, 0), (1, 0), (0, 0, 0))},
    "beam": {"tree_width": 2, "tree_nodes": 7},
    "best_first": {"tree_width": 3, "tree_nodes": 6},
}
THRESHOLDS = {"confidence": 0.2, "entropy": 0.9, "cumulative": 0.02, "adaptive": 0.2}
LOSSLESS = [(rule, False) for rule, facts in ACCEPT_RULES.items() if facts.is_lossless]
LOSSLESS += [("multi_candidate", True), ("traversal", True)]


def whole_table() -> Iterator[SpecConfig]:
    for shape, stop_rule, (rule, replaced) in product(SHAPES, STOP_RULES, LOSSLESS):
        knobs = {**SHAPES[shape], "stop_threshold": THRESHOLDS.get(stop_rule, 0.0), "with_replacement": replaced}
        rules: dict[str, Any] = {"tree_shape": shape, "stop_rule": stop_rule, "accept_rule": rule}
        try:
            made = SpecConfig("drafter", 3, draft_length_start=1, **rules, **knobs)
        except ConfigError:
            continue  # they do not go together
        if made.with_replacement == replaced:  # otherwise it is the same as without
            yield made


def name_of(config: SpecConfig) -> str:
    return "-".join((config.tree_shape, config.stop_rule, config.accept_rule)) + "-replaced" * config.with_replacement


DAILY = [pytest.param(SpecConfig("drafter", **knobs), id=name) for name, knobs in KNOBS.items()]
REST = [pytest.param(config, id=name_of(config), marks=pytest.mark.slow) for config in whole_table()]
DRAWN = [  # every shape and rule, where the stopping rule has no say
    pytest.param(config, id=name_of(config), marks=[pytest.mark.slow] * (config.accept_rule != "rejection"))
    for config in whole_table()
    if config.stop_rule == "static"
]


@pytest.fixture(params=[*DAILY, *REST])
def config(request: pytest.FixtureRequest) -> SpecConfig:
    made: SpecConfig = request.param
    return made


@dataclass
class Checks:
    """What holds for every drafter."""

    num_tokens: int = 14
    prompts: Sequence[Sequence[int]] = PROMPTS

    def generate(self, target: CausalLM, drafter: Drafter, config: SpecConfig | None, sampling: SamplingParams) -> Any:
        return SpeculativeDecoder(target, {"drafter": drafter}).generate(
            self.prompts, config=config, sampling=sampling, max_new_tokens=self.num_tokens, ignore_eos=True
        )

    def check_plain_output(
        self, target: CausalLM, drafter: Drafter, config: SpecConfig, sampling: SamplingParams
    ) -> None:
        """Law 1, and law 3 under sampling, where exact matching has plain decoding's ids.

        Some drafts are right and some are wrong, or this would say little.
        """
        config = config if sampling.is_greedy else replace(config, accept_rule="exact")
        outputs = self.generate(target, drafter, config, sampling)
        for plain, output in zip(self.generate(target, drafter, None, sampling), outputs, strict=True):
            assert output.token_ids == plain.token_ids
        if config.stop_rule == "static":
            assert 0 < sum(o.stats.num_accepted for o in outputs) < sum(o.stats.num_drafted for o in outputs)

    def check_repeats(self, target: CausalLM, drafter: Drafter, config: SpecConfig) -> None:
        """Law 3: the seed alone decides, and nothing is left of the prompts before."""
        first, again = (self.generate(target, drafter, config, SAMPLED) for _ in range(2))
        for one, two in zip(first, again, strict=True):
            assert one.token_ids == two.token_ids
            assert one.stats.position_accepted == two.stats.position_accepted

    def check_target_cache(self, target: CausalLM, drafter: Drafter, config: SpecConfig) -> None:
        """Law 4: the target's cache after a commit equals a fresh prefill."""
        text = list(self.prompts[0])
        session = Session(target, drafter, Job(tuple(text), config, SAMPLED, 5, self.num_tokens))
        for tokens in session.run():
            text += tokens
            assert session.cache.lengths == [len(text) - 1]
            fresh = KVCache(len(text))
            target.forward(torch.tensor([text[:-1]]), fresh)
            for layer in fresh.keys:
                for got, wanted in ((session.cache.keys, fresh.keys), (session.cache.values, fresh.values)):
                    known = slice(0, len(text) - 1)
                    torch.testing.assert_close(
                        got[layer][:, :, known], wanted[layer][:, :, known], rtol=1e-4, atol=1e-5
                    )

    def check_path_independence(
        self, target: CausalLM, drafter: Drafter, config: SpecConfig, sampling: SamplingParams
    ) -> None:
        """Law 5: the draft at a text is the same whatever the steps were that led there."""
        text = [*self.prompts[0], *self.prompts[1], *self.prompts[0][:3]]
        first, *others = proposals(target, drafter, config, sampling, text)
        assert first.num_nodes > 0
        for other in others:
            assert other.token_ids.tolist() == first.token_ids.tolist()
            assert other.parents == first.parents
            if first.draft_probs is not None:
                torch.testing.assert_close(other.draft_probs, first.draft_probs, rtol=1e-3, atol=1e-4)

    def check_batch(self, target: CausalLM, drafter: Drafter, config: SpecConfig, sampling: SamplingParams) -> None:
        """Laws 1 to 3 row by row: each takes the steps that it takes alone, whoever joins and leaves beside it."""
        prompts = (*self.prompts, self.prompts[0][:3], self.prompts[1][2:])
        alone, together = (
            SpeculativeDecoder(target, {"drafter": drafter}).generate(
                prompts,
                config=config,
                sampling=sampling,
                max_new_tokens=self.num_tokens,
                ignore_eos=True,
                batch_size=size,
            )
            for size in (1, 3)
        )
        for one, two in zip(together, alone, strict=True):
            assert one.token_ids == two.token_ids
            assert one.stats.num_drafted == two.stats.num_drafted
            assert one.stats.position_tested == two.stats.position_tested
            assert one.stats.position_accepted == two.stats.position_accepted

    def check_drafts_together(
        self, target: CausalLM, drafter: Drafter, config: SpecConfig, sampling: SamplingParams
    ) -> None:
        """Every row drafts what it drafts alone, at two places of its text, whatever the others draft."""
        text = [*self.prompts[0], *self.prompts[1]]
        rows = [Row(text, 3), Row(text[4:13], 1), Row(text[2:6], 0), Row(text[5:], 3)]
        alone = []
        for row in rows:
            cache, num_known = row.start(target, drafter, config, sampling), len(row.text) - 2
            for end in (num_known, len(row.text)):
                row.tell(target, drafter, cache, end)
                alone.append(drafter.propose(row.limit))
        forked = fork(drafter, "drafter", len(rows))
        caches = [row.start(target, one, config, sampling) for row, one in zip(rows, forked, strict=True)]
        for place in (0, 1):
            for row, one, cache in zip(rows, forked, caches, strict=True):
                row.tell(target, one, cache, len(row.text) - 2 * (1 - place))
            limits = zip(forked, rows, strict=True)
            trees = propose_all([(one, row.limit, lambda method: nullcontext()) for one, row in limits])
            for own, tree in zip(alone[place::2], trees, strict=True):
                assert tree.token_ids.tolist() == own.token_ids.tolist()
                assert tree.parents == own.parents
                if own.draft_probs is not None:
                    torch.testing.assert_close(tree.draft_probs, own.draft_probs, rtol=1e-3, atol=1e-4)
        assert sum(tree.num_nodes for tree in alone) > 0

    def check_mixed_rows_are_seen(self, target: CausalLM, drafter: Drafter, monkeypatch: pytest.MonkeyPatch) -> None:
        """Control: a drafter that runs for all rows at once, and gives each what is another's, does not pass."""
        forked: Any = type(fork(drafter, "drafter", 1)[0])
        run = forked.expand_all
        monkeypatch.setattr(forked, "expand_all", classmethod(lambda cls, questions: run(questions)[::-1]))
        with pytest.raises(AssertionError):
            self.check_drafts_together(target, drafter, SpecConfig("drafter", 3), SAMPLED)

    def check_replay(self, target: CausalLM, drafter: Drafter, config: SpecConfig, sampling: SamplingParams) -> None:
        """What a trace gives for a configuration, once the missing drafts are added, is what a live run gives."""
        config = config if sampling.is_greedy else replace(config, accept_rule="exact")
        recorder = Recorder(SpeculativeDecoder(target, {"drafter": drafter}), RecordingBudget(2, 3, 4))
        prompts = [
            RecordedPrompt(str(row), "x", tuple(prompt), sampling.seed + row)
            for row, prompt in enumerate(self.prompts)
        ]
        trace = recorder.record(prompts, self.num_tokens, sampling)
        replay = Simulator(trace, recorder=recorder).replay(config)
        with TemporaryDirectory() as folder:
            again = Simulator(Trace.load(trace.save(Path(folder)))).replay(config)
        for row, output in enumerate(self.generate(target, drafter, config, sampling)):
            assert trace.output_ids(row) == list(output.token_ids)
            for counts in (replay.stats(row), again.stats(row)):
                assert counts.num_drafted == output.stats.num_drafted
                assert counts.position_tested == output.stats.position_tested
                assert counts.position_accepted == output.stats.position_accepted
                assert counts.num_steps == output.stats.num_steps

    def check_replay_on_demand(self, target: CausalLM, drafter: Drafter, folder: Path) -> None:
        """What a loaded trace does not hold is added to it: deeper and wider drafts than were recorded."""
        recorder = Recorder(SpeculativeDecoder(target, {"drafter": drafter}), RecordingBudget(1, 4, 0))
        prompts = [RecordedPrompt(str(row), "x", tuple(prompt)) for row, prompt in enumerate(self.prompts)]
        trace = Trace.load(recorder.record(prompts, self.num_tokens).save(folder))
        for shape in ({}, {"tree_shape": "static", "tree_paths": PATHS}, {"tree_shape": "beam", "tree_nodes": 9}):
            config = SpecConfig("drafter", 5, **shape)
            with pytest.raises(ReplayMiss):
                Simulator(trace).replay(config)
            replay = Simulator(trace, recorder=recorder).replay(config)
            for row, output in enumerate(self.generate(target, drafter, config, GREEDY)):
                assert replay.stats(row).num_drafted == output.stats.num_drafted
                assert replay.stats(row).position_accepted == output.stats.position_accepted


@dataclass
class Row:
    """A text that a drafter is brought along, and the longest path of its drafts there."""

    text: list[int]
    limit: int

    def start(self, target: CausalLM, drafter: Drafter, config: SpecConfig, sampling: SamplingParams) -> KVCache:
        """Begin with all but the last three tokens as the prompt; return the target's cache."""
        plan = DraftPlan(config, sampling, 3, 100, Stopping(config), KVCache(100))
        drafter.start(self.text[:-3], plan)
        return plan.target_cache

    def tell(self, target: CausalLM, drafter: Drafter, cache: KVCache, end: int) -> None:
        """Commit what comes next up to `end`, as a session does: the target has been run on all but the last."""
        place, wants = cache.length, drafter.needs
        layers, new = wants.hidden_layers, torch.tensor([self.text[place : end - 1]])
        logits, hidden = target.forward_with_hidden(new, cache, layers)
        trail = Trail(place, logits[0], hidden[0] if layers else None)
        first = place + 1 if place else len(self.text) - 3
        drafter.commit(self.text[first:end], trail if wants.anything else None)


class OverconfidentDrafter:
    """The classic bug: takes the likeliest token of a row, but says that it was drawn from it."""

    def __init__(self, inner: Drafter) -> None:
        self.source, self.has_probs, self.shapes, self.needs = "overconfident", True, ("chain",), inner.needs
        self.start, self.commit, self._inner = inner.start, inner.commit, inner

    def propose(self, max_length: int) -> TokenTree:
        rows = self._inner.propose(max_length).draft_probs
        return empty_tree() if rows is None else chain(rows[:1].argmax(dim=-1), rows[:1])


def emitted(
    target: CausalLM, drafter: Drafter, config: SpecConfig, prompt: Sequence[int], num_seeds: int
) -> Counter[tuple[int, ...]]:
    """How often sampling writes which three tokens."""
    outputs = SpeculativeDecoder(target, {"drafter": drafter}).generate(
        [list(prompt)] * num_seeds, config=config, sampling=PLAIN, max_new_tokens=3, ignore_eos=True
    )
    assert sum(output.stats.num_accepted for output in outputs) > 0
    return Counter(output.token_ids for output in outputs)


def exact_law(target: CausalLM, prompt: Sequence[int]) -> dict[tuple[int, ...], float]:
    """The probability of every three tokens, by one forward over all of them."""
    outputs = list(product(range(target.vocab_size), repeat=3))
    rows = torch.tensor([[*prompt, *output] for output in outputs])
    logits = target.forward(rows, KVCache(rows.shape[1], len(outputs)))[:, len(prompt) - 1 : -1]
    chosen = logits.double().log_softmax(dim=-1).gather(-1, rows[:, len(prompt) :, None])[..., 0]
    return dict(zip(outputs, chosen.sum(dim=-1).exp().tolist(), strict=True))


def proposals(
    target: CausalLM, drafter: Drafter, config: SpecConfig, sampling: SamplingParams, text: list[int]
) -> Iterator[TokenTree]:
    """Bring a drafter to the same text in different ways, as a session would, and ask it there."""
    wants = drafter.needs
    room = len(text) + 100
    logits, hidden = target.forward_with_hidden(torch.tensor([text]), KVCache(len(text)), wants.hidden_layers)
    for num_prompt, splits, asks in (
        (len(text) - 1, [1], ()),  # all but one token is the prompt
        (4, [1] * (len(text) - 4), range(len(text))),  # token by token, asked each time
        (4, [len(text) - 4], ()),  # one commit, never asked before
        (6, [1, 3, 1, 2, 4, len(text) - 17], (1, 3)),  # asked, then left out for some steps, then asked again
    ):
        plan = DraftPlan(config, sampling, 3, room, Stopping(config), KVCache(room))
        drafter.start(text[:num_prompt], plan)
        known, num_told = num_prompt, 0
        for number, size in enumerate(splits):
            rows = slice(num_told, known + size - 1)
            trail = Trail(num_told, logits[0, rows], hidden[0, rows] if wants.hidden_layers else None)
            target.forward(torch.tensor([text[rows]]), plan.target_cache)
            known, num_told = known + size, known + size - 1
            drafter.commit(text[known - size : known], trail if wants.anything else None)
            if number in asks:
                drafter.propose(3)
                drafter.propose(1)
        assert known == len(text)
        yield drafter.propose(3)


@pytest.fixture(scope="session")
def checks() -> Checks:
    return Checks()


LAWS: dict[str, Callable[..., None]] = {
    "greedy": partial(Checks.check_plain_output, sampling=GREEDY),
    "exact": partial(Checks.check_plain_output, sampling=SAMPLED),
    "repeats": Checks.check_repeats,
    "cache": Checks.check_target_cache,
    "greedy_drafts": partial(Checks.check_path_independence, sampling=GREEDY),
    "sampled_drafts": partial(Checks.check_path_independence, sampling=SAMPLED),
    "greedy_batch": partial(Checks.check_batch, sampling=GREEDY),
    "sampled_batch": partial(Checks.check_batch, sampling=SAMPLED),
    "drafts_together": partial(Checks.check_drafts_together, sampling=SAMPLED),
    "greedy_replay": partial(Checks.check_replay, sampling=GREEDY),
    "sampled_replay": partial(Checks.check_replay, sampling=SAMPLED),
}


@pytest.fixture(
    params=[
        pytest.param(check, id=name, marks=[pytest.mark.slow] * (name == "sampled_replay"))
        for name, check in LAWS.items()
    ]
)
def law(request: pytest.FixtureRequest, checks: Checks) -> Callable[[CausalLM, Drafter, SpecConfig], None]:
    """(target, drafter, config) -> checks one law; law 2 has a target of its own, see `drawn`."""

    def check(target: CausalLM, drafter: Drafter, config: SpecConfig) -> None:
        request.param(checks, target, drafter, config)

    return check


@pytest.fixture(params=[*DRAWN, pytest.param(None, id="control")])
def law_2(request: pytest.FixtureRequest, chi_square: Any) -> Callable[..., None]:
    """(target of few tokens, drafter, prompt=...) -> checks the distribution, and once that a lie would be seen."""

    def check(target: CausalLM, drafter: Drafter, prompt: Sequence[int] = PROMPTS[0]) -> None:
        law = exact_law(target, prompt)
        if request.param is None:
            config = SpecConfig("drafter", 1, accept_rule="rejection", draft_temperature=SPREAD)
            assert chi_square(emitted(target, OverconfidentDrafter(drafter), config, prompt, 300), law) < 1e-6
        else:
            config = replace(request.param, draft_length=2, draft_temperature=SPREAD)
            assert chi_square(emitted(target, drafter, config, prompt, 500), law) > 1e-3

    return check
