from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from autospec.config import SpecConfig
from autospec.errors import MeasurementError
from autospec.report import draw_figures
from autospec.report.figures import (
    acceptance_by_position,
    optimisation_history,
    predicted_and_measured,
    speed_by_draft_length,
)
from autospec.report.run import read_run
from autospec.report.tradeoffs import front, speed_and_latency

OFF = SpecConfig()
PROMPTS = ("a1", "b1", "c1", "a2")


def draft(length: int) -> SpecConfig:
    return SpecConfig(drafter="draft", draft_length=length)


@pytest.fixture
def folder(write_run) -> Path:
    """Write trial 1 at 2 times the baseline, trial 2 pruned at 0.5 times, trial 3 failed, trial 4 at 4 times."""
    ngram = SpecConfig(drafter="ngram", draft_length=8)
    return write_run(
        *[(OFF, 0, prompt, 1.0) for prompt in PROMPTS],
        *[(draft(3), 1, prompt, 0.5) for prompt in PROMPTS],
        *[(draft(12), 2, prompt, 2.0) for prompt in PROMPTS[:2]],
        *[(ngram, 4, prompt, 0.25) for prompt in PROMPTS],
        failure=(draft(60), 3),
    )


def texts(figure) -> str:
    return " | ".join(text.get_text() for text in [*figure.texts, *figure.legends[0].get_texts()])


def lines_of(axes, minimum: int = 2) -> list[list[tuple[float, float]]]:
    found = [list(zip(*line.get_data(), strict=True)) for line in axes.lines if line.get_marker() == "o"]
    return [line for line in found if len(line) >= minimum]


def test_all_figures_are_written_as_png(folder):
    files = draw_figures(folder)
    assert [file.name for file in files] == [
        "optimisation_history.png",
        "speed_by_draft_length.png",
        "acceptance_by_position.png",
    ]
    assert all(file.parent == folder / "figures" for file in files)
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


def test_the_history_shows_each_trial_the_best_so_far_and_what_failed(folder):
    figure = optimisation_history(read_run(folder))
    axes = figure.axes[0]
    (best,) = [line for line in axes.lines if line.get_label() == "best so far"]
    assert list(best.get_xdata()) == [1, 2, 3, 4]
    assert list(best.get_ydata()) == pytest.approx([2.0, 2.0, 2.0, 4.0])
    points = {line.get_xdata()[0]: line for line in axes.lines if line.get_marker() == "o"}
    assert {number: line.get_ydata()[0] for number, line in points.items()} == pytest.approx({1: 2.0, 2: 0.5, 4: 4.0})
    assert points[2].get_markerfacecolor() == "white"
    assert points[1].get_markerfacecolor() != "white"
    (failed,) = [line for line in axes.lines if line.get_marker() == "x"]
    assert list(failed.get_xdata()) == [3]
    assert "best: trial 4, ngram x8 n1-3 exact, 4.00x" in texts(figure)
    assert "at most 4 prompts; Example CPU" in texts(figure)
    assert "noise of one timing (0.0 %)" in texts(figure)
    assert "pruned | failed" in texts(figure)


def test_every_value_lies_inside_the_panel(folder):
    for figure in (optimisation_history(read_run(folder)), speed_by_draft_length(read_run(folder))):
        for axes in figure.axes:
            low, high = axes.get_ylim()
            assert low < 0.5
            assert high > 4.0


def test_speed_by_length_has_a_line_for_each_drafter_and_a_panel_for_each_category(write_run):
    rows = [(draft(length), length, prompt, 1 / length) for length in (2, 3, 4) for prompt in PROMPTS]
    figure = speed_by_draft_length(read_run(write_run(*rows)))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["all categories", "complete", "docs", "edit"]
    for axes in figure.axes:
        (line,) = lines_of(axes)
        assert [place for place, _ in line] == pytest.approx([2, 3, 4])
        assert [value for _, value in line] == pytest.approx([2, 3, 4])


def test_the_line_prefers_what_was_measured_thoroughly(write_run):
    lucky = SpecConfig(drafter="draft", draft_length=3, stop_rule="confidence")
    rows = [(draft(3), 1, prompt, 0.5) for prompt in PROMPTS] + [(lucky, 2, "a1", 0.1)]
    figure = speed_by_draft_length(read_run(write_run(*rows)))
    (line,) = [line for line in figure.axes[0].lines if line.get_linestyle() == "-" and line.get_marker() == "o"]
    assert list(line.get_ydata()) == pytest.approx([2.0])


def test_acceptance_leaves_out_positions_that_were_hardly_reached(write_run):
    figure = acceptance_by_position(read_run(write_run((draft(3), 1, "a1", 0.5))))
    (line,) = lines_of(figure.axes[0])
    assert line == [(1, pytest.approx(2 / 3)), (2, pytest.approx(0.5))]  # position 3 was reached 10 times


def test_a_run_with_a_baseline_only_has_no_figures(write_run):
    assert draw_figures(write_run(*[(OFF, 0, prompt, 1.0) for prompt in PROMPTS])) == []


def test_drawing_leaves_the_settings_of_matplotlib_alone(folder):
    import matplotlib

    before = dict(matplotlib.rcParams)
    draw_figures(folder)
    assert dict(matplotlib.rcParams) == before


def test_drawing_needs_no_pyplot_optuna_or_torch(folder):
    code = (
        "import sys; from pathlib import Path; from autospec.report import draw_figures;"
        f"draw_figures(Path({str(folder)!r}));"
        "print(sorted({'matplotlib.pyplot', 'optuna', 'torch', 'mlflow'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_legend_of_many_drafters_stays_inside_the_figure(write_run):
    names = ("ngram", "suffix", "recycling", "early_exit", "ngram+draft", "suffix+recycling")
    trials = [
        (SpecConfig(drafter=name, draft_length=4), number, prompt, 0.5)
        for number, name in enumerate(names, start=1)
        for prompt in PROMPTS
    ]
    run = read_run(write_run(*[(OFF, 0, prompt, 1.0) for prompt in PROMPTS], *trials))
    for figure in (optimisation_history(run), speed_by_draft_length(run)):
        figure.draw_without_rendering()
        legend = figure.legends[0].get_window_extent()
        assert len(figure.legends[0].get_texts()) >= len(names)
        assert figure.bbox.x0 <= legend.x0 < legend.x1 <= figure.bbox.x1


def test_what_was_predicted_is_drawn_against_what_was_measured_on_the_same_prompts(folder) -> None:
    assert predicted_and_measured(read_run(folder)) is None
    # Trial 2 measured draft x12 on two prompts at 0.5 times; on those 0.5 was predicted, on the others 8.
    rows = [(draft(3), [0.0] * 4), (draft(12), [math.log(0.5)] * 2 + [math.log(8.0)] * 2), (draft(5), [1.0] * 4)]
    document = {
        "prompt_ids": list(PROMPTS),
        "rows": [{"config": config.to_json(), "speedup": 1.0, "log_speedups": values} for config, values in rows],
    }
    (folder / "predictions.json").write_text(json.dumps(document))
    figure = predicted_and_measured(read_run(folder))
    assert figure is not None
    points = sorted(line.get_data() for line in figure.axes[0].lines if line.get_marker() == "o")
    assert [(round(float(x[0]), 6), round(float(y[0]), 6)) for x, y in points] == [(0.5, 0.5), (1.0, 2.0)]
    assert "2 configurations, off by 25.0 % on average" in texts(figure)
    assert "hollow" not in texts(figure)
    assert "predicted_and_measured.png" in [path.name for path in draw_figures(folder)]


def test_predictions_of_expected_steps_are_hollow(folder) -> None:
    rows = [{"config": draft(length).to_json(), "log_speedups": [0.0] * 4} for length in (3, 12)]
    document = {"prompt_ids": list(PROMPTS), "rows": [{**rows[0], "is_exact": False}, {**rows[1], "is_exact": True}]}
    (folder / "predictions.json").write_text(json.dumps(document))
    run = read_run(folder)
    assert run.expected == {draft(3)}
    figure = predicted_and_measured(run)
    assert figure is not None
    first, second = (line.get_markerfacecolor() for line in figure.axes[0].lines if line.get_marker() == "o")
    assert first == "white" != second
    assert "hollow: of expected steps" in texts(figure)


def test_predictions_that_cannot_be_read_are_told_of(folder) -> None:
    (folder / "predictions.json").write_text("{}")
    with pytest.raises(MeasurementError, match="a run must hold readable predictions"):
        read_run(folder)


def rewrite(folder: Path, objective: str, gap: float | None) -> None:
    """Say what was looked for, and give every measurement gaps: 0.1 s plain, `gap` for each draft token else."""
    path = folder / "measurements.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if row.get("decision") == "identity":
            row["value"]["settings"] = {"objective": objective}
        elif "stats" in row and gap is not None:
            row["stats"]["gap_seconds"] = [gap * row["config"].get("draft_length", 0) or 0.1] * 3
            row["baseline_gap_seconds"] = [0.1] * 3
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_history_shows_what_decided(folder):
    rewrite(folder, "p95_inter_token_latency", 0.1)
    run = read_run(folder)
    assert run.objective == "p95_inter_token_latency"
    # drafts of 3, 12 and 8 tokens wait so many times longer; of the complete ones the first is the best
    assert [trial.ratio and trial.ratio.value for trial in run.trials] == [
        pytest.approx(1 / 3), pytest.approx(1 / 12), None, pytest.approx(1 / 8),
    ]  # fmt: skip
    figure = optimisation_history(run)
    assert "P95 latency ratio of each trial" in texts(figure)
    assert "looked for: p95_inter_token_latency; best: trial 1, " in texts(figure)
    assert figure.axes[0].get_ylabel() == "p95 latency ratio over plain decoding"


def test_latency_is_drawn_over_speed_where_it_is_known(folder):
    assert speed_and_latency(read_run(folder)) is None
    rewrite(folder, "tokens_per_second", 0.05)
    figure = speed_and_latency(read_run(folder))
    points = [point for line in lines_of(figure.axes[0], 1) for point in line]
    assert points == [pytest.approx(point) for point in ((2.0, 1 / 1.5), (0.5, 1 / 6), (4.0, 1 / 4))]


def test_a_front_is_read_from_the_result_and_drawn_by_memory(folder):
    assert front(read_run(folder)) is None
    speed = {"value": 2.0, "low": 1.5, "high": 2.5, "num_prompts": 4}
    whole = {"stage": "tune", "config": draft(3).to_json(), "speedup": speed, "loss": 0.0, "memory_bytes": 3_000_000}
    least = {**whole, "config": OFF.to_json(), "speedup": {**speed, "value": 1.5}, "memory_bytes": 1_000_000}
    rows = [whole, least, {**whole, "stage": "held-out", "loss": 0.1}]
    (folder / "result.json").write_text(json.dumps({"objective": "pareto", "pareto": rows}))
    figure = front(read_run(folder))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["tune prompts", "held-out prompts"]
    drawn = [sorted(point for line in lines_of(axes, 1) for point in line) for axes in figure.axes]
    assert drawn == [[(1.0, 1.5), (3.0, 2.0)], [(3.0, 2.0)]]
    (hollow,) = [line for line in figure.axes[1].lines if line.get_marker() == "o"]
    assert hollow.get_markerfacecolor() == "white"
    assert "off" in texts(figure)
    (folder / "result.json").write_text(json.dumps({"objective": "tokens_per_second", "pareto": rows}))
    assert front(read_run(folder)) is None


def test_a_result_that_cannot_be_read_is_said(folder):
    (folder / "result.json").write_text('{"objective": "pareto", "pareto": [{}]}')
    with pytest.raises(MeasurementError, match="readable result"):
        read_run(folder)
