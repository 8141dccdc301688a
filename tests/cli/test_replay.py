from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autospec import replay
from autospec.cli import main
from autospec.config import SamplingParams
from autospec.engine.costs import CostCurve
from autospec.engine.decoder import SpeculativeDecoder
from autospec.engine.drafters import NgramDrafter
from autospec.engine.model import CausalLM
from autospec.profiling import ProfileSettings, find_profile, profile
from autospec.replay import RecordedPrompt, Recorder, RecordingBudget

TEXT = [(7 * place + place // 5) % 60 for place in range(200)]
SPACE = "knobs:\n  drafter: {choices: [ngram]}\n  draft_length: {choices: [2, 4]}\n"


class Ticks:
    """A clock that moves by a millisecond whenever it is looked at."""

    seconds = 0.0

    def now(self) -> float:
        self.seconds += 1e-3
        return self.seconds


@pytest.fixture
def words(tiny_model: Any, in_empty_folder: Path) -> list[str]:
    """A trace, a profile and a space of two configurations in the folder, and the command line that names them."""
    decoder = SpeculativeDecoder(CausalLM(tiny_model("llama"), "tiny"), {"ngram": NgramDrafter()})
    prompts = [RecordedPrompt(name, name[0], tuple(TEXT[:16])) for name in ("a1", "b1")]
    Recorder(decoder, RecordingBudget(max_depth=4)).record(prompts, 12).save("trace")
    settings = ProfileSettings(
        budget_seconds=1e6,
        contexts=(8, 40),
        max_tokens=16,
        draft_lengths=(1, 4),
        widths=(),
        batch_sizes=(),
        max_rounds=1,
    )
    profile(decoder, TEXT, settings, watch=Ticks()).save("profile.json")
    Path("space.yaml").write_text(SPACE)
    return ["replay", "trace=trace", "hardware=profile.json", "search_space=space.yaml"]


def test_a_space_is_priced_and_said_to_be_predicted(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "predicted, not measured there" in shown
    # the two of the space, and of the two defaults for lookups those that are others
    assert "of 4 configurations could be priced" in shown
    (path,) = Path("outputs/replay").glob("*/replay.json")
    document = json.loads(path.read_text())
    assert document["measured"] is False
    assert set(document["categories"]) == {"a", "b"}
    speedups = [one["predicted_speedup"] for one in document["ranked"]]
    assert speedups == sorted(speedups, reverse=True)
    assert document["num_priced"] == len(speedups)
    assert document["best"] == (document["ranked"][0]["config"] if speedups[0] > 1.0 else {"draft_length": 0})


def test_under_sampling_it_says_which_steps_are_expected(
    words: list[str], tiny_model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    decoder = SpeculativeDecoder(CausalLM(tiny_model("llama"), "tiny"), {"ngram": NgramDrafter()})
    prompts = [RecordedPrompt(name, name[0], tuple(TEXT[:16])) for name in ("a1", "b1")]
    Recorder(decoder, RecordingBudget(max_depth=4)).record(prompts, 12, SamplingParams(temperature=1.0)).save("drawn")
    Path("space.yaml").write_text(SPACE + "  accept_rule: {choices: [exact, rejection]}\n")
    assert main([words[0], "trace=drawn", *words[2:], "shown=9"]) == 0
    shown = capsys.readouterr().out
    (path,) = Path("outputs/replay").glob("*/replay.json")
    document = json.loads(path.read_text())
    rules = [(one["config"].get("accept_rule", "exact"), one["is_exact"]) for one in document["ranked"]]
    assert set(rules) == {("exact", True), ("rejection", False)}
    num_expected = rules.count(("rejection", False))
    assert document["num_expected"] == num_expected
    assert f"from trace and profile, {num_expected} of them by expected steps" in shown
    assert shown.count(" rejection (expected)  ") == num_expected


def test_the_cost_aware_rule_has_the_costs_of_the_profile(
    words: list[str], tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, CostCurve]] = []

    class Watched(replay.Simulator):
        def __init__(self, *parts: Any, **options: Any) -> None:
            given.append(options["costs"])
            super().__init__(*parts, **options)

    monkeypatch.setattr(replay, "Simulator", Watched)
    assert main(words) == 0
    assert given == [{}]  # a space without the rule reads none
    Path("space.yaml").write_text(SPACE + "  stop_rule: {choices: [static, cost_aware]}\n")
    main(words)
    assert given[1] == {"ngram": find_profile("profile.json").cost_curve("ngram", 21)}  # between 16 and 26 tokens
    main([*words, "prompt_length=24"])
    assert given[2] == {"ngram": find_profile("profile.json").cost_curve("ngram", 29)}


def test_it_says_the_same_twice(words: list[str]) -> None:
    assert main(words) == 0
    assert main(words) == 0
    first, second = (json.loads(path.read_text()) for path in Path("outputs/replay").glob("*/replay.json"))
    assert first == second


def test_all_faults_come_at_once_and_nothing_is_made(
    words: list[str], capsys: pytest.CaptureFixture[str], in_empty_folder: Path
) -> None:
    before = sorted(in_empty_folder.iterdir())
    assert main(["replay", "trace=nowhere", "hardware=none.json", "trials=0", "search_spce=x"]) == 2
    message = capsys.readouterr().err
    for part in ("folder of one trace", "none.json", "`trials >= 1`", "did you mean `search_space`?"):
        assert part in message
    assert sorted(in_empty_folder.iterdir()) == before


def test_what_must_be_given_is_asked_for(capsys: pytest.CaptureFixture[str], in_empty_folder: Path) -> None:
    assert main(["replay"]) == 2
    message = capsys.readouterr().err
    assert "`trace` must be given" in message
    assert "`hardware` must be given" in message


def test_a_space_whose_drafter_was_not_recorded_is_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("space.yaml").write_text(SPACE.replace("ngram", "draft"))
    assert main(words) == 2
    assert "'draft'" in capsys.readouterr().err


def test_a_profile_that_does_not_reach_the_trace_is_bad_input(
    words: list[str], tiny_model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    decoder = SpeculativeDecoder(CausalLM(tiny_model("llama"), "tiny"), {"ngram": NgramDrafter()})
    long = RecordedPrompt("long", "a", tuple(TEXT[:60]))
    Recorder(decoder, RecordingBudget(max_depth=4)).record([long], 12).save("far")
    assert main([*words, "trace=far"]) == 2
    assert "a profile must reach as far as the prompts, but" in capsys.readouterr().err
    assert not Path("outputs").exists()


def test_prompts_may_be_taken_for_longer_ones(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    capsys.readouterr()
    assert main([*words, "prompt_length=24"]) == 0
    shown = capsys.readouterr().out
    assert "every prompt taken for one of 24 tokens; drafts accepted as they were behind 16 to 16" in shown
    first, second = (json.loads(path.read_text()) for path in sorted(Path("outputs/replay").glob("*/replay.json")))
    assert (first["prompt_length"], second["prompt_length"]) == (None, 24)
    steps = [
        {str(one["config"]): one["tokens_per_step"] for one in document["ranked"]} for document in (first, second)
    ]
    assert steps[0] == steps[1]


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (0, "`prompt_length >= 1` must hold"),
        (10**20, "prompt_length <="),
        (60, "a profile must reach as far as the prompts"),
    ],
)
def test_a_length_that_nothing_is_known_of_is_bad_input(
    words: list[str], capsys: pytest.CaptureFixture[str], length: int, message: str
) -> None:
    assert main([*words, f"prompt_length={length}"]) == 2
    assert message in capsys.readouterr().err


def test_a_damaged_trace_is_bad_input(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (header,) = Path("trace").glob("*/trace.json")
    header.write_text(header.read_text().replace('"a1"', '"a2"'))
    assert main(words) == 2
    assert "was changed" in capsys.readouterr().err
