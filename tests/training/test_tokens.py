from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from autospec.training import tokens


@pytest.mark.parametrize(
    "text", ["def f(x):\n    return x  # it's\n", "\t a\r\n\n\n  b", "caf\u00e9 \U0001f600", "  ", ""]
)
def test_every_text_survives_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_a_line_break_and_the_indent_behind_it_are_one_piece(tokenizer: Tokenizer) -> None:
    # So a prompt must end before a line break, not behind it.
    behind = tokenizer.encode("return x\n    ").tokens[-1]
    assert tokenizer.decode([tokenizer.token_to_id(behind)]) == "\n    "


def test_plain_transformers_loads_the_tokenizer(tokenizer: Tokenizer, tokenizer_folder: Path) -> None:
    loaded = AutoTokenizer.from_pretrained(tokenizer_folder)
    text = "def f(x):\n    return x\n"
    assert loaded(text).input_ids == tokenizer.encode(text).ids
    assert loaded.eos_token_id == 0
    assert loaded.model_max_length == 64


def test_packing_puts_an_end_of_text_before_each_text_in_a_seeded_order(tokenizer: Tokenizer) -> None:
    texts = [f"value = {i}\n" for i in range(6)]
    packed = tokens.pack(tokenizer, texts, 3)
    assert np.array_equal(packed, tokens.pack(tokenizer, texts, 3))
    assert packed.dtype == np.uint16
    pieces = tokenizer.decode(packed.tolist(), skip_special_tokens=False).split(tokens.END_OF_TEXT)
    assert pieces[0] == ""
    assert sorted(pieces[1:]) == texts
    assert pieces[1:] != texts


def test_windows_do_not_depend_on_how_a_run_came_to_a_position() -> None:
    stream = np.arange(1000, dtype=np.uint16)
    whole = tokens.Windows(stream, 0).batch(0, 160, 16)
    again = tokens.Windows(stream, 0)
    again.batch(4000, 80, 16)  # another pass in between
    assert np.array_equal(np.concatenate([again.batch(0, 80, 16), again.batch(80, 80, 16)]), whole)
    assert not np.array_equal(tokens.Windows(stream, 1).batch(0, 160, 16), whole)


def test_windows_hold_consecutive_tokens_and_one_pass_takes_each_once() -> None:
    stream = np.arange(1000, dtype=np.uint16)
    rows = tokens.Windows(stream, 0).batch(0, 61 * 16, 16)  # (1000 - 1) // 16 - 1 windows in a pass
    assert rows.shape == (61, 17)
    assert np.array_equal(rows - rows[:, :1], np.tile(np.arange(17), (61, 1)))
    assert len(set(rows[:, 0].tolist())) == 61


def test_the_next_pass_starts_its_windows_elsewhere() -> None:
    stream = np.arange(1000, dtype=np.uint16)
    windows = tokens.Windows(stream, 0)
    first, second = windows.batch(0, 61 * 16, 16), windows.batch(61 * 16, 61 * 16, 16)
    assert int(first[0, 0]) % 16 != int(second[0, 0]) % 16
