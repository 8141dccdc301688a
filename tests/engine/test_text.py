"""Text in and out: stop strings over tokens and steps, characters of several tokens, chat templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.decoder import SpeculativeDecoder
from autospec.engine.text import GrowingText, TextCodec
from autospec.errors import ModelError, WorkloadError
from autospec.records import Prompt


@pytest.fixture(scope="module")
def codec(tiny_tokenizer: Any) -> TextCodec:
    return TextCodec(tiny_tokenizer)


def grow(codec: TextCodec, token_ids: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], str]:
    """Append one token at a time and show after each; return what was shown, and all text at once."""
    pieces, growing, at_once = [], GrowingText(codec, stop), GrowingText(codec, stop)
    for token_id in token_ids:
        ended = growing.append(token_id)
        assert at_once.append(token_id) == ended
        pieces.append(growing.show(is_final=ended))
        if ended:
            break
    pieces.append(growing.show(is_final=True))
    return pieces, at_once.show(is_final=True)


def test_text_goes_to_ids_and_back(codec: TextCodec) -> None:
    ids = codec.encode("abcd é")
    assert len(ids) == 1 + 1 + 2  # "abcd" is one token, "é" two bytes
    assert codec.decode(ids) == "abcd é"
    assert codec.decode([*ids, codec.vocabulary()["<end>"]]) == "abcd é"  # special tokens are left out


def test_a_prompt_without_tokens_is_refused(codec: TextCodec) -> None:
    with pytest.raises(WorkloadError, match="at least one token"):
        codec.encode("")


def test_a_checkpoint_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no tokenizer that can be loaded"):
        TextCodec.load(str(tmp_path))


def test_tokens_appear_as_they_come(codec: TextCodec) -> None:
    pieces, text = grow(codec, codec.encode("abef x"))
    assert pieces == ["ab", "ef", " ", "x", ""]
    assert text == "abef x"


@pytest.mark.parametrize("text", ["é", "naïve €5", "a€b", "🙂🙂", "x🙂", "日本語 text"])
def test_a_character_of_several_tokens_appears_once_it_is_complete(codec: TextCodec, text: str) -> None:
    pieces, at_once = grow(codec, codec.encode(text))
    assert "".join(pieces) == at_once == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_bytes_that_are_no_text_wait_for_the_next_token_or_the_end(codec: TextCodec) -> None:
    euro = codec.encode("€")
    assert len(euro) == 3
    for ids in (
        [euro[1]] * 6,  # continuation bytes alone
        [*euro[:2], *euro, *codec.encode("a")],  # a character broken off, then a whole one
        [euro[1], euro[1], euro[1], euro[0], euro[1], euro[2]],  # a whole one behind a long wait
        [*codec.encode("ab"), *euro[:2]],  # the end in the middle of a character
    ):
        pieces, at_once = grow(codec, ids)
        assert "".join(pieces) == at_once == codec.decode(ids)


def test_an_output_ends_before_a_stop_string(codec: TextCodec) -> None:
    pieces, text = grow(codec, codec.encode("abxyzab"), stop=("yz",))
    assert "".join(pieces) == text == "abx"


def test_a_stop_string_over_several_tokens_is_never_shown_in_part(codec: TextCodec) -> None:
    pieces, text = grow(codec, codec.encode("a x y z!"), stop=("x y z",))
    assert pieces == ["a", " ", "", "", "", "", "", ""]
    assert text == "a "


def test_what_looked_like_a_stop_string_is_shown_when_it_is_none(codec: TextCodec) -> None:
    pieces, text = grow(codec, codec.encode("x y q"), stop=("x y z",))
    assert pieces == ["", "", "", "", "x y q", ""]
    assert text == "x y q"
    pieces, text = grow(codec, codec.encode("x y"), stop=("x y z",))  # the end decides it too
    assert "".join(pieces) == text == "x y"


def test_a_stop_string_that_overlaps_itself_is_found(codec: TextCodec) -> None:
    pieces, text = grow(codec, codec.encode("xxxy"), stop=("xxy",))
    assert "".join(pieces) == text == "x"


def test_a_stop_string_inside_one_token_cuts_the_token(codec: TextCodec) -> None:
    pieces, text = grow(codec, codec.encode("x abcd x"), stop=("bc",))
    assert "".join(pieces) == text == "x a"


def test_the_first_stop_string_in_the_text_wins(codec: TextCodec) -> None:
    for stop in (("cd", "b"), ("b", "cd")):
        assert grow(codec, codec.encode("xabcd"), stop)[1] == "xa"


def test_a_stop_string_of_several_bytes_is_found(codec: TextCodec) -> None:
    pieces, text = grow(codec, codec.encode("a€b"), stop=("€",))
    assert "".join(pieces) == text == "a"


def test_without_a_tokenizer_the_text_stays_empty() -> None:
    growing = GrowingText(None)
    assert not growing.append(5)
    assert growing.show(is_final=True) == ""


@pytest.fixture(scope="module")
def words() -> TextCodec:
    """A codec that joins words and bytes as SentencePiece does: a leading space goes, and bytes count as one run."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    tokens = ["<end>", "\u2581a", "\u2581b", "<0xE2>", "<0x82>", "<0xAC>", "c", "\u2581."]
    tokenizer = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, "<end>"))
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    return TextCodec(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>"))


END, A, B, C, EURO = 0, 1, 2, 6, [3, 4, 5]


@pytest.mark.parametrize(
    ("token_ids", "expected"),
    [
        ([A, B, C], "a bc"),
        ([A, END, B], "a b"),  # the space between them belongs to the second, unless it stands first
        ([A, *EURO, *EURO, B], "a\u20ac\u20ac b"),  # a run of bytes cut in its middle would not be text
        ([*EURO, *EURO, *EURO, *EURO, *EURO, C], "\u20ac" * 5 + "c"),
        ([B, *EURO[:2]], " b\ufffd\ufffd"[1:]),
    ],
)
def test_tokens_that_depend_on_their_neighbours_stream_alike(
    words: TextCodec, token_ids: list[int], expected: str
) -> None:
    pieces, at_once = grow(words, token_ids)
    assert "".join(pieces) == at_once == expected


def test_spaces_before_punctuation_are_not_cleaned_away(words: TextCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words.tokenizer, "clean_up_tokenization_spaces", True)
    assert words.decode([A, 7]) == "a ."


MESSAGES = (("user", "ab"), ("assistant", "cd"), ("user", "x"))
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)


def test_messages_go_through_the_chat_template(tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = TextCodec(tiny_tokenizer)
    prompt = Prompt("one", "chat", messages=MESSAGES)
    monkeypatch.setattr(tiny_tokenizer, "chat_template", TEMPLATE)
    assert codec.decode(codec.render(prompt)) == "<user>ab<assistant>cd<user>x>"
    assert codec.render(Prompt("two", "plain", text="ab")) == codec.encode("ab")


def test_a_template_that_refuses_the_messages_is_quoted(tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_tokenizer, "chat_template", "{{ raise_exception('no assistant may speak') }}")
    with pytest.raises(WorkloadError, match="of prompt 'one', but says: no assistant may speak"):
        TextCodec(tiny_tokenizer).render(Prompt("one", "chat", messages=MESSAGES))


def test_messages_without_a_template_are_joined(codec: TextCodec) -> None:
    assert codec.decode(codec.render(Prompt("one", "chat", messages=MESSAGES))) == "ab\n\ncd\n\nx"


# The whole decoder on a checkpoint whose random weights emit any bytes at all.


@pytest.fixture(scope="module")
def decoder(tiny_checkpoint: Path) -> SpeculativeDecoder:
    drafters = {"ngram": "ngram", "draft": str(tiny_checkpoint)}
    return SpeculativeDecoder.from_pretrained(str(tiny_checkpoint), drafters)


CONFIGS = [None, SpecConfig("ngram", 5), SpecConfig("draft", 5, accept_rule="block")]


@pytest.mark.parametrize("config", CONFIGS, ids=["off", "ngram", "draft"])
@pytest.mark.parametrize("seed", range(4))
def test_streamed_text_equals_generated_text(decoder: SpeculativeDecoder, config: SpecConfig, seed: int) -> None:
    sampling = SamplingParams(temperature=2.0, seed=seed)
    whole = decoder.generate("abcd abcd", config=config, sampling=sampling, max_new_tokens=40)[0]
    chunks = list(decoder.stream("abcd abcd", config=config, sampling=sampling, max_new_tokens=40))
    assert decoder.text is not None
    assert whole.text == decoder.text.decode(whole.token_ids)
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert tuple(token for chunk in chunks for token in chunk.token_ids) == whole.token_ids
    assert [chunk.stop_reason for chunk in chunks[:-1]] == [""] * (len(chunks) - 1)
    assert chunks[-1].stop_reason == whole.stop_reason
    assert all(chunk.stats is chunks[0].stats for chunk in chunks)
    assert chunks[-1].stats.num_new_tokens == len(whole.token_ids)


@pytest.mark.parametrize("config", CONFIGS, ids=["off", "ngram", "draft"])
def test_stop_strings_cut_generated_and_streamed_text_alike(decoder: SpeculativeDecoder, config: SpecConfig) -> None:
    full = decoder.generate("abcd", max_new_tokens=40, ignore_eos=True)[0]
    # A stop string that spans tokens somewhere in the middle of what plain decoding says.
    assert decoder.text is not None
    half = decoder.text.decode(full.token_ids[:20])
    word = half[-3:]
    stopped = decoder.generate("abcd", config=config, max_new_tokens=40, stop=[word], ignore_eos=True)[0]
    assert stopped.stop_reason == "stop"
    assert stopped.text == full.text[: full.text.index(word)]
    assert full.token_ids[: len(stopped.token_ids)] == stopped.token_ids
    assert len(stopped.token_ids) <= 20
    chunks = decoder.stream("abcd", config=config, max_new_tokens=40, stop=word, ignore_eos=True)
    assert "".join(chunk.text for chunk in chunks) == stopped.text


def test_prompts_are_rendered_by_the_decoder(decoder: SpeculativeDecoder) -> None:
    assert decoder.text is not None
    assert decoder.render(Prompt("one", "plain", text="abcd")) == decoder.text.encode("abcd")
    assert decoder.generate("abcd", max_new_tokens=1)[0].prompt_ids == tuple(decoder.text.encode("abcd"))
    with pytest.raises(WorkloadError, match="at least one token"):
        decoder.generate("")


def test_text_needs_a_tokenizer(tiny_model: Any) -> None:
    decoder = SpeculativeDecoder.from_pretrained(tiny_model("llama"))
    with pytest.raises(ModelError, match="text needs a tokenizer"):
        decoder.generate("abcd")
    with pytest.raises(ModelError, match="text needs a tokenizer"):
        decoder.generate([[1, 2]], stop=["x"])
    with pytest.raises(ModelError, match="text needs a tokenizer"):
        decoder.render(Prompt("one", "plain", text="abcd"))
    assert decoder.generate([[1, 2]], max_new_tokens=3)[0].text == ""


def test_a_span_is_encoded_without_special_tokens_and_may_be_empty(tiny_tokenizer: Any) -> None:
    codec = TextCodec(tiny_tokenizer)
    assert codec.decode(codec.encode_span("abcd ef")) == "abcd ef"
    assert codec.encode_span("") == []


def test_a_fingerprint_changes_when_two_tokens_are_swapped(
    tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = TextCodec(tiny_tokenizer)
    before, vocabulary = codec.fingerprint(), codec.vocabulary()
    assert codec.fingerprint() == before
    assert len(before) == 16
    swapped = {**vocabulary, "a": vocabulary["b"], "b": vocabulary["a"]}
    monkeypatch.setattr(codec, "vocabulary", lambda: swapped)
    assert codec.fingerprint() != before
