"""From text to training windows: the byte-level BPE tokenizer and the packed token file.

Knows files and token ids, nothing of models.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
# Words with their leading space, single digits, runs of punctuation, newlines with the indent that follows.
SPLIT = Regex(r" ?[A-Za-z_]+|\d|\n+ *|[^\sA-Za-z_\d]+| +(?=\S)|\s+")


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer; every byte string can be encoded and decoded back."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(SPLIT, behavior="isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context_length: int) -> None:
    """Write the files from which plain transformers loads the tokenizer."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        bos_token=END_OF_TEXT,
        model_max_length=context_length,
        clean_up_tokenization_spaces=False,
    )
    wrapped.save_pretrained(folder)
    # The class that any version of transformers knows, not the name this version gives it.
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings.pop("backend", None)
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def pack(tokenizer: Tokenizer, texts: list[str], seed: int) -> NDArray[np.uint16]:
    """Tokenize the texts in a seeded order and join them, each behind an end-of-text token."""
    order = random.Random(seed).sample(range(len(texts)), len(texts))
    end = tokenizer.token_to_id(END_OF_TEXT)
    parts: list[NDArray[np.uint16]] = []
    for start in range(0, len(order), 256):
        encoded = tokenizer.encode_batch_fast([texts[i] for i in order[start : start + 256]])
        parts += [np.array([end, *one.ids], dtype=np.uint16) for one in encoded]
    return np.concatenate(parts)


class Windows:
    """Batches of token windows, a function of (tokens, length, seed, position): a run can resume anywhere."""

    def __init__(self, tokens: NDArray[np.uint16], seed: int) -> None:
        self._tokens, self._seed = tokens, seed
        self._order_key = (-1, -1)
        self._order = np.zeros(0, dtype=np.int64)

    def batch(self, tokens_seen: int, batch_tokens: int, length: int) -> NDArray[np.int64]:
        """Return windows of `length + 1` tokens that start where `tokens_seen` tokens have been taken.

        Each pass over the corpus visits its windows in another order and from another offset.
        """
        windows_a_pass = (len(self._tokens) - 1) // length - 1
        first, count = tokens_seen // length, batch_tokens // length
        rows = []
        for index in range(first, first + count):
            lap, place = divmod(index, windows_a_pass)
            offset = int(np.random.default_rng([self._seed, lap, length]).integers(length))
            start = offset + int(self._order_of(lap, length, windows_a_pass)[place]) * length
            rows.append(self._tokens[start : start + length + 1].astype(np.int64))
        return np.stack(rows)

    def _order_of(self, lap: int, length: int, count: int) -> NDArray[np.int64]:
        if self._order_key != (lap, length):
            self._order_key = (lap, length)
            self._order = np.random.default_rng([self._seed, lap, length, 1]).permutation(count)
        return self._order
