from __future__ import annotations

import random

from autospec.training import edits
from autospec.training.edits import Edit

BLOCK = "def add(total, item):\n    total = total + item\n    return total\n"


def test_an_edit_renames_whole_words_only() -> None:
    edit = Edit("total = subtotal + total\n", "total", "grand_total")
    assert edit.edited == "grand_total = subtotal + grand_total\n"
    assert edit.lead == "total = subtotal + total\n\n# Edited: `total` is now `grand_total`.\n"


def test_blocks_are_functions_and_classes_within_the_bounds() -> None:
    text = f"x = 1\n\n\n{BLOCK}\n\nclass Small:\n    pass\n"
    assert edits.code_blocks(text, 30, 1000) == [BLOCK]
    assert edits.code_blocks(text, 1, 30) == ["class Small:\n    pass\n"]
    assert edits.code_blocks("def broken(:\n", 1, 1000) == []


def test_an_edit_takes_a_name_used_twice_and_one_not_used() -> None:
    for seed in range(20):
        edit = edits.make_edit(BLOCK, random.Random(seed))
        if edit is not None:
            assert edit.old_name in ("total", "item")
            assert edit.new_name not in BLOCK
            assert edit.edited != BLOCK


def test_a_block_without_a_repeated_name_has_no_edit() -> None:
    assert edits.make_edit("def f(self):\n    return self.value\n", random.Random(0)) is None


def test_documents_are_made_of_about_the_share_asked_for(source_files) -> None:
    texts = [text for _, text in source_files]
    documents = edits.edit_documents(texts, 0.5, 0)
    assert documents == edits.edit_documents(texts, 0.5, 0)
    assert 10 <= len(documents) <= 30
    assert all(" is now `" in document for document in documents)
    assert edits.edit_documents(texts, 0.0, 0) == []
