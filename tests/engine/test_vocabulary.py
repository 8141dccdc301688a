"""Tokens in bytes, shared tokens, and the same text in another vocabulary, on tokenizers trained here."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from autospec.engine.text import TextCodec
from autospec.engine.vocabulary import Piece, Retokenizer, pieces_of, shared_tokens, utf8_runs
from autospec.errors import ModelError

TEXT = ["the cat sat on the mat, the dog ate the cat's hat", "été à la plage, où la mer était belle"] * 4
SAMPLES = ["the cat sat", " the  hat\n\tate", "é", "où est 😀 the end", "x", "  "]


def byte_level(vocab_size: int = 290) -> TextCodec:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, special_tokens=["<end>", "<turn>"])
    tokenizer.train_from_iterator(TEXT, trainer)
    return TextCodec(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>"))


def sentencepiece(vocab_size: int = 330) -> TextCodec:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    names = ["<unk>", "<s>", "<turn>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=names))
    return TextCodec(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>"))


@pytest.fixture(scope="module")
def bpe() -> TextCodec:
    return byte_level()


@pytest.fixture(scope="module")
def spm() -> TextCodec:
    return sentencepiece()


def plain_ids(codec: TextCodec, text: str) -> list[int]:
    return list(codec.tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("text", SAMPLES)
def test_the_bytes_of_tokens_are_the_text(bpe: TextCodec, spm: TextCodec, text: str) -> None:
    pieces = pieces_of(bpe)
    assert b"".join(pieces[token].data for token in plain_ids(bpe, text)) == text.encode()
    pieces = pieces_of(spm)
    assert b"".join(pieces[token].data for token in plain_ids(spm, text)) == b" " + text.encode()


def test_every_byte_has_its_token(bpe: TextCodec, spm: TextCodec) -> None:
    for codec in (bpe, spm):
        single = {piece.data[0] for piece in pieces_of(codec).values() if len(piece.data) == 1}
        assert single == set(range(256))
    assert pieces_of(spm)[spm.vocabulary()["<0x0A>"]] == Piece(b"\n", is_byte=True)
    assert pieces_of(bpe)[bpe.vocabulary()["<end>"]] == Piece(b"<end>", is_special=True)


def test_tokens_are_shared_by_their_bytes(bpe: TextCodec, spm: TextCodec) -> None:
    ours, theirs = pieces_of(bpe), pieces_of(spm)
    shared = shared_tokens(ours, theirs)
    pairs = dict(zip(shared.target_ids.tolist(), shared.draft_ids.tolist(), strict=True))
    names = bpe.vocabulary(), spm.vocabulary()
    assert pairs[names[0]["a"]] == names[1]["a"]  # not <0x61>
    assert pairs[names[0]["Ġ"]] == names[1]["▁"]
    assert pairs[names[0]["Ċ"]] == names[1]["<0x0A>"]
    assert pairs[names[0]["<turn>"]] == names[1]["<turn>"]
    assert names[0]["<end>"] not in pairs  # a special token is no text that looks like it
    assert len(set(pairs.values())) == len(pairs)
    assert all(ours[one].data == theirs[other].data for one, other in pairs.items())


def test_overlap_is_the_share_of_the_smaller_vocabulary() -> None:
    ours = {number: Piece(bytes([65 + number])) for number in range(4)}
    theirs = {number: Piece(bytes([67 + number])) for number in range(8)}  # C and D are in both
    assert shared_tokens(ours, theirs).overlap == 0.5
    assert shared_tokens(ours, theirs).target_ids.tolist() == [2, 3]
    assert shared_tokens(ours, theirs).draft_ids.tolist() == [0, 1]
    assert shared_tokens(ours, {}).overlap == 0.0


@pytest.mark.parametrize("text", SAMPLES)
def test_a_text_is_written_as_the_other_tokenizer_would(bpe: TextCodec, spm: TextCodec, text: str) -> None:
    assert Retokenizer(bpe, spm).encode(plain_ids(bpe, text)) == plain_ids(spm, text)
    assert Retokenizer(spm, bpe).encode(plain_ids(spm, text)) == plain_ids(bpe, text)


def test_the_beginning_of_a_character_becomes_bytes(bpe: TextCodec, spm: TextCodec) -> None:
    data, ids = pieces_of(spm), plain_ids(bpe, "a 😀")
    for num_missing in (1, 2, 3):
        written = Retokenizer(bpe, spm).encode(ids[:-num_missing])
        assert written[: len(plain_ids(spm, "a "))] == plain_ids(spm, "a ")
        assert b"".join(data[token].data for token in written) == b" a " + "😀".encode()[:-num_missing]


def test_special_tokens_go_over_by_name_or_not_at_all(bpe: TextCodec, spm: TextCodec) -> None:
    ids = plain_ids(bpe, "<turn>the<end>")
    written = Retokenizer(bpe, spm).encode(ids)
    assert written.count(spm.vocabulary()["<turn>"]) == 1
    assert b"<end>" not in Retokenizer(bpe, spm).decode(ids)


def test_what_a_tokenizer_puts_first_is_put_first(bpe: TextCodec) -> None:
    from tokenizers import processors

    draft = byte_level(280)
    first = draft.vocabulary()["<turn>"]
    draft.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<turn> $A", special_tokens=[("<turn>", first)]
    )
    retokenizer = Retokenizer(bpe, draft)
    assert retokenizer.encode(plain_ids(bpe, "cat")) == [first, *plain_ids(draft, "cat")]
    assert retokenizer.encode(plain_ids(bpe, "<turn>cat")) == [first, *plain_ids(draft, "cat")]  # not twice


@pytest.mark.parametrize(
    ("data", "runs"),
    [
        (b"", []),
        (b"abc", ["abc"]),
        ("é".encode()[:1], [0xC3]),
        (b"a\xffb\xf0\x9f", ["a", 0xFF, "b", 0xF0, 0x9F]),
    ],
)
def test_bytes_are_text_and_what_is_none(data: bytes, runs: list[Any]) -> None:
    assert list(utf8_runs(data)) == runs


def test_other_tokenizers_are_refused() -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    with pytest.raises(ModelError, match="need byte-level or sentencepiece tokenizers"):
        pieces_of(TextCodec(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")))
