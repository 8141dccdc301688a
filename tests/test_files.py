from __future__ import annotations

import json
from pathlib import Path

import pytest

from autospec.errors import ConfigError
from autospec.files import FileKind, line_by_line

KIND = FileKind("a recipe", ConfigError)


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    KIND.write(tmp_path / "one.json", json.dumps({"a": [1, 2.5]}))
    assert KIND.read(tmp_path / "one.json") == {"a": [1, 2.5]}
    assert [path.name for path in tmp_path.iterdir()] == ["one.json"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"a": 1', "a recipe must be whole JSON, but it ends in the middle: the file was truncated"),
        ('{"a": NaN}', "numbers must be finite, but got NaN"),
        ('{"a": 1, "a": 2}', r"a name may appear once in an object, but got \['a'\] repeated"),
        ("[" * 100_000, "a recipe must be JSON of reasonable depth"),
    ],
)
def test_faulty_files_raise_the_error_of_their_kind(text: str, fault: str, tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(text)
    with pytest.raises(ConfigError, match=fault):
        KIND.read(tmp_path / "one.json")


def test_a_file_that_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a recipe must be a readable text file"):
        KIND.read(tmp_path / "none.json")
    with pytest.raises(ConfigError, match=r"one\.json must go where files can be written"):
        KIND.write(tmp_path / "none" / "one.json", "{}")
    assert list(tmp_path.iterdir()) == []


def test_long_lists_have_a_line_for_each_item() -> None:
    document = {"a": {"b": [{"c": 1}, {"c": [2]}], "d": [1, 2]}, "e": {}}
    text = line_by_line(document)
    assert json.loads(text) == document
    assert text.splitlines()[2:6] == ['    "b": [', '      {"c": 1},', '      {"c": [2]}', "    ],"]
