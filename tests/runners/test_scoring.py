from __future__ import annotations

import sys
from pathlib import Path

import pytest

from autospec.errors import ConfigError, ScorerError
from autospec.records import Prompt, Workload
from autospec.runners.scoring import Scorer, check_references, make_scorer, score

PROMPT = Prompt("p", "math", text="6 * 7?", reference="42")


def scorer_of(name: str, *allow_import: str) -> Scorer:
    scorer = make_scorer(name, allow_import)
    assert scorer is not None
    return scorer


def test_no_name_is_no_scorer() -> None:
    assert make_scorer(None) is None


@pytest.mark.parametrize(("text", "value"), [("42", 1.0), (" 42\n", 1.0), ("42.", 0.0), ("", 0.0)])
def test_exact_match_ignores_only_white_space_around_the_text(text: str, value: float) -> None:
    assert score(scorer_of("exact"), PROMPT, text) == value


@pytest.mark.parametrize(
    ("pattern", "text", "value"),
    [
        (r"\d+", "it is 41", 1.0),  # without a group it is enough to be found
        (r"is (\d+)", "it is 41", 0.0),
        (r"is (\d+)", "it is 41, no, it is 42", 1.0),  # the last one counts
        (r"is (\d+)", "nothing", 0.0),
    ],
)
def test_a_regular_expression_is_found_and_its_group_is_the_reference(pattern: str, text: str, value: float) -> None:
    assert score(scorer_of(f"regex:{pattern}"), PROMPT, text) == value


def test_without_a_reference_a_group_need_only_be_found() -> None:
    assert score(scorer_of("regex:is (.)"), Prompt("p", "math"), "it is so") == 1.0


def test_a_bad_pattern_and_an_unknown_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="regular expression"):
        make_scorer("regex:(")
    with pytest.raises(ConfigError, match=r"must be exact, regex:PATTERN or package.module:function, but got 'bleu'"):
        make_scorer("bleu")


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    code = """
def length(prompt, text): return len(text) + len(prompt.reference)
def words(prompt, text): return "many"
def endless(prompt, text): return float("nan")
number = 3
"""
    (tmp_path / "own_scorer_of_test.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_scorer_of_test", raising=False)
    return "own_scorer_of_test"


def test_a_function_is_imported_only_where_that_is_allowed(own_module: str) -> None:
    with pytest.raises(ConfigError, match="with `allow_import="):
        make_scorer(f"{own_module}:length")
    assert own_module not in sys.modules
    assert score(scorer_of(f"{own_module}:length", own_module), PROMPT, "abc") == 5.0


@pytest.mark.parametrize("name", ["words", "endless"])
def test_a_scorer_that_gives_no_number_names_the_prompt(name: str, own_module: str) -> None:
    with pytest.raises(ScorerError, match=r"number.* on prompt 'p'"):
        score(scorer_of(f"{own_module}:{name}", own_module), PROMPT, "abc")


def test_exact_match_needs_a_reference_of_every_prompt() -> None:
    workload = Workload("w", (PROMPT,), (Prompt("q", "math", text="?"),))
    with pytest.raises(ConfigError, match="1 of 2 prompts of 'w' have none, such as 'q'"):
        check_references("exact", workload)
    check_references("regex:x", workload)
    check_references("exact", Workload("w", (PROMPT,), (PROMPT,)))
