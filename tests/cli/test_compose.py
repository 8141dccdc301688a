from __future__ import annotations

from pathlib import Path

import pytest

from autospec.cli.compose import compose_values, near
from autospec.paths import data_dir

CONF = data_dir("conf")
COMMANDS = ("tune", "bench", "generate", "train", "datastore", "mlflow", "profile", "replay")
CHOICES = sorted(
    (path.parent.relative_to(CONF).as_posix(), path.stem) for path in CONF.rglob("*.yaml") if path.parent != CONF
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_composes_with_its_defaults(command: str) -> None:
    composed = compose_values(command, ["trace=t", "hardware=h"] if command == "replay" else [])
    assert composed.faults == []
    assert composed.values["output_root"] == "outputs"
    assert "hydra" not in composed.values


def test_every_primary_configuration_is_a_command_or_shared() -> None:
    assert {path.stem for path in CONF.glob("*.yaml")} == {*COMMANDS, "base"}


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_of_every_group_composes(group: str, choice: str) -> None:
    composed = compose_values("train" if group == "recipe" else "tune", [f"{group}={choice}"])
    assert [fault for fault in composed.faults if "must be given" not in fault] == []


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: path.relative_to(CONF).as_posix())
def test_every_file_says_which_command_uses_it(path: Path) -> None:
    head = [line for line in path.read_text().splitlines()[:2] if line.startswith("# python -m autospec ")]
    assert head or path.stem == "base"


def test_all_faults_are_collected_with_the_nearest_names() -> None:
    composed = compose_values(
        "tune",
        ["study.trial=3", "model=pockett", "resume", "--trials", "foo.bar=1", "study.trials=1,2", "hydra.run.dir=x"],
    )
    assert composed.faults == [
        "a setting is key=value, but got 'resume'",
        "an option is --help, --version, --multirun or --cfg, but got '--trials'",
        "settings of Hydra itself serve only with --multirun or --cfg, but got 'hydra.run.dir=x'",
        "`model` must be one of ['custom', 'pocket'], but got 'pockett'; did you mean `pocket`?",
        "`tune` has no setting `study.trial`; did you mean `study.trials`?",
        "`tune` has no setting `foo.bar`",
        "`study.trials` takes one value (or a list, [a,b]), but got '1,2'",
    ]


def test_what_is_right_is_applied_beside_what_is_wrong() -> None:
    composed = compose_values("tune", ["study.trial=3", "study.trials=7", "experiment=smoke"])
    assert len(composed.faults) == 1
    assert composed.values["study"]["trials"] == 7
    assert composed.values["search_space"] == "smoke"


def test_a_group_that_the_command_does_not_have_is_unknown() -> None:
    assert compose_values("bench", ["study=quick"]).faults == ["`bench` has no setting `study`"]


def test_a_group_without_a_default_choice_is_suggested() -> None:
    assert compose_values("generate", ["modle=pocket"]).faults == [
        "`generate` has no setting `modle`; did you mean `model`?"
    ]


def test_values_that_must_be_given_are_named() -> None:
    composed = compose_values("tune", ["model=custom", "workload=file"])
    assert composed.faults == [
        "`model.target` must be given, as model.target=VALUE",
        "`workload.path` must be given, as workload.path=VALUE",
    ]
    assert "target" not in composed.values["model"]


def test_a_prompt_is_taken_as_typed() -> None:
    prompt = "def f(a, b={}): return '${x}' # \"quoted\", 1,2"
    composed = compose_values("generate", [f"prompt={prompt}", "max_new_tokens=3"])
    assert composed.faults == []
    assert composed.values["prompt"] == prompt
    assert composed.values["max_new_tokens"] == 3


def test_a_prompt_for_a_command_without_one_is_unknown() -> None:
    assert compose_values("mlflow", ["prompt=hello"]).faults[0].startswith("`mlflow` has no setting `prompt`")


@pytest.mark.parametrize("value", ["~/a b/(c).jsonl", "it's here", "C:\\a\\", "it\\'s", "a{b", "x y=z"])
def test_text_outside_hydras_grammar_is_text(value: str) -> None:
    composed = compose_values("tune", [f"workload.path={value}"])
    assert composed.faults == []
    assert composed.values["workload"]["path"] == value


def test_drafters_can_be_added_and_dropped_by_name() -> None:
    composed = compose_values(
        "tune", ["model.drafters.small=/x", "model.drafters={other: y}", "model.drafters.draft=null"]
    )
    assert composed.faults == []
    built_in = {name: name for name in ("ngram", "suffix", "recycling", "early_exit", "lookahead")}
    assert composed.values["model"]["drafters"] == {"draft": None, **built_in, "small": "/x", "other": "y"}


def test_lists_of_tables_are_composed() -> None:
    composed = compose_values("bench", ["configs=[off,{drafter:draft,draft_length:4}]"])
    assert composed.values["configs"] == ["off", {"drafter": "draft", "draft_length": 4}]


def test_references_are_resolved_and_bad_ones_are_faults() -> None:
    good = compose_values("tune", ["workload.name=${search_space}"])
    assert good.values["workload"]["name"] == "chain"
    assert "must name another setting" in compose_values("tune", ["workload.name=${nothing}"]).faults[0]


def test_overrides_are_kept_as_typed() -> None:
    assert compose_values("tune", ["study.trials=7", "study=quick"]).overrides == ("study.trials=7", "study=quick")


def test_the_smoke_experiment_is_small() -> None:
    values = compose_values("tune", ["experiment=smoke"]).values
    assert values["study"]["trials"] <= 3
    assert values["workload"]["max_new_tokens"] <= 16


def test_near_prefers_the_whole_name_and_falls_back_to_the_last_part() -> None:
    assert near("study.trial", ["study.trials", "model"]) == "; did you mean `study.trials`?"
    assert near("trials", ["study.trials", "model"]) == "; did you mean `study.trials`?"
    assert near("zzz", ["study.trials"]) == ""
