from __future__ import annotations

from autospec.training import model_card
from autospec.training.model_card import Goal


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
