"""The decoder around the step: where outputs end, odd drafts, policies, counts by hand, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.decoder import SpeculativeDecoder
from autospec.engine.drafters import (
    Drafter,
    DraftPlan,
    EarlyExitDrafter,
    Needs,
    SmallModelDrafter,
    Trail,
    TranslatedModelDrafter,
)
from autospec.engine.model import CausalLM
from autospec.engine.sampling import Use, to_probs, uniform
from autospec.engine.tree import TokenTree, chain
from autospec.errors import ConfigError, ModelError

RULES = ("exact", "rejection", "block")


def cycle(vocab_size: int = 4) -> Tensor:
    """Rows in which token + 1 follows every token for certain."""
    rows = torch.zeros((vocab_size,) * 3, dtype=torch.float64)
    for token in range(vocab_size):
        rows[:, token, (token + 1) % vocab_size] = 1.0
    return rows


class ScriptedDrafter:
    """Proposes what it was told to, cut to what is asked for."""

    source, has_probs, shapes, needs = "script", False, ("chain",), Needs()

    def __init__(self, *drafts: list[int]) -> None:
        self._drafts, self.asked, self.committed = list(drafts), [], []  # type: ignore[var-annotated]

    def start(self, prompt_ids: Sequence[int], plan: DraftPlan) -> None:
        self.prompt_ids, self.plan, self._next = list(prompt_ids), plan, iter(self._drafts)

    def propose(self, max_length: int) -> TokenTree:
        self.asked.append(max_length)
        return chain(torch.tensor(next(self._next, [])[:max_length], dtype=torch.int64))

    def commit(self, token_ids: Sequence[int], trail: Trail | None = None) -> None:
        self.committed.append(list(token_ids))


@pytest.fixture
def target(table_model: Any) -> Any:
    return table_model(cycle())


def scripted(target: Any, *drafts: list[int]) -> tuple[SpeculativeDecoder, ScriptedDrafter]:
    drafter = ScriptedDrafter(*drafts)
    return SpeculativeDecoder(target, {"script": drafter}), drafter


# One generation by hand: the target counts 0 1 2 3 0 1 2 3 ...


def test_steps_and_counts_by_hand(target: Any) -> None:
    decoder, drafter = scripted(target, [3, 0, 0], [], [3])
    output = decoder.generate([[0, 1]], config=SpecConfig("script", 3), max_new_tokens=7)[0]
    # prefill: 2. Step 1 drafts 3 0 0, of which 3 0 are right; correction 1. Step 2 drafts nothing; bonus 2.
    # Step 3 may draft one token, because the target itself always gives the last; 3 is right, bonus 0.
    assert output.token_ids == (2, 3, 0, 1, 2, 3, 0)
    assert output.prompt_ids == (0, 1)
    assert output.stop_reason == "length"
    stats = output.stats
    assert (stats.num_steps, stats.num_drafted, stats.num_accepted, stats.num_new_tokens) == (3, 4, 3, 7)
    assert (stats.position_tested, stats.position_accepted) == ([2, 1, 1], [2, 1, 0])
    assert stats.position_acceptance == (1.0, 1.0, 0.0)
    assert stats.acceptance_rate == 3 / 4
    assert stats.tokens_per_step == 2.0
    assert drafter.asked == [3, 2, 1]
    assert drafter.prompt_ids == [0, 1]
    assert drafter.committed == [[2], [3, 0, 1], [2], [3, 0]]
    # The prefill, the root with three, the root alone, the root with one.
    assert target.fed == [[0, 1], [2, 3, 0, 0], [1], [2, 3]]


def test_seconds_are_filled(target: Any) -> None:
    decoder, _ = scripted(target, [3], [1])
    stats = decoder.generate([[0, 1]], config=SpecConfig("script", 3), max_new_tokens=7)[0].stats
    parts = (stats.prefill_seconds, stats.draft_seconds, stats.verify_seconds, stats.accept_seconds)
    assert min(parts) > 0.0
    assert sum(parts) <= stats.total_seconds


def test_a_gap_reaches_from_one_arrival_to_the_next_whatever_a_step_brings(
    target: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, _ = scripted(target, [3, 0, 0], [], [3])  # as above: three steps, of 3, 1 and 2 tokens
    times = iter([10.0, 11.0, 11.5, 13.5, 17.5])  # the call, the prefill's token, and each step
    monkeypatch.setattr("autospec.engine.running.perf_counter", lambda: next(times))
    stats = decoder.generate([[0, 1]], config=SpecConfig("script", 3), max_new_tokens=7)[0].stats
    assert stats.gap_seconds == [0.5, 2.0, 4.0]
    assert stats.total_seconds == 7.5


def test_plain_decoding_counts_a_step_for_every_token_after_the_first(target: Any) -> None:
    output = SpeculativeDecoder(target).generate([[0, 1]], max_new_tokens=5)[0]
    assert output.token_ids == (2, 3, 0, 1, 2)
    assert (output.stats.num_steps, output.stats.num_drafted, output.stats.tokens_per_step) == (4, 0, 1.0)
    assert target.fed == [[0, 1], [2], [3], [0], [1]]


def test_one_new_token_comes_from_the_prefill_alone(target: Any) -> None:
    decoder, drafter = scripted(target, [3])
    output = decoder.generate([[0, 1]], config=SpecConfig("script", 3), max_new_tokens=1)[0]
    assert (output.token_ids, output.stop_reason, output.stats.num_steps) == ((2,), "length", 0)
    assert drafter.asked == []


# Where outputs end


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_end_of_text_token_inside_an_accepted_block_ends_the_output(
    target: Any, rule: str, temperature: float
) -> None:
    target.eos_token_ids = frozenset({0})
    decoder, _ = scripted(target, [3, 0, 1, 2])
    options: dict[str, Any] = {
        "config": SpecConfig("script", 4, accept_rule=rule),
        "sampling": SamplingParams(temperature=temperature),
        "max_new_tokens": 12,
    }
    output = decoder.generate([[0, 1]], **options)[0]
    assert (output.token_ids, output.stop_reason) == ((2, 3, 0), "eos")
    assert output.stats.num_new_tokens == 3
    assert output.stats.tokens_per_step == 2.0  # what stands behind the end was not emitted
    chunks = list(decoder.stream([0, 1], **options))
    assert [chunk.token_ids for chunk in chunks] == [(2,), (3, 0)]
    assert [chunk.stop_reason for chunk in chunks] == ["", "eos"]
    longer = decoder.generate([[0, 1]], **options, ignore_eos=True)[0]
    assert (longer.token_ids[:6], longer.stop_reason) == ((2, 3, 0, 1, 2, 3), "length")


def test_an_end_of_text_token_from_the_prefill_ends_the_output(target: Any) -> None:
    target.eos_token_ids = frozenset({2})
    decoder, drafter = scripted(target, [3])
    output = decoder.generate([[0, 1]], config=SpecConfig("script", 4))[0]
    assert (output.token_ids, output.stop_reason) == ((2,), "eos")
    assert drafter.asked == []


def test_an_end_of_text_token_as_the_last_allowed_is_named_as_the_reason(target: Any) -> None:
    target.eos_token_ids = frozenset({0})
    assert SpeculativeDecoder(target).generate([[0, 1]], max_new_tokens=3)[0].stop_reason == "eos"
    assert SpeculativeDecoder(target).generate([[0, 1]], max_new_tokens=2)[0].stop_reason == "length"


@pytest.mark.parametrize("max_new_tokens", range(1, 9))
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_budget_is_met_exactly_by_drafts_longer_than_it(
    target: Any, rule: str, temperature: float, max_new_tokens: int
) -> None:
    decoder, _ = scripted(target, [3, 0, 1, 2, 3, 0, 1, 2])
    output = decoder.generate(
        [[0, 1]],
        config=SpecConfig("script", 64, accept_rule=rule),
        sampling=SamplingParams(temperature=temperature),
        max_new_tokens=max_new_tokens,
    )[0]
    assert output.token_ids == (2, 3, 0, 1, 2, 3, 0, 1)[:max_new_tokens]
    assert output.stop_reason == "length"


def test_a_stop_string_inside_an_accepted_block_ends_the_output(tiny_checkpoint: Path) -> None:
    decoder = SpeculativeDecoder.from_pretrained(str(tiny_checkpoint), {"same": str(tiny_checkpoint)})
    plain = decoder.generate("abcd", max_new_tokens=20, ignore_eos=True)[0]
    assert decoder.text is not None
    pieces = [decoder.text.decode([token]) for token in plain.token_ids]
    # The first token whose text is plain and has not been seen before it.
    place = next(i for i in range(3, 20) if pieces[i].isprintable() and pieces[i] not in "".join(pieces[:i]))
    output = decoder.generate(
        "abcd", config=SpecConfig("same", 20), max_new_tokens=40, stop=[pieces[place]], ignore_eos=True
    )[0]
    assert output.stop_reason == "stop"
    assert output.token_ids == plain.token_ids[: place + 1]
    assert output.stats.num_steps == 1  # one block of twenty held it
    assert output.stats.num_step_tokens == place


# Odd drafters


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_drafter_that_proposes_nothing_is_plain_decoding(
    table: Any, table_model: Any, rule: str, temperature: float
) -> None:
    decoder, drafter = scripted(table_model(table(0)))
    sampling = SamplingParams(temperature=temperature, seed=4)
    config = SpecConfig("script", 4, accept_rule=rule)
    plain = decoder.generate([[0, 1], [2, 2]], sampling=sampling, max_new_tokens=12)
    silent = decoder.generate([[0, 1], [2, 2]], config=config, sampling=sampling, max_new_tokens=12)
    assert [output.token_ids for output in silent] == [output.token_ids for output in plain]
    assert silent[0].stats.num_drafted == 0
    assert silent[0].stats.num_steps == 11
    assert drafter.asked[:11] == [4] * 7 + [4, 3, 2, 1, 0][1:]


def test_a_drafter_object_is_told_everything(target: Any) -> None:
    drafter = ScriptedDrafter([3, 0])
    assert isinstance(drafter, Drafter)
    decoder = SpeculativeDecoder(target, {"mine": drafter})
    config, sampling = SpecConfig("mine", 3), SamplingParams(temperature=1.0, seed=8)
    decoder.generate([[2, 1], [0, 1]], config=config, sampling=sampling, max_new_tokens=5)
    assert drafter.plan.config == config
    assert drafter.plan.seed == 9  # of the second prompt
    assert drafter.plan.sampling.temperature == 1.0
    assert drafter.plan.capacity == 7


def test_the_heuristic_lengthens_and_shortens_drafts(target: Any) -> None:
    decoder, drafter = scripted(target, [3, 0], [2, 3, 0, 1], [3, 0, 1, 1, 1, 1], [0])
    config = SpecConfig("script", 8, stop_rule="heuristic", draft_length_start=2)
    decoder.generate([[0, 1]], config=config, max_new_tokens=40)
    # Two of two: 4. Four of four: 6. Three of six: 5.
    assert drafter.asked[:4] == [2, 4, 6, 5]


def test_an_abandoned_stream_leaves_nothing_behind(table: Any, table_model: Any) -> None:
    target, small = table_model(table(0)), table_model(table(1))
    decoder = SpeculativeDecoder(target, {"draft": SmallModelDrafter(small, 3)})
    options: dict[str, Any] = {
        "config": SpecConfig("draft", 3, accept_rule="block"),
        "sampling": SamplingParams(temperature=1.0),
        "max_new_tokens": 20,
    }
    before = decoder.generate([[0, 1]], **options)[0]
    stream = decoder.stream([2, 2], **options)
    next(stream), next(stream)
    after = decoder.generate([[0, 1]], **options)[0]
    assert before.token_ids == after.token_ids
    assert before.stats.position_accepted == after.stats.position_accepted


def test_a_stream_goes_on_behind_another_prompt_that_was_done_in_between(tiny_model: Any) -> None:
    target = CausalLM(tiny_model("llama"), "target")
    decoder = SpeculativeDecoder(target, {"exit": EarlyExitDrafter(target)})
    options: dict[str, Any] = {"config": SpecConfig("exit", 3), "max_new_tokens": 12}
    alone, other = (decoder.generate([ids], **options)[0].token_ids for ids in ([1, 2, 3], [4, 5]))
    stream = decoder.stream([1, 2, 3], **options)
    tokens = list(next(stream).token_ids)
    assert decoder.generate([[4, 5]], **options)[0].token_ids == other
    for chunk in stream:
        tokens += chunk.token_ids
    assert tuple(tokens) == alone


# Policies


class Chooser:
    """What a policy looks like to the engine."""

    def __init__(self, *configs: SpecConfig) -> None:
        self._configs, self.asked = list(configs), []  # type: ignore[var-annotated]

    def choose(
        self, batch_size: int = 1, context_length: int | None = None, category: str | None = None
    ) -> SpecConfig:
        self.asked.append((batch_size, context_length, category))
        return self._configs[(len(self.asked) - 1) % len(self._configs)]


def test_a_policy_chooses_for_every_prompt(target: Any) -> None:
    decoder, drafter = scripted(target, [2, 3])
    chooser = Chooser(SpecConfig(), SpecConfig("script", 2))
    outputs = decoder.generate([[0, 1], [0, 1, 2]], config=chooser, category=["chat", "code"], max_new_tokens=5)
    assert chooser.asked == [(1, 2, "chat"), (1, 3, "code")]
    assert [output.stats.num_drafted for output in outputs] == [0, 2]
    assert drafter.prompt_ids == [0, 1, 2]
    decoder.generate([[0, 1], [0, 1]], config=chooser, category="chat", max_new_tokens=2)
    assert chooser.asked[2:] == [(1, 2, "chat"), (1, 2, "chat")]
    list(decoder.stream([0, 1], config=chooser, max_new_tokens=2))
    assert chooser.asked[4:] == [(1, 2, None)]


def test_categories_must_match_the_prompts(target: Any) -> None:
    with pytest.raises(ConfigError, match="must name one for each prompt, but got 1 for 2"):
        SpeculativeDecoder(target).generate([[0, 1], [1, 2]], category=["chat"])


# Refusals


def test_unknown_drafters_are_refused_with_the_known_ones(target: Any) -> None:
    decoder, _ = scripted(target)
    with pytest.raises(ConfigError, match=r"`drafter` must be one of \['script'\], but got 'draft'"):
        decoder.generate([[0, 1]], config=SpecConfig("draft", 2))
    with pytest.raises(ConfigError, match="'draft'"):
        decoder.check(SpecConfig("draft", 2))
    decoder.check(SpecConfig())
    decoder.check(SpecConfig("script", 2))


def test_confidence_needs_probabilities(tiny_model: Any) -> None:
    decoder = SpeculativeDecoder.from_pretrained(tiny_model("llama"), {"ngram": "ngram"})
    config = SpecConfig("ngram", 4, stop_rule="confidence")
    with pytest.raises(ConfigError, match="'confidence' needs draft probabilities, but drafter 'ngram' has none"):
        decoder.generate([[1, 2]], config=config)
    with pytest.raises(ConfigError, match="'confidence' needs draft probabilities"):
        decoder.stream([1, 2], config=config)  # at once, not when the first chunk is asked for


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[]], "at least one token"),
        ([[0, 4]], r"must lie in 0 \.\. 3, but they reach from 0 to 4"),
        ([[-1, 2]], "but they reach from -1 to 2"),
        ([0, 1], "must be text or a list of token ids, but got 0"),
    ],
)
def test_prompts_that_cannot_be_read_are_refused(target: Any, prompts: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SpeculativeDecoder(target).generate(prompts)


def test_no_prompts_give_no_outputs(target: Any) -> None:
    assert SpeculativeDecoder(target).generate([]) == []


def test_options_that_cannot_work_are_refused(target: Any) -> None:
    with pytest.raises(ConfigError, match="`max_new_tokens >= 1` must hold, but got 0"):
        SpeculativeDecoder(target).generate([[0, 1]], max_new_tokens=0)
    with pytest.raises(ConfigError, match="stop strings must not be empty"):
        SpeculativeDecoder(target).generate([[0, 1]], stop=[""])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": "draft"}, "`config` must be a SpecConfig, a policy or None, but got 'draft'"),
        ({"config": SpecConfig}, "`config` must be a SpecConfig, a policy or None, but got <class"),
        ({"sampling": {"temperature": 1.0}}, r"`sampling` must be SamplingParams or None, but got {'temperature': 1"),
        ({"sampling": {}}, "`sampling` must be SamplingParams or None, but got {}"),
        ({"stop": [3]}, r"`stop` must be a string or a list of strings, but got \[3\]"),
        ({"stop": 3}, r"`stop` must be a string or a list of strings, but got \[3\]"),
        ({"max_new_tokens": 2.5}, "`max_new_tokens` must be an integer, but got 2.5"),
        ({"max_new_tokens": True}, "`max_new_tokens` must be an integer, but got True"),
    ],
)
def test_options_of_another_type_are_refused_with_rule_and_value(
    target: Any, options: dict[str, Any], message: str
) -> None:
    decoder = SpeculativeDecoder(target)
    with pytest.raises(ConfigError, match=message):
        decoder.generate([[0, 1]], **options)
    with pytest.raises(ConfigError, match=message):
        decoder.stream([0, 1], **options)


def test_all_options_that_cannot_work_are_listed_at_once(target: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        SpeculativeDecoder(target).generate([[0, 1]], config="x", sampling=1, stop=[""], max_new_tokens=0)  # type: ignore[arg-type]
    assert len(caught.value.faults) == 4


def test_prompts_must_be_a_sequence(target: Any) -> None:
    with pytest.raises(ConfigError, match="`prompts` must be text or a list of prompts, but got 5"):
        SpeculativeDecoder(target).generate(5)  # type: ignore[arg-type]


def test_a_draft_model_has_the_vocabulary_of_its_target_or_is_translated(
    tiny_model: Any, tiny_checkpoint: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(
        ModelError, match=r"without a tokenizer must have the vocabulary of its target, but .* has 60 tokens and .* 64"
    ):
        SpeculativeDecoder.from_pretrained(tiny_model("llama"), {"draft": tiny_model("llama", vocab_size=60)})
    # The same number of tokens, but two of them swapped.
    tiny_model("llama", vocab_size=len(tiny_tokenizer)).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    text = (tmp_path / "tokenizer.json").read_text()
    assert '"abcd": 258' in text
    swapped = text.replace('"abcd": 258', '"abcd": 0').replace('"!": 0', '"!": 258')
    (tmp_path / "tokenizer.json").write_text(swapped)
    drafters = {"same": str(tiny_checkpoint), "swapped": str(tmp_path)}
    decoder = SpeculativeDecoder.from_pretrained(str(tiny_checkpoint), drafters)
    assert isinstance(decoder.drafters["same"], SmallModelDrafter)
    swapped_drafter = decoder.drafters["swapped"]
    assert isinstance(swapped_drafter, TranslatedModelDrafter)
    pairs = zip(swapped_drafter.shared.target_ids.tolist(), swapped_drafter.shared.draft_ids.tolist(), strict=True)
    assert {one: other for one, other in pairs if one != other} == {0: 258, 258: 0}


def test_a_draft_model_may_pad_its_vocabulary(
    tiny_model: Any, tiny_checkpoint: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    tiny_model("llama", num_layers=1, vocab_size=len(tiny_tokenizer) + 11).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    decoder = SpeculativeDecoder.from_pretrained(str(tiny_checkpoint), {"draft": str(tmp_path)})
    plain = decoder.generate("abcd", max_new_tokens=20)[0]
    for rule in RULES:
        output = decoder.generate("abcd", config=SpecConfig("draft", 4, accept_rule=rule), max_new_tokens=20)[0]
        assert output.token_ids == plain.token_ids
        sampled = decoder.generate(
            "abcd", config=SpecConfig("draft", 4, accept_rule=rule), sampling=SamplingParams(1.0), max_new_tokens=20
        )[0]
        assert max(sampled.token_ids) < len(tiny_tokenizer)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])  # transformers makes an empty tokenizer for a bare gpt2 folder
def test_a_draft_folder_without_a_tokenizer_is_judged_by_the_number_of_tokens(
    kind: str, tiny_model: Any, tiny_checkpoint: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    size = len(tiny_tokenizer)
    tiny_model(kind, num_layers=1, vocab_size=size).save_pretrained(tmp_path / "same")
    tiny_model(kind, num_layers=1, vocab_size=size + 1).save_pretrained(tmp_path / "other")
    decoder = SpeculativeDecoder.from_pretrained(tiny_checkpoint, {"draft": tmp_path / "same"})
    plain = decoder.generate("abcd", max_new_tokens=8)[0]
    assert decoder.generate("abcd", config=SpecConfig("draft", 3), max_new_tokens=8)[0].token_ids == plain.token_ids
    with pytest.raises(ModelError, match=f"has {size + 1} tokens and .* {size}"):
        SpeculativeDecoder.from_pretrained(tiny_checkpoint, {"draft": tmp_path / "other"})


def test_something_that_cannot_draft_is_refused(tiny_model: Any) -> None:
    with pytest.raises(ModelError, match=r"must be one of \[.*'ngram'.*\], an id, .* but `odd` is 3"):
        SpeculativeDecoder.from_pretrained(tiny_model("llama"), {"odd": 3})  # type: ignore[dict-item]


# Loading


def test_texts_of_a_suffix_drafter_come_from_a_file(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('"efef"\n[1, 2, 3]')
    sources = {"empty": "suffix", "filled": f"suffix:{tmp_path / 'texts.jsonl'}", "recycling": "recycling"}
    decoder = SpeculativeDecoder.from_pretrained(str(tiny_checkpoint), sources)
    assert {name: drafter.source for name, drafter in decoder.drafters.items()} == sources
    assert [decoder.drafters[name].store.num_tokens for name in ("empty", "filled")] == [0, 5]  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match=r"readable JSONL file, but: .*missing.jsonl"):
        SpeculativeDecoder.from_pretrained(str(tiny_checkpoint), {"filled": "suffix:missing.jsonl"})


def test_models_come_as_ids_paths_or_objects(tiny_checkpoint: Path, tiny_model: Any, tiny_tokenizer: Any) -> None:
    mine = ScriptedDrafter()
    decoder = SpeculativeDecoder.from_pretrained(
        tiny_checkpoint, {"path": str(tiny_checkpoint), "ngram": "ngram", "mine": mine, "folder": tiny_checkpoint}
    )
    assert decoder.target.name == str(tiny_checkpoint)
    assert sorted(decoder.drafters) == ["folder", "mine", "ngram", "path"]
    assert decoder.drafters["mine"] is mine
    assert decoder.drafters["path"].source == decoder.drafters["folder"].source == str(tiny_checkpoint)
    assert [decoder.drafters[name].has_probs for name in ("path", "ngram")] == [True, False]
    text = decoder.generate("abcd", max_new_tokens=5)[0].text
    model = tiny_model("llama", vocab_size=len(tiny_tokenizer))
    for tokenizer in (tiny_tokenizer, str(tiny_checkpoint)):
        other = SpeculativeDecoder.from_pretrained(model, tokenizer=tokenizer)
        assert other.generate(["abcd"], max_new_tokens=5)[0].text == text


def test_a_loaded_target_finds_its_tokenizer_in_the_folder_it_came_from(
    tiny_checkpoint: Path, tiny_model: Any, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    text = SpeculativeDecoder.from_pretrained(tiny_checkpoint).generate("abcd", max_new_tokens=5)[0].text
    assert SpeculativeDecoder.from_pretrained(model).generate("abcd", max_new_tokens=5)[0].text == text
    # A folder without one, a folder that is gone and a hub id leave it with token ids alone.
    tiny_model("gpt2", vocab_size=model.config.vocab_size).save_pretrained(tmp_path / "bare")
    bare = AutoModelForCausalLM.from_pretrained(tmp_path / "bare")
    for name in (str(tmp_path / "bare"), str(tmp_path / "gone"), "some/model"):
        bare.config.name_or_path = name
        decoder = SpeculativeDecoder.from_pretrained(bare)
        assert len(decoder.generate([[1, 2]], max_new_tokens=3)[0].token_ids) == 3
        with pytest.raises(ModelError, match="text needs a tokenizer"):
            decoder.generate("abcd")


# Ties


def test_tie_gap_of_greedy_decoding_is_that_of_the_two_best_logits(table_model: Any) -> None:
    rows = torch.full((3, 3, 3), 1.0, dtype=torch.float64)
    rows[0, 1] = torch.tensor([8.0, 2.0, 4.0])
    decoder = SpeculativeDecoder(table_model(rows))
    # Logits are the logarithms: log 8 - log 4.
    assert decoder.tie_gap([2, 0, 1], [0, 1], 0, SamplingParams()) == pytest.approx(0.6931472)
    assert decoder.tie_gap([2, 0], [1, 0], 1, SamplingParams()) == pytest.approx(0.6931472)
    assert decoder.tie_gap([2, 2], [0], 0, SamplingParams()) == 0.0


def test_tie_gap_of_sampling_is_the_distance_to_the_edge_of_the_step(table: Any, table_model: Any) -> None:
    sampling = SamplingParams(temperature=0.8, seed=3)
    decoder = SpeculativeDecoder(table_model(table(0)))
    output = decoder.generate([[0, 1]], sampling=sampling, max_new_tokens=6)[0]
    text = [0, 1, *output.token_ids]
    for index, token in enumerate(output.token_ids):
        probs = to_probs(table(0)[text[index], text[index + 1]].log().float(), sampling).tolist()
        number = uniform(3, 2 + index, Use.TARGET)
        below, above = sum(probs[:token]), sum(probs[: token + 1])
        assert below <= number <= above
        gap = decoder.tie_gap([0, 1], output.token_ids, index, sampling)
        assert gap == pytest.approx(min(number - below, above - number), abs=1e-6)


# torch.compile


def compare_compiled(model: Any, noisy_copy: Any) -> None:
    prompts, config = [[1, 2, 3, 4, 1, 2], [5, 6, 7, 8, 9, 5, 6]], SpecConfig("ngram", 3)
    eager = SpeculativeDecoder.from_pretrained(model, {"ngram": "ngram"})
    compiled = SpeculativeDecoder.from_pretrained(noisy_copy(model, 0.0), {"ngram": "ngram"}, compile=True)
    expected = eager.generate(prompts, config=config, max_new_tokens=16)
    outputs = compiled.generate(prompts, config=config, max_new_tokens=16)
    assert [output.token_ids for output in outputs] == [output.token_ids for output in expected]
    assert outputs[0].stats.num_drafted > 0


@pytest.fixture
def counters() -> Iterator[Any]:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    yield counters
    torch._dynamo.reset()


def test_models_are_traced_whole_and_in_few_shapes(
    tiny_model: Any, noisy_copy: Any, counters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(compile_module, backend="eager"))
    compare_compiled(tiny_model("gpt2", seed=3, num_layers=1), noisy_copy)
    assert not counters["graph_break"]
    assert 0 < counters["stats"]["unique_graphs"] <= 4  # an empty cache, one token, several tokens


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
)  # torch itself uses it
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_compiled_models_decode_alike(tiny_model: Any, noisy_copy: Any, counters: Any, kind: str) -> None:
    compare_compiled(tiny_model(kind), noisy_copy)
    assert (counters["stats"]["unique_graphs"] > 0) == (kind == "gpt2"), "pieces of ours go around what counts"


def test_ranks_beyond_the_vocabulary_are_refused(table_model: Any, table: Any) -> None:
    model = table_model(table(0))
    decoder = SpeculativeDecoder(model, {"draft": SmallModelDrafter(model, model.vocab_size)})
    decoder.check(SpecConfig("draft", 2, tree_shape="static", tree_paths=((0,), (2,))))
    with pytest.raises(ConfigError, match="ranks must be below 3, the vocabulary, but got 3"):
        decoder.check(SpecConfig("draft", 2, tree_shape="static", tree_paths=((0,), (3,))))
