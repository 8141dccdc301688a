from __future__ import annotations

import json
import lzma
from email.message import Message
from pathlib import Path

import pytest

from autospec.errors import TrainingError
from autospec.training import corpus
from autospec.training.corpus import SourceFile


def source_text(start: int, num_lines: int = 30) -> str:
    """Return lines `start` and following of one long, boring file."""
    words = ["".join("abcdefghij"[int(digit)] for digit in str(i)) for i in range(start, start + num_lines)]
    return "".join(f"value_{word} = call_{word}()\n" for word in words)


def declare(monkeypatch: pytest.MonkeyPatch, **headers: str) -> None:
    message = Message()
    for name, value in headers.items():
        message[name.replace("_", "-")] = value
    monkeypatch.setattr(corpus.metadata, "metadata", lambda package: message)


@pytest.fixture
def package_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Put texts where `collect` finds the files of package `sample`."""

    def put(texts: dict[str, str]) -> None:
        for name, text in texts.items():
            (tmp_path / name).write_text(text, encoding="utf-8")
        monkeypatch.setattr(corpus, "licence_of", lambda package: "MIT")
        monkeypatch.setattr(
            corpus, "package_files", lambda package: ((name, tmp_path / name) for name in sorted(texts))
        )

    return put


@pytest.mark.parametrize(
    ("headers", "licence"),
    [
        ({"License_Expression": "Apache-2.0 OR BSD-2-Clause"}, "Apache-2.0 OR BSD-2-Clause"),
        ({"Classifier": "License :: OSI Approved :: MIT License"}, "MIT License"),
        ({"License": "BSD 3-Clause License\n\nAll rights reserved"}, "BSD 3-Clause License"),
    ],
)
def test_permissive_licences_are_named(monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], licence: str) -> None:
    declare(monkeypatch, **headers)
    assert corpus.licence_of("sample") == licence


@pytest.mark.parametrize("licence", ["MPL-2.0", "GPL-3.0-or-later", "LGPL-2.1 with MIT parts", "Proprietary"])
def test_other_licences_are_refused(monkeypatch: pytest.MonkeyPatch, licence: str) -> None:
    declare(monkeypatch, License_Expression=licence)
    with pytest.raises(TrainingError, match=licence):
        corpus.collect(["sample"], 0.1, 1_000_000, 0)


def test_a_package_without_a_licence_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    declare(monkeypatch, Name="sample")
    with pytest.raises(TrainingError, match="permissive"):
        corpus.licence_of("sample")


def test_a_missing_package_is_named() -> None:
    with pytest.raises(TrainingError, match="no-such-distribution"):
        corpus.licence_of("no-such-distribution")


def test_tests_and_vendored_copies_are_left_out() -> None:
    names = [name for name, _ in corpus.package_files("packaging")]
    assert "packaging/version.py" in names
    assert not [name for name, _ in corpus.package_files("pip") if "_vendor" in name]


def test_near_copies_are_counted_in_windows_of_five_lines() -> None:
    copies = corpus.NearCopies()
    assert copies.share_seen("a\nb\nc\nd\ne\nf\n") == 0.0
    # Windows of the copy: abcde, bcdef (both seen), cdefX, defX, efX, fX, X; the last four runs are shorter than five.
    assert copies.share_seen("a\n\n  b\nc\nd\ne\nf\nX\n") == pytest.approx(2 / 7)


def test_a_near_copy_is_dropped(package_of) -> None:
    package_of({"a.py": source_text(0), "b.py": source_text(0) + "tail = 1\n", "c.py": source_text(50)})
    files = corpus.collect(["sample"], 0.5, 1_000_000, 0)
    assert len(files) == 2
    assert "c.py" in {file.path for file, _ in files}


def test_collecting_twice_gives_the_same_and_takes_at_most_the_room(package_of) -> None:
    package_of({f"{i}.py": source_text(100 * i) for i in range(6)})
    files = corpus.collect(["sample"], 0.5, 1_000_000, 0)
    assert files == corpus.collect(["sample"], 0.5, 1_000_000, 0)
    assert len(files) == 6
    assert {file.held_out for file, _ in files} == {True, False}
    assert 0 < sum(len(text) for _, text in corpus.collect(["sample"], 0.5, 2000, 0)) <= 2000


def test_an_empty_corpus_is_refused(package_of) -> None:
    package_of({"short.py": "x = 1\n"})
    with pytest.raises(TrainingError, match="usable"):
        corpus.collect(["sample"], 0.5, 1_000_000, 0)


@pytest.mark.parametrize(
    "text",
    [
        "x = 1\n" * 5,
        "name = 'caf\u00e9'\n" * 20,
        "table = [0123456789, 9876543210]\n" * 20,
        "x = y\n" * 20 + "z" * 401 + "\n",
    ],
    ids=["short", "not ascii", "digits", "long line"],
)
def test_tables_and_fragments_are_not_read(text: str) -> None:
    assert not corpus.is_prose_like(text)
    assert corpus.is_prose_like(source_text(0))


def test_held_out_files_that_training_saw_are_not_unseen() -> None:
    trained = (SourceFile("p", "a.py", "0", 1, False), source_text(0))
    copied = (SourceFile("p", "b.py", "0", 1, True), source_text(0, 20) + source_text(70, 40))
    fresh = (SourceFile("p", "c.py", "0", 1, True), source_text(50))
    assert corpus.unseen_files([trained, copied, fresh]) == [fresh]


def test_the_corpus_survives_its_file(tmp_path: Path, source_files) -> None:
    corpus.write_corpus(source_files, tmp_path / "corpus.jsonl.gz")
    assert corpus.read_corpus(tmp_path / "corpus.jsonl.gz") == source_files
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl.gz"]


def test_the_manifest_names_files_and_packages(tmp_path: Path) -> None:
    files = [
        SourceFile("packaging", "packaging/version.py", "ab" * 32, 100, False),
        SourceFile("packaging", "packaging/tags.py", "cd" * 32, 50, True),
        SourceFile("python", "ast.py", "ef" * 32, 7, False),
    ]
    corpus.write_manifest(files, tmp_path / "manifest.json.xz")
    columns = json.loads(lzma.decompress((tmp_path / "manifest.json.xz").read_bytes()))["files"]
    assert [SourceFile(*values) for values in zip(*columns.values(), strict=True)] == files
    assert list(columns) == ["package", "path", "sha256", "num_bytes", "held_out"]
    packages = corpus.read_packages(tmp_path / "manifest.json.xz")
    assert [(row["package"], row["num_files"], row["num_bytes"]) for row in packages] == [
        ("packaging", 2, 150),
        ("python", 1, 7),
    ]
    assert packages[1]["licence"] == "PSF-2.0"
