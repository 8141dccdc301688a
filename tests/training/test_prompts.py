from __future__ import annotations

import json
import math
import random
from itertools import pairwise
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from autospec.errors import TrainingError
from autospec.training import prompts
from autospec.training.edits import Edit

TEXT = '''def first(values):
    """Return the first one.

    There is always a first one, because whoever calls this has looked before, and if not, then an error comes
    from below, which says as much as this function could say about it by itself.
    """
    count = len(values)
    while count > 0:
        count = count - 1
        values = values[: len(values) - 1] or values
        print("this line is here to make the function long enough for a cut", count, len(values))
        print("and this one too, as a function must have a rest of 160 characters behind a cut")
    return values[0]


# The number below is what every caller gets who does not ask for another one; it was
# chosen so that the largest table still fits, with room for a second one beside it, and
# nobody has ever asked for more than that, nor will anybody who has seen how long it takes to fill.
LIMIT = 8
'''


def length(tokenizer: Tokenizer):
    return lambda text: len(tokenizer.encode(text).ids)


def rest_of(cuts) -> list[str]:
    return [TEXT[cut.offset :] for cut in cuts]


def test_complete_prompts_end_behind_a_statement_with_enough_left() -> None:
    endings = [TEXT[: cut.offset].splitlines()[-1] for cut in prompts.complete_cuts(TEXT)]
    # Behind the docstring and behind the first assignment; behind the loop only one short line is left.
    assert endings == ['    """', "    count = len(values)"]
    assert all(rest.startswith("\n") for rest in rest_of(prompts.complete_cuts(TEXT)))


def test_docs_prompts_end_inside_docstrings_and_comments() -> None:
    endings = [TEXT[: cut.offset].splitlines()[-1].strip() for cut in prompts.docs_cuts(TEXT)]
    assert endings == [
        '"""',
        '"""Return the first one.',
        "# The number below is what every caller gets who does not ask for another one; it was",
    ]


def test_edit_prompts_hold_the_block_the_notice_and_the_beginning_of_the_copy(tokenizer: Tokenizer) -> None:
    (cut,) = prompts.edit_cuts(TEXT, random.Random(0), length(tokenizer))
    assert cut.offset == 0
    block, _, copy = cut.tail.partition("\n# Edited: ")
    assert TEXT.startswith(block)
    given = copy.splitlines()[1:]
    assert 1 <= len(given) <= 3
    assert given[0].startswith("def ")
    assert not cut.tail.endswith("\n")


def test_lengths_are_spread_evenly_over_the_logarithm() -> None:
    lengths = prompts.wanted_lengths(32, 64)
    assert lengths == sorted(lengths, reverse=True)
    steps = [math.log(longer / shorter) for longer, shorter in pairwise(lengths)]
    assert max(steps) - min(steps) < 0.02
    assert 64 <= lengths[-1] < 68
    assert 730 < lengths[0] <= 768


def test_the_workload_comes_from_held_out_files_each_in_one_split(source_files, tokenizer: Tokenizer) -> None:
    rows = prompts.build_workload(source_files, length(tokenizer), 4, 0)
    assert len(rows) == 4 * 3 * 2
    held_out = {f"{file.package}:{file.path}": text for file, text in source_files if file.held_out}
    for row in rows:
        begin = row.prompt.split("\n# Edited: ")[0]
        assert begin.strip() in held_out[row.source]
    sources = [{row.source for row in rows if row.split == split} for split in prompts.SPLITS]
    assert not sources[0] & sources[1]
    assert len({row.prompt for row in rows}) == len({row.id for row in rows}) == len(rows)


def test_lengths_stay_within_the_bounds_and_vary(source_files, tokenizer: Tokenizer) -> None:
    count = length(tokenizer)
    rows = prompts.build_workload(source_files, count, 4, 0)
    for category in prompts.CATEGORIES:
        lengths = sorted(count(row.prompt) for row in rows if row.category == category and row.split == "tune")
        assert lengths[0] >= prompts.MIN_TOKENS
        assert lengths[-1] <= prompts.MAX_TOKENS
        assert lengths[-1] > 2 * lengths[0]


def test_the_rest_of_an_edited_copy_is_long_enough(source_files, tokenizer: Tokenizer) -> None:
    count = length(tokenizer)
    for row in prompts.build_workload(source_files, count, 4, 0):
        if row.category == "edit":
            before, _, after = row.prompt.partition("\n# Edited: `")
            old, _, after = after.partition("` is now `")
            new, _, given = after.partition("`.\n")
            block = before[before.index(given.replace(new, old)) :]
            rest = Edit(block, old, new).edited.removeprefix(given)
            assert count(rest) > prompts.MIN_COPY_TOKENS


def test_the_same_seed_gives_the_same_workload(source_files, tokenizer: Tokenizer) -> None:
    first, second, other = (prompts.build_workload(source_files, length(tokenizer), 2, seed) for seed in (0, 0, 1))
    assert first == second
    assert first != other


def test_too_few_files_are_refused(source_files, tokenizer: Tokenizer) -> None:
    with pytest.raises(TrainingError, match="none left with"):
        prompts.build_workload(source_files[:3], length(tokenizer), 200, 0)


def test_a_written_workload_is_one_json_line_a_prompt(source_files, tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = prompts.build_workload(source_files, length(tokenizer), 1, 0)
    prompts.write_workload(rows, tmp_path / "w.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "w.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [prompts.PromptRow(**line) for line in lines] == rows
