"""`python -m autospec train`: makes a family of models by a recipe; the same command goes on where it was stopped."""

from __future__ import annotations

from autospec.cli.build import checked_root
from autospec.cli.compose import Composed
from autospec.cli.console import Terminal
from autospec.cli.faults import Faults
from autospec.training.settings import PocketRecipe


def run(composed: Composed) -> int:
    """Run the stages of the recipe that are not done yet."""
    faults = Faults(composed.faults)
    recipe = faults.attempt(lambda: PocketRecipe.from_mapping(composed.values["recipe"]))
    root = faults.attempt(lambda: checked_root(str(composed.values["output_root"])))
    faults.raise_if_any()
    assert recipe is not None
    assert root is not None
    from autospec.training.recipe import run_recipe

    with Terminal() as terminal:
        outcome = run_recipe(recipe, root / "train", terminal.line)
        terminal.lines(f"{stage}: {state}" for stage, state in outcome.items())
    return 0
