from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autospec.cli import main
from autospec.engine.compiling import recorded
from autospec.profiling import campaign, load_profile, load_threads, threads

SMALL = [
    "costs.budget_seconds=0.01", "costs.contexts=[8,24]", "costs.max_tokens=16", "costs.draft_lengths=[1,2]",
    "costs.widths=[2]", "costs.batch_sizes=[2]",
]  # fmt: skip


@pytest.fixture
def words(tiny_checkpoint: Path, tmp_path: Path, in_empty_folder: Path) -> list[str]:
    rows = [json.dumps({"id": str(number), "prompt": "abcd efef " * (number + 4)}) for number in range(6)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    return [
        "profile", "model=custom", f"model.target={tiny_checkpoint}", "workload=file",
        f"workload.path={tmp_path / 'rows.jsonl'}", "workload.max_new_tokens=4", *SMALL,
    ]  # fmt: skip


def _profiles() -> list[Path]:
    return sorted(Path("outputs/profiles").glob("*"))


def test_a_profile_is_measured_once_and_then_found(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    shown = capsys.readouterr().out
    (path,) = _profiles()
    profile = load_profile(path)
    assert path.stem == profile.key
    assert f"profile: {path.absolute()}" in shown
    assert "milliseconds of a target forward" in shown
    assert "ngram" in shown
    assert "left out: context 8: the budget was used up" in shown
    written = path.read_bytes()
    assert main([*words, "hardware=auto"]) == 0
    assert path.read_bytes() == written
    assert "warm-up" not in capsys.readouterr().out


def test_the_number_of_threads_is_chosen_and_shown(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "thread_counts", lambda: (1,))  # more would stay for the tests that follow
    assert main([*words, "threads=auto"]) == 0
    shown = capsys.readouterr().out
    assert "threads: 1, the fewest that are not beyond noise slower than the fastest; milliseconds behind" in shown
    assert "1.00 [1.00, 1.00]" in shown
    (path,) = Path("outputs/profiles").glob("*.json")
    chosen = load_profile(path).threads
    assert chosen is not None
    assert chosen.num_threads == load_profile(path).fingerprint["num_threads"] == 1
    (kept,) = Path("outputs/profiles/threads").glob("*.json")
    assert load_threads(kept) == chosen


@pytest.mark.compiler
def test_compiled_models_have_a_profile_of_their_own(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(words) == 0
    (plain,) = _profiles()
    assert "float32, compiled: " not in capsys.readouterr().out
    monkeypatch.setattr("autospec.engine.lean.compiled.compiled_piece", recorded)
    for _ in range(2):
        assert main([*words, "hardware=auto", "model.compile=true"]) == 0
        assert "float32, compiled: " in capsys.readouterr().out
    assert _profiles() == [plain.with_stem(f"{plain.stem}-compiled"), plain]
    assert [load_profile(path).compile for path in _profiles()] == [True, False]


def test_another_profile_is_shown_without_models(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    (path,) = _profiles()
    capsys.readouterr()
    assert main(["profile", "model=custom", "model.target=/no/such/model", f"hardware={path}"]) == 0
    assert "milliseconds of drafts" in capsys.readouterr().out


def test_all_faults_come_at_once_and_nothing_is_made(
    words: list[str], capsys: pytest.CaptureFixture[str], in_empty_folder: Path
) -> None:
    wrong = [
        "costs.max_tokens=1",
        "costs.widths=[4,2]",
        "workload.path=no.jsonl",
        "costs.bugdet_seconds=3",
        "threads=0",
    ]
    assert main([*words, *wrong]) == 2
    message = capsys.readouterr().err
    for part in (
        "max_tokens >= 16",
        "`widths` must be ascending",
        "no.jsonl",
        "did you mean `costs.budget_seconds`?",
        "`threads` must be auto, null, or 1 to",
    ):
        assert part in message
    assert list(in_empty_folder.iterdir()) == []


def test_a_file_that_is_no_profile_is_bad_input(in_empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "hardware=none.json"]) == 2
    assert "a hardware profile must be a file or one of" in capsys.readouterr().err


def test_ctrl_c_leaves_nothing(words: list[str], monkeypatch: pytest.MonkeyPatch, in_empty_folder: Path) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(campaign.Campaign, "_turn", interrupt)
    assert main(words) == 130
    assert list(in_empty_folder.iterdir()) == []
