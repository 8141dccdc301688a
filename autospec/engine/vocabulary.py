"""What tokens are in bytes, which tokens two vocabularies share, and the same text in the tokens of another one.

Reads tokenizers of the two common families: byte-level BPE (GPT-2 and most later ones), whose tokens are bytes in
disguise, and sentencepiece, whose tokens are text with U+2581 for a space, and `<0xNN>` for single bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autospec.engine.text import TextCodec
from autospec.errors import ModelError

# Below this share of the smaller vocabulary most of what a draft model would say cannot be said, and every draft is
# made of the pieces that happen to be common. Unrelated tokenizers of English text share 30 % and more.
MIN_OVERLAP = 0.1
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class Piece:
    """One token.

    Args:
        data: Its bytes; of special tokens the name.
        is_special: Stands for something that is not text.
        is_byte: Written for its byte, where text has a token of its own.
    """

    data: bytes
    is_special: bool = False
    is_byte: bool = False


def pieces_of(codec: TextCodec) -> dict[int, Piece]:
    """Return the tokens of a vocabulary by id; those without a meaning in bytes are left out.

    Raises:
        ModelError: The tokenizer is of neither family.
    """
    is_byte_level = _is_byte_level(codec.tokenizer)
    added = codec.tokenizer.added_tokens_decoder
    pieces = {}
    for token, token_id in codec.vocabulary().items():
        byte = None if is_byte_level else BYTE_TOKEN.fullmatch(token)
        if byte:
            piece = Piece(bytes([int(byte[1], 16)]), is_byte=True)
        elif token_id in added:
            piece = Piece(token.encode(), is_special=added[token_id].special)
        elif not is_byte_level:
            piece = Piece(token.replace("\u2581", " ").encode())
        elif all(char in BYTES_OF_CHARS for char in token):
            piece = Piece(bytes(BYTES_OF_CHARS[char] for char in token))
        else:
            continue
        if piece.data:
            pieces[token_id] = piece
    return pieces


def _bytes_of_chars() -> dict[str, int]:
    """Return the alphabet of byte-level BPE: printable Latin-1 is itself, the rest moves behind it in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


BYTES_OF_CHARS = _bytes_of_chars()


def _is_byte_level(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = "" if backend is None else json.dumps(json.loads(backend.to_str())["decoder"], ensure_ascii=False)
    if "ByteLevel" in decoder:
        return True
    if backend is None or '"\u2581"' not in decoder:
        raise ModelError(
            f"drafts between vocabularies need byte-level or sentencepiece tokenizers, "
            f"but got {type(tokenizer).__name__} with the decoder {decoder or None}"
        )
    return False


@dataclass(frozen=True, slots=True)
class SharedTokens:
    """The tokens that mean the same in two vocabularies, in pairs.

    Args:
        target_ids: [n] int64, ascending.
        draft_ids: [n] int64.
        overlap: Share of the smaller vocabulary.
    """

    target_ids: Tensor
    draft_ids: Tensor
    overlap: float


def shared_tokens(target: dict[int, Piece], draft: dict[int, Piece]) -> SharedTokens:
    """Pair the tokens of two vocabularies that are the same bytes, or special tokens of the same name."""
    ours, theirs = _ids_by_meaning(target), _ids_by_meaning(draft)
    pairs = sorted((token_id, theirs[meaning]) for meaning, token_id in ours.items() if meaning in theirs)
    overlap = len(pairs) / max(1, min(len(ours), len(theirs)))
    ids = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    return SharedTokens(ids[:, 0].contiguous(), ids[:, 1].contiguous(), overlap)


def _ids_by_meaning(pieces: dict[int, Piece]) -> dict[tuple[bool, bytes], int]:
    """Return one id for each meaning: where a byte can be written in two ways, that which text is made of."""
    found: dict[tuple[bool, bytes], int] = {}
    for token_id, piece in sorted(pieces.items(), key=lambda item: (item[1].is_byte, item[0])):
        found.setdefault((piece.is_special, piece.data), token_id)
    return found


class Retokenizer:
    """Writes a text of the target's tokens in those of a draft model.

    The result depends on the bytes of the whole text alone. Bytes that are not UTF-8 (the beginning of a character
    whose rest is still to come, above all) become single-byte tokens, and are left out where there are none.

    Args:
        target: Tokenizer of the target.
        draft: Tokenizer of the draft model.
    """

    def __init__(self, target: TextCodec, draft: TextCodec) -> None:
        self.target_pieces, self.draft_pieces = pieces_of(target), pieces_of(draft)
        self._draft = draft
        self._pads_target = self._first_piece(target, self.target_pieces).startswith(b" ")
        self._byte_ids = {
            piece.data[0]: token_id
            for token_id, piece in sorted(self.draft_pieces.items(), reverse=True)
            if len(piece.data) == 1 and not piece.is_special
        }
        self._known = {piece.data for piece in self.draft_pieces.values() if piece.is_special}
        self._beginning = self._special_beginning()

    @staticmethod
    def _first_piece(codec: TextCodec, pieces: dict[int, Piece]) -> bytes:
        ids = codec.tokenizer("a", add_special_tokens=False)["input_ids"]
        return pieces[ids[0]].data if ids and ids[0] in pieces else b""

    def _special_beginning(self) -> list[int]:
        plain = list(self._draft.tokenizer("a", add_special_tokens=False)["input_ids"])
        whole = list(self._draft.tokenizer("a")["input_ids"])
        places = [place for place in range(len(whole)) if whole[place : place + len(plain)] == plain]
        return whole[: places[0]] if places else []

    def encode(self, target_ids: Sequence[int]) -> list[int]:
        """Return the text of some tokens of the target in tokens of the draft model."""
        token_ids: list[int] = []
        for run in utf8_runs(self.decode(target_ids)):
            if isinstance(run, str):
                token_ids += self._draft.tokenizer(run, add_special_tokens=False)["input_ids"]
            elif run in self._byte_ids:
                token_ids.append(self._byte_ids[run])
        if token_ids[: len(self._beginning)] != self._beginning:
            token_ids = self._beginning + token_ids
        return token_ids

    def decode(self, target_ids: Sequence[int]) -> bytes:
        """Return the bytes of some tokens; special tokens that the draft model does not know are left out."""
        data, is_first = bytearray(), self._pads_target
        for token_id in target_ids:
            piece = self.target_pieces.get(token_id)
            if piece is None or (piece.is_special and piece.data not in self._known):
                continue
            # Sentencepiece puts a space before the first word that is not in the text.
            pads = is_first and not piece.is_special and piece.data.startswith(b" ")
            data += piece.data[pads:]
            is_first = is_first and piece.is_special
        return bytes(data)


def utf8_runs(data: bytes) -> Iterator[str | int]:
    """Split bytes into the longest runs of text, and the single bytes between them that are none."""
    place = 0
    while place < len(data):
        try:
            yield data[place:].decode()
            return
        except UnicodeDecodeError as error:
            if error.start:
                yield data[place : place + error.start].decode()
            yield from data[place + error.start : place + error.end]
            place += error.end
