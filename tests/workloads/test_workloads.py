from __future__ import annotations

import collections
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autospec.config import SamplingParams
from autospec.errors import ConfigError, WorkloadError
from autospec.records import Prompt, Workload
from autospec.workloads import WorkloadSource, load_workload

SAMPLE = Path(__file__).parents[1] / "assets" / "workloads" / "spec_bench_sample.jsonl"
SPEC_BENCH = os.environ.get("AUTOSPEC_SPEC_BENCH", "")

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes rows (JSON values, or lines as they are) to a file."""

    def _write(*rows: Any, name: str = "prompts.jsonl") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return _write


def _rows(**num_by_category: int) -> list[dict[str, str]]:
    return [
        {"id": f"{category}{number}", "category": category, "prompt": f"{category} number {number}"}
        for category, num in num_by_category.items()
        for number in range(num)
    ]


def _load(path: Path, **settings: Any) -> Workload:
    return load_workload(WorkloadSource(path, **settings))


def _all(workload: Workload) -> dict[str, Prompt]:
    return {prompt.prompt_id: prompt for prompt in (*workload.tune, *workload.held_out)}


def _ids(prompts: tuple[Prompt, ...]) -> list[str]:
    return [prompt.prompt_id for prompt in prompts]


def _faults(path: Path, **settings: Any) -> list[str]:
    with pytest.raises(WorkloadError) as caught:
        _load(path, **settings)
    return str(caught.value).splitlines()


# Formats


def test_spec_bench_sample_gives_first_turns_as_user_messages() -> None:
    workload = _load(SAMPLE)
    assert workload.name == "spec_bench_sample"
    assert workload.categories == ("coding", "math_reasoning", "qa", "translation", "writing")
    prompts = _all(workload)
    assert len(prompts) == 14
    assert prompts["14"] == Prompt(
        "14", "qa", messages=(("user", "Which planet of the solar system has the shortest day?"),)
    )
    assert "rhyme" not in prompts["1"].messages[0][1]


@pytest.mark.skipif(not SPEC_BENCH, reason="AUTOSPEC_SPEC_BENCH does not name the public question file")
def test_full_spec_bench() -> None:
    workload = _load(Path(SPEC_BENCH))
    prompts = _all(workload)
    assert len(prompts) == 480
    assert len(workload.categories) == 13
    counts = collections.Counter(prompt.category for prompt in workload.held_out)
    assert counts == {category: 40 if num == 80 else 5 for category, num in _category_counts(prompts).items()}
    assert len({prompt.category for prompt in workload.tune[:13]}) == 13
    assert all(prompt.messages[0][0] == "user" and not prompt.text for prompt in prompts.values())


def _category_counts(prompts: dict[str, Prompt]) -> collections.Counter[str]:
    return collections.Counter(prompt.category for prompt in prompts.values())


def test_chat_rows_keep_their_messages_unrendered(write: Write) -> None:
    system = {"role": "system", "content": "Be brief."}
    path = write(
        {"id": "a", "category": "chat", "messages": [system, {"role": "user", "content": "Hello"}]},
        {"messages": [{"role": "user", "content": "One"}, {"role": "assistant", "content": "Two"}]},
        {"messages": [{"role": "user", "content": "Three"}]},
        {"id": "d", "category": "chat", "messages": [{"role": "user", "content": "Bye"}]},
    )
    prompts = _all(_load(path))
    assert prompts["a"] == Prompt("a", "chat", messages=(("system", "Be brief."), ("user", "Hello")))
    assert prompts["line-2"] == Prompt("line-2", "default", messages=(("user", "One"),))


def test_answers_inside_a_conversation_are_kept(write: Write) -> None:
    roles = ["user", "assistant", "user", "assistant", "assistant"]
    messages = [{"role": role, "content": f"{number}"} for number, role in enumerate(roles)]
    path = write({"id": "a", "messages": messages}, {"messages": messages[:1]})
    assert _all(_load(path))["a"].messages == (("user", "0"), ("assistant", "1"), ("user", "2"))


@pytest.mark.parametrize(("given", "kept"), [("42", "42"), (["42", "43"], "42"), ([], ""), (7, ""), (None, "")])
def test_a_reference_is_a_text_or_the_first_of_a_list_and_anything_else_is_none(
    given: object, kept: str, tmp_path: Path
) -> None:
    path = tmp_path / "own.jsonl"
    rows = [{"id": "a", "prompt": "one", "reference": given}, {"id": "b", "prompt": "two"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = _all(_load(path))
    assert (prompts["a"].reference, prompts["b"].reference) == (kept, "")


def test_plain_rows_need_only_a_prompt(write: Write) -> None:
    path = write({"prompt": "def f(x):\n    "}, {"prompt": "two", "id": 7, "category": "default", "note": [1]})
    prompts = _all(_load(path))
    assert prompts == {
        "line-1": Prompt("line-1", "default", text="def f(x):\n    "),
        "7": Prompt("7", "default", text="two"),
    }


def test_rows_of_different_formats_may_be_mixed(write: Write) -> None:
    path = write(
        {"question_id": 1, "category": "a", "turns": ["one"]},
        {"id": "2", "category": "a", "messages": [{"role": "user", "content": "two"}]},
        {"id": "3", "category": "a", "prompt": "three"},
    )
    assert sorted(_all(_load(path))) == ["1", "2", "3"]


def test_text_folder_takes_categories_from_sub_folders(write: Write, tmp_path: Path) -> None:
    for name in ("code/a", "code/deep/b", "prose/c", "prose/d", "e", "f"):
        write(f"text of {name}", name=f"texts/{name}.txt")
    write("not a prompt", name="texts/README.md")
    prompts = _all(_load(tmp_path / "texts"))
    assert {name: prompt.category for name, prompt in prompts.items()} == {
        "code/a.txt": "code",
        "code/deep/b.txt": "code",
        "prose/c.txt": "prose",
        "prose/d.txt": "prose",
        "e.txt": "default",
        "f.txt": "default",
    }
    assert prompts["e.txt"].text == "text of e"


@pytest.mark.parametrize(
    ("data", "text"),
    [(b"a\n", "a"), (b"a\r\n", "a"), (b"a\n\n", "a\n"), (b"a", "a"), (b"  a ", "  a "), (b"\xef\xbb\xbfa", "a")],
)
def test_text_file_loses_only_its_final_line_break(data: bytes, text: str, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "one.txt").write_bytes(data)
    (tmp_path / "texts" / "two.txt").write_bytes(b"other")
    assert _all(_load(tmp_path / "texts"))["one.txt"].text == text


def test_gzip_reads_like_plain_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "sample.jsonl.gz"
    path.write_bytes(gzip.compress(SAMPLE.read_bytes()))
    packed, plain = _load(path), _load(SAMPLE)
    assert packed.content_hash == plain.content_hash
    assert packed.name == "sample"


def test_blank_lines_byte_order_marks_and_line_separators_are_no_faults(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "one \xe2\x80\xa8 line"}\r\n\r\n  \n{"prompt": "two"}')
    assert sorted(prompt.text for prompt in _all(_load(path)).values()) == ["one \u2028 line", "two"]


def test_decoding_settings_belong_to_the_workload() -> None:
    workload = _load(SAMPLE, name="mine", sampling=SamplingParams(temperature=0.8), max_new_tokens=16)
    assert (workload.name, workload.sampling.temperature, workload.max_new_tokens) == ("mine", 0.8, 16)


# Split and order


def test_no_prompt_is_in_both_parts_and_none_is_lost(write: Write) -> None:
    workload = _load(write(*_rows(a=5, b=8)))
    tune, held_out = set(_ids(workload.tune)), set(_ids(workload.held_out))
    assert not tune & held_out
    assert len(tune | held_out) == 13


# A quarter of 8 is 2, of 4 is 1, of 6 is 1.5 and leaves the odd one to tune on; of 2 it is one half, and one prompt
# must stay on each side.
def test_split_takes_its_share_of_each_category(write: Write) -> None:
    workload = _load(write(*_rows(a=8, b=4, c=6, d=2)), held_out_share=0.25)
    assert collections.Counter(prompt.category for prompt in workload.held_out) == {"a": 2, "b": 1, "c": 1, "d": 1}


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_extreme_share_leaves_a_prompt_on_each_side(share: float, write: Write) -> None:
    workload = _load(write(*_rows(a=5)), held_out_share=share)
    assert min(len(workload.tune), len(workload.held_out)) == 1


def test_split_is_a_function_of_the_seed(write: Write) -> None:
    path = write(*_rows(a=20))
    assert _load(path, seed=3) == _load(path, seed=3)
    assert set(_ids(_load(path, seed=3).tune)) != set(_ids(_load(path, seed=4).tune))


# Policies name a workload by its hash: the split of a file must not move with a new version.
def test_split_and_order_are_pinned() -> None:
    workload = _load(SAMPLE)
    assert _ids(workload.tune) == ["8", "5", "13", "11", "1", "6", "2", "7", "12"]
    assert workload.content_hash == "783872fd47ccd25d"


def test_split_does_not_follow_the_order_of_rows(write: Write) -> None:
    rows = _rows(a=6, b=6)
    assert _load(write(*rows)) == _load(write(*reversed(rows)))


def test_leaving_out_a_category_moves_no_prompt_of_another(write: Write) -> None:
    path = write(*_rows(a=6, b=6, c=6))
    everything, some = _load(path), _load(path, categories=("a", "c"))
    assert set(_ids(some.held_out)) == {name for name in _ids(everything.held_out) if not name.startswith("b")}


def test_given_split_is_kept(write: Write) -> None:
    rows = [{**row, "split": "held_out" if number < 2 else "tune"} for number, row in enumerate(_rows(a=9))]
    workload = _load(write(*rows))
    assert sorted(_ids(workload.held_out)) == ["a0", "a1"]


def test_rows_without_split_fill_up_the_share(write: Write) -> None:
    rows: list[dict[str, str]] = _rows(a=8)
    rows[0]["split"] = "held_out"
    rows[1]["split"] = "tune"
    workload = _load(write(*rows))
    assert "a0" in _ids(workload.held_out)
    assert "a1" in _ids(workload.tune)
    assert len(workload.held_out) == 4


@pytest.mark.parametrize(("given", "other"), [("tune", "held_out"), ("held_out", "tune")])
def test_last_row_without_split_goes_where_none_is(given: str, other: str, write: Write) -> None:
    rows: list[dict[str, str]] = _rows(a=4)
    for row in rows[:3]:
        row["split"] = given
    assert _ids(getattr(_load(write(*rows)), other)) == ["a3"]


def test_any_prefix_is_balanced(write: Write) -> None:
    workload = _load(write(*_rows(a=12, b=12, c=12)))
    for part in (workload.tune, workload.held_out):
        for end in range(1, len(part) + 1):
            counts = collections.Counter(prompt.category for prompt in part[:end])
            assert max(counts.values()) - min(counts[name] for name in "abc") <= 1


def test_no_category_is_always_first(write: Write) -> None:
    tune = _load(write(*_rows(a=40, b=40))).tune
    assert {prompt.category for prompt in tune[::2]} == {"a", "b"}


def test_prompts_are_shuffled_inside_a_category(write: Write) -> None:
    workload = _load(write(*_rows(a=30)))
    numbers = [int(name[1:]) for name in _ids(workload.tune)]
    assert numbers != sorted(numbers)


def test_limit_holds_for_each_category_of_each_part(write: Write) -> None:
    workload = _load(write(*_rows(a=20, b=3)), max_prompts_per_category=4)
    assert collections.Counter(prompt.category for prompt in workload.tune) == {"a": 4, "b": 2}
    assert collections.Counter(prompt.category for prompt in workload.held_out) == {"a": 4, "b": 1}


def test_held_out_limit_may_differ(write: Write) -> None:
    path = write(*_rows(a=20))
    workload = _load(path, max_prompts_per_category=2, max_held_out_per_category=6)
    assert (len(workload.tune), len(workload.held_out)) == (2, 6)
    assert len(_load(path, max_held_out_per_category=6).tune) == 10


def test_larger_limit_only_adds_prompts(write: Write) -> None:
    path = write(*_rows(a=20, b=20))
    small, large = _load(path, max_prompts_per_category=3), _load(path, max_prompts_per_category=5)
    assert large.tune[:6] == small.tune
    assert set(small.held_out) < set(large.held_out)


def test_separate_held_out_source(write: Write) -> None:
    tune, held_out = write({"prompt": "one"}, name="a/p.jsonl"), write({"prompt": "two"}, name="b/p.jsonl")
    workload = _load(tune, held_out_path=held_out)
    assert _ids(workload.tune) == ["line-1"]
    assert _ids(workload.held_out) == ["held_out/line-1"]


def test_separate_held_out_source_contradicted_by_a_row(write: Write) -> None:
    tune = write({"prompt": "one"}, {"prompt": "three", "split": "held_out"}, name="tune.jsonl")
    faults = _faults(tune, held_out_path=write({"prompt": "two"}, name="held.jsonl"))
    assert faults == [f"{tune}:2: `split` must be 'tune' because `held_out_path` is given, but got 'held_out'"]


# Repeats


def test_repeated_text_is_used_once(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    path = write({"prompt": "same  text\n"}, {"prompt": "same text"}, {"prompt": "other"})
    workload = _load(path)
    assert len(workload.tune) == len(workload.held_out) == 1
    assert "1 of 3 prompts" in caplog.text


def test_text_and_message_of_one_content_are_repeats(write: Write) -> None:
    path = write(
        {"prompt": "hello"}, {"messages": [{"role": "user", "content": "hello"}]}, {"prompt": "a"}, {"prompt": "b"}
    )
    assert len(_all(_load(path))) == 3


def test_repeat_stays_held_out_where_any_row_says_so(write: Write) -> None:
    path = write(
        {"id": "t", "prompt": "leak", "split": "tune"},
        {"id": "h", "prompt": "leak", "split": "held_out"},
        {"id": "x", "prompt": "x", "split": "tune"},
    )
    workload = _load(path)
    assert (_ids(workload.tune), _ids(workload.held_out)) == (["x"], ["h"])


def test_repeat_across_two_sources_is_not_tuned_on(write: Write) -> None:
    tune = write({"prompt": "one"}, {"prompt": "leak"}, name="tune.jsonl")
    held_out = write({"prompt": "leak"}, name="held.jsonl")
    workload = _load(tune, held_out_path=held_out)
    assert [prompt.text for prompt in workload.tune] == ["one"]
    assert [prompt.text for prompt in workload.held_out] == ["leak"]


# Faults


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("{not json", "expected a JSON object in UTF-8"),
        ("[1, 2]", "expected a JSON object, but got a list"),
        ("null", "expected a JSON object, but got a NoneType"),
        ("1" * 5000, "expected a JSON object in UTF-8"),
        ({"text": "x"}, "expected one of the keys ['turns', 'messages', 'prompt'], but got ['text']"),
        ({"prompt": "  "}, "`prompt` must be a text that is not blank"),
        ({"prompt": ["x"]}, "`prompt` must be a text"),
        ({"prompt": "x", "category": 3}, "`category` must be a text"),
        ({"prompt": "x", "id": 1.5}, "`id` must be a text"),
        ({"prompt": "x", "id": True}, "`id` must be a text"),
        ({"prompt": "x", "split": "test"}, "`split` must be one of ['tune', 'held_out'], but got 'test'"),
        ({"prompt": "x", "split": ["tune"]}, "`split` must be one of"),
        ('{"prompt": "\\ud800"}', "`prompt` must be Unicode text, but character 0 is half a pair"),
        ({"turns": [], "question_id": 1, "category": "a"}, "`turns` must be a list of texts that is not empty"),
        ({"turns": "x", "question_id": 1, "category": "a"}, "`turns` must be a list of texts"),
        ({"turns": [""], "question_id": 1, "category": "a"}, "the first of `turns` must be a text"),
        ({"turns": ["x"], "category": "a"}, "['question_id'] are missing"),
        ({"turns": ["x"]}, "['question_id', 'category'] are missing"),
        ({"messages": []}, "`messages` must hold a message that is not the assistant's"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "that is not the assistant's"),
        ({"messages": "x"}, "`messages` must be a list of {role, content} objects"),
        ({"messages": ["x"]}, "`messages` must be a list of {role, content} objects"),
        ({"messages": [{"content": "x"}]}, "`role` must be a text"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "`content` must be a text"),
    ],
)
def test_faulty_row_names_file_line_and_rule(row: Any, expected: str, write: Write) -> None:
    path = write({"prompt": "fine"}, row, {"prompt": "fine too"})
    (fault,) = _faults(path)
    assert fault.startswith(f"{path}:2: ")
    assert expected in fault


def test_bytes_that_are_no_utf8_name_their_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "caf\xe9"}\n')
    (fault,) = _faults(path)
    assert fault.startswith(f"{path}:2: expected a JSON object in UTF-8")


def test_all_faulty_lines_are_listed_up_to_twenty(write: Write) -> None:
    faults = _faults(write({"prompt": "fine"}, *["oops"] * 23))
    assert len(faults) == 21
    assert [fault.split(":")[-4] for fault in faults[:20]] == [str(line) for line in range(2, 22)]
    assert faults[20] == "... and 3 more"


def test_faults_of_both_sources_are_listed_together(write: Write) -> None:
    tune, held_out = write("oops", name="tune.jsonl"), write("oops", name="held.jsonl")
    faults = _faults(tune, held_out_path=held_out)
    assert [fault.startswith(f"{path}:1:") for fault, path in zip(faults, (tune, held_out), strict=True)] == [True] * 2


def test_repeated_ids_are_listed(write: Write) -> None:
    path = write({"prompt": "a", "id": 1}, {"prompt": "b", "id": "1"}, {"prompt": "c", "id": 1})
    assert _faults(path) == [
        f"{path}:2: an id must be unique, but '1' is already at {path}:1",
        f"{path}:3: an id must be unique, but '1' is already at {path}:1",
    ]


def test_category_that_cannot_be_split_is_named(write: Write) -> None:
    faults = _faults(write(*_rows(a=4, b=1, c=1)))
    assert len(faults) == 2
    assert "at least 2 different prompts" in faults[0]
    assert "'b' has 1 and 0" in faults[0]
    assert "'c' has 1 and 0" in faults[1]


def test_category_of_repeats_cannot_be_split(write: Write) -> None:
    (fault,) = _faults(write({"prompt": "a"}, {"prompt": "a"}))
    assert "'default' has 1 and 0" in fault


@pytest.mark.parametrize(("split", "counts"), [("tune", "3 and 0"), ("held_out", "0 and 3")])
def test_category_that_is_all_on_one_side_is_named(split: str, counts: str, write: Write) -> None:
    (fault,) = _faults(write(*[{**row, "split": split} for row in _rows(a=3)]))
    assert counts in fault


@pytest.mark.parametrize("content", [[], ["", "   "]])
def test_empty_workload_is_refused(content: list[str], write: Write) -> None:
    assert "at least one prompt" in _faults(write(*content))[0]


def test_folder_without_texts_is_refused(tmp_path: Path) -> None:
    assert "at least one prompt" in _faults(tmp_path)[0]


def test_blank_and_broken_text_files_are_listed(tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    faults = _faults(tmp_path)
    assert faults[0].startswith(f"{tmp_path / 'blank.txt'}: a text file must be a text that is not blank")
    assert faults[1].startswith(f"{tmp_path / 'latin.txt'}: expected UTF-8 text")


@pytest.mark.parametrize("name", ["missing.jsonl", "missing.txt", "missing.jsonl.gz"])
def test_missing_file_is_refused(name: str, tmp_path: Path) -> None:
    (fault,) = _faults(tmp_path / name)
    assert str(tmp_path / name) in fault
    assert "does not exist" in fault


@pytest.mark.parametrize("name", ["prompts.json", "prompts.csv", "prompts", "prompts.txt.gz"])
def test_unknown_kind_of_file_is_refused(name: str, write: Write) -> None:
    (fault,) = _faults(write({"prompt": "a"}, name=name))
    assert ".jsonl, .jsonl.gz, .txt" in fault


@pytest.mark.parametrize(
    "damage", [lambda data: b"no gzip", lambda data: data[:-12], lambda data: data[:20] + b"x" * 40]
)
def test_damaged_gzip_is_refused(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl.gz"
    path.write_bytes(damage(gzip.compress(SAMPLE.read_bytes())))
    (fault,) = _faults(path)
    assert "must be a readable file" in fault


def test_unreadable_file_is_refused(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write({"prompt": "a"})

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    (fault,) = _faults(path)
    assert "Permission denied" in fault


def test_unknown_categories_are_listed_with_near_names() -> None:
    with pytest.raises(ConfigError) as caught:
        _load(SAMPLE, categories=("codnig", "qa", "zzz"))
    assert len(caught.value.faults) == 2
    assert "did you mean 'coding'?" in caught.value.faults[0]
    assert "'zzz'" in caught.value.faults[1]
    assert "did you mean" not in caught.value.faults[1]


def test_impossible_settings_are_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        WorkloadSource(
            "x",
            max_prompts_per_category=0,
            max_held_out_per_category=-1,
            held_out_share=1.0,
            seed=-1,
            max_new_tokens=0,
        )
    assert len(caught.value.faults) == 5
