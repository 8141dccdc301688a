from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from autospec.cli import main
from autospec.training import recipe as recipe_module
from autospec.training.settings import PocketRecipe


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[PocketRecipe, Path]]:
    made: list[tuple[PocketRecipe, Path]] = []

    def run_recipe(recipe: PocketRecipe, folder: Path, on_progress: Callable[[str], None]) -> dict[str, str]:
        made.append((recipe, folder))
        on_progress("half way")
        return {"corpus": "already there", "trunk": "done"}

    monkeypatch.setattr(recipe_module, "run_recipe", run_recipe)
    return made


def test_a_recipe_runs_in_one_folder_that_the_next_run_finds(
    calls: list[tuple[PocketRecipe, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "recipe=pocket", "recipe.stages=[trunk]", f"output_root={tmp_path}"]) == 0
    ((recipe, folder),) = calls
    assert recipe.stages == ("trunk",)
    assert folder == tmp_path / "train"
    assert capsys.readouterr().out.splitlines() == ["half way", "corpus: already there", "trunk: done"]


def test_bad_values_of_a_recipe_are_refused(
    calls: list[tuple[PocketRecipe, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    arguments = ["recipe.stages=[trunkk]", "recipe.devise=cpu", f"output_root={tmp_path / 'file'}"]
    assert main(["train", *arguments]) == 2
    message = capsys.readouterr().err
    assert "trunkk" in message
    assert "`train` has no setting `recipe.devise`; did you mean `recipe.device`?" in message
    assert "is a file" in message
    assert calls == []


def test_a_recipe_that_is_not_there_is_named_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "recipe=pockt"]) == 2
    assert "did you mean `pocket`?" in capsys.readouterr().err
