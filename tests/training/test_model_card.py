from __future__ import annotations

from pathlib import Path

import yaml

from autospec.training import model_card
from autospec.training.model_card import Goal
from autospec.training.settings import PocketRecipe

RECIPE = Path(__file__).resolve().parents[2] / "conf" / "recipe" / "pocket.yaml"


def metrics(acceptance: float, ratio: float) -> dict:
    return {
        "position_acceptance_0": {"overall": acceptance, "complete": 0.7, "docs": 0.46, "edit": 0.5},
        "forward_seconds": {"ratio": ratio},
        "bits_per_byte": {"value": 1.1},
        "loop_share": {"complete": 0.1, "docs": 0.16, "edit": 0.9},
    }


def test_goals_are_met_on_the_right_side_of_their_bounds() -> None:
    assert Goal("a", 0.6, 0.6, True).is_met
    assert not Goal("a", 0.59, 0.6, True).is_met
    assert Goal("a", 0.15, 0.15, False).is_met
    assert not Goal("a", 0.16, 0.15, False).is_met


def test_every_figure_of_the_family_is_judged() -> None:
    lines = model_card.verdicts(metrics(0.59, 0.1))
    assert len(lines) == 8
    missed = [line for line in lines if "missed" in line]
    assert missed == [
        "`position_acceptance[0]` over all: 0.590 (missed)",
        "tokens inside a verbatim loop on `docs`: 0.160 (missed)",
    ]


def test_the_curve_is_told_in_means_of_equal_stretches() -> None:
    curve = [(100 * (i + 1), float(i)) for i in range(32)]
    lines = model_card.curve_table(curve).splitlines()
    assert len(lines) == 2 + 16
    assert lines[2] == "| 200 | 0.500 |"
    assert lines[-1] == "| 3,200 | 30.500 |"
    assert model_card.curve_table([(100, 2.0)]).splitlines()[2:] == ["| 100 | 2.000 |"]


def test_the_card_holds_every_part_in_order() -> None:
    figures = {
        **metrics(0.7, 0.1),
        "device": {"device_name": "Example CPU", "num_threads": 2, "num_cores": 4},
        "training": {
            "target": {"trunk_tokens": 24_000_000, "decay_tokens": 2_000_000, "curve": [(100, 2.0)]},
            "draft": {"tokens": 4_000_000, "greedy_weight": 1.0, "curve": [(200, 3.0)]},
        },
        "size": {name: {"num_parameters": 1234567, "num_bytes": 2469134} for name in ("target", "draft")},
        "bits_per_byte": {"value": 1.1, "window": 1024, "num_files": 7, "num_bytes": 5000},
        "forward_seconds": {"ratio": 0.1, "target": 0.0042, "draft": 0.00042, "context": 256},
        "live_position_acceptance": {name: [0.5, 0.25] for name in ("overall", "complete", "docs", "edit")},
        "samples": [{"id": "one", "prompt": "import os", "continuation": "import sys"}],
    }
    packages = [{"package": "alpha", "version": "1.0", "licence": "MIT", "num_files": 20, "num_bytes": 100}]
    card = model_card.render(figures, packages, PocketRecipe.from_mapping(yaml.safe_load(RECIPE.read_text())))
    headings = [line for line in card.splitlines() if line.startswith("#")]
    assert headings == [
        "# The pocket family", "## What was to be reached", "## Shapes", "## Figures", "## Recipe", "## Corpus",
        "## Samples",
    ]  # fmt: skip
    assert "\n\n\n" not in card
    for part in (
        "float32, Example CPU, 2 of 4 cores.",
        "| `position_acceptance[0]` over all | at least 0.6 | 0.700 | yes |",
        "| target | 12 | 192 | 6 | 512 | own head | 1,234,567 | 2,469,134 |",
        "| draft | 1 | 128 | 4 | 512 | tied | 1,234,567 | 2,469,134 |",
        "4.20 ms (target) and 0.42 ms (draft)",
        "Held-out bits per byte: 1.100 in windows of 1,024 tokens, over 7 files of",
        "| docs | 0.460 | 0.50, 0.25 | 0.160 |",
        "- Target: 24,000,000 tokens at constant rate in windows of 256, then",
        "- Draft: 4,000,000 tokens of distillation",
        "| 100 | 2.000 |",
        "| 200 | 3.000 |",
        "| alpha | 1.0 | MIT | 20 | 100 |",
        "````python\nimport sys\n````",
    ):
        assert part in card, part
