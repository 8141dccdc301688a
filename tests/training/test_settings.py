from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from autospec.errors import ConfigError
from autospec.training.settings import STAGES, PocketRecipe

RECIPE = Path(__file__).resolve().parents[2] / "conf" / "recipe" / "pocket.yaml"


@pytest.fixture
def values() -> dict[str, Any]:
    return yaml.safe_load(RECIPE.read_text(encoding="utf-8"))


def test_the_shipped_recipe_is_valid_and_runs_every_stage(values: dict[str, Any]) -> None:
    recipe = PocketRecipe.from_mapping(values)
    assert recipe.stages == STAGES
    assert recipe.target.shape.context_length == 1024
    assert recipe.target.decay_tokens % 8192 == 0
    assert recipe.draft.tokens % 4096 == 0


@pytest.mark.parametrize("package", ["hypothesis", "certifi", "tqdm"])
def test_packages_that_are_not_permissive_are_not_in_it(values: dict[str, Any], package: str) -> None:
    assert package not in values["corpus"]["packages"]


def test_all_faults_come_at_once(values: dict[str, Any]) -> None:
    broken = copy.deepcopy(values)
    broken["corpus"]["vocab_size"] = 10
    broken["stages"] = ["corpus", "bake"]
    broken["target"]["shape"]["num_heads"] = 5
    with pytest.raises(ConfigError) as caught:
        PocketRecipe.from_mapping(broken)
    assert len(caught.value.faults) == 3
    assert "bake" in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("targett",), {}, "`recipe` has no `targett`"),
        (("draft", "colour"), 1, "`recipe.draft` has no `colour`"),
        (("draft", "tokens"), "many", "`recipe.draft.tokens` must be of type int"),
        (("compile",), 1, "`recipe.compile` must be of type bool"),
        (("seed",), True, "`recipe.seed` must be of type int"),
        (("corpus", "packages"), "numpy", "`recipe.corpus.packages` must be a list of names"),
        (("target",), 3, "`recipe.target` must be a mapping"),
    ],
)
def test_wrong_names_and_types_are_named(
    values: dict[str, Any], path: tuple[str, ...], value: Any, message: str
) -> None:
    place = values
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(ConfigError) as caught:
        PocketRecipe.from_mapping(values)
    assert message in str(caught.value)


def test_a_target_is_resumed_from_an_export_only(values: dict[str, Any], tmp_path: Path) -> None:
    assert PocketRecipe.from_mapping(values).target.resume_from is None
    values["target"]["resume_from"] = str(tmp_path)
    with pytest.raises(ConfigError, match=r"`target\.resume_from` must be the folder of an exported target, but .*no"):
        PocketRecipe.from_mapping(values)
    (tmp_path / "training.json").write_text("{}")
    assert PocketRecipe.from_mapping(values).target.resume_from == str(tmp_path)
    values["target"]["resume_from"] = 3
    with pytest.raises(ConfigError, match=r"`recipe\.target\.resume_from` must be a string or null, but got 3"):
        PocketRecipe.from_mapping(values)


def test_where_the_family_goes_is_left_open(values: dict[str, Any]) -> None:
    assert PocketRecipe.from_mapping(values).export_dir is None
    assert PocketRecipe.from_mapping({**values, "export_dir": "mine"}).export_dir == "mine"


def test_a_missing_value_is_named(values: dict[str, Any]) -> None:
    del values["draft"]["tokens"]
    with pytest.raises(ConfigError, match=r"`recipe\.draft` needs `tokens`"):
        PocketRecipe.from_mapping(values)


def test_a_whole_number_serves_as_a_share(values: dict[str, Any]) -> None:
    values["draft"]["greedy_weight"] = 1
    assert PocketRecipe.from_mapping(values).draft.greedy_weight == 1.0
