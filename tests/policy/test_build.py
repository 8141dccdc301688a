from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from autospec import pocket
from autospec.comparison import Bound
from autospec.config import SpecConfig
from autospec.engine.costs import CostCurve
from autospec.policy import (
    Choice,
    ModelSource,
    Quality,
    Reproduction,
    build_policy,
    evidence_from,
    load_policy,
    quality_from,
    reproduction,
)
from autospec.records import Measurement, OutputQuality, Prompt, StepStats, Workload

DRAFT = SpecConfig(drafter="draft", draft_length=3)
NGRAM = SpecConfig(drafter="ngram", draft_length=8)


def measurement(prompt_id: str, seconds: float, repeat: int = 0, identical: bool | None = True) -> Measurement:
    """Ten tokens against ten in one second, 0.1 s of prefill on both sides, 2 of 3 drafted accepted in one step."""
    stats = StepStats()
    stats.add_step(num_drafted=3, num_accepted=2, num_tested=3)
    return Measurement(
        config=DRAFT,
        prompt_id=prompt_id,
        category="edit",
        stage="confirm",
        trial=-1,
        repeat=repeat,
        seconds=seconds,
        baseline_seconds=1.0,
        num_tokens=10,
        baseline_num_tokens=10,
        prefill_seconds=0.1,
        baseline_prefill_seconds=0.1,
        stats=stats,
        identical=identical,
        num_excused=int(prompt_id == "b"),
    )


@pytest.fixture
def workload() -> Workload:
    prompts = tuple(
        Prompt(f"{category}-{index}", category, "text") for category in ("docs", "edit") for index in (0, 1)
    )
    return Workload("hand-written", prompts[::2], prompts[1::2])


@pytest.fixture
def decoder(tmp_path, monkeypatch):
    target, draft = tmp_path / "target", tmp_path / "draft"
    for folder in (target, draft):
        folder.mkdir()
        (folder / "config.json").write_text(folder.name)
    monkeypatch.setattr(pocket, "target_path", lambda: target)
    monkeypatch.setattr(pocket, "draft_path", lambda: draft)

    def model(name, revision=None, commit=None):
        loaded = SimpleNamespace(config=SimpleNamespace(_commit_hash=commit))
        return SimpleNamespace(name=name, revision=revision, dtype="torch.float32", model=loaded, compiles=False)

    drafters = {
        "ngram": SimpleNamespace(source="ngram"),
        "files": SimpleNamespace(source=f"suffix:{draft / 'config.json'}"),
        "own": SimpleNamespace(source="mine"),
        "draft": SimpleNamespace(source=str(draft), model=model(str(draft))),
        "hub": SimpleNamespace(source="some/model", model=model("some/model", commit="abc")),
    }
    return SimpleNamespace(target=model(str(target)), drafters=drafters, text=None, costs={})


def build(decoder, workload, by_category):
    reproduce = Reproduction("autospec tune", 3, "0.1.0", "2026-01-02")
    return build_policy(decoder, workload, {"device_kind": "cpu"}, Choice(DRAFT), by_category, reproduce)


def test_one_row_for_all_and_one_for_each_category_with_its_own(decoder, workload):
    policy = build(decoder, workload, {"edit": Choice(NGRAM), "docs": Choice(DRAFT)})
    assert [(row.category, row.config) for row in policy.rows] == [(None, DRAFT), ("edit", NGRAM)]
    assert policy.choose(category="docs") == DRAFT


def test_models_are_stored_under_names_that_mean_the_same_anywhere(decoder, workload):
    policy = build(decoder, workload, {})
    assert policy.target.source == "pocket/target"
    assert policy.drafters["draft"].source == "pocket/draft"
    assert policy.target.digest is not None
    assert policy.target.digest != policy.drafters["draft"].digest
    assert policy.drafters["ngram"] == ModelSource("ngram")
    assert policy.drafters["own"] == ModelSource("object:mine")
    files = policy.drafters["files"]
    assert (files.source.split(":")[0], files.revision, len(files.digest or "")) == ("suffix", None, 16)
    assert policy.drafters["hub"] == ModelSource("some/model", "abc")
    assert policy.dtype == "float32"


def test_compiled_models_are_stored_as_such(decoder, workload):
    assert build(decoder, workload, {}).compile is False
    decoder.target.compiles = True
    assert build(decoder, workload, {}).compile is True


def test_a_tokenizer_is_stored_where_it_is_not_the_targets(decoder, workload, tmp_path):
    assert build(decoder, workload, {}).tokenizer is None
    decoder.text = SimpleNamespace(source=decoder.target.name)
    assert build(decoder, workload, {}).tokenizer is None
    decoder.text.source = ""  # made in memory
    assert build(decoder, workload, {}).tokenizer is None
    decoder.text.source = "some/tokenizer"
    assert build(decoder, workload, {}).tokenizer == ModelSource("some/tokenizer")
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "tokenizer.json").write_text("{}")
    decoder.text.source = str(tmp_path / "words")
    stored = build(decoder, workload, {}).tokenizer
    assert stored.source == str((tmp_path / "words").resolve())
    assert stored.digest is not None


def test_the_workload_is_named_by_its_content(decoder, workload):
    policy = build(decoder, workload, {})
    assert policy.workload.content_hash == workload.content_hash
    assert policy.workload.categories == ("docs", "edit")


def test_a_built_policy_can_be_saved(decoder, workload, tmp_path):
    evidence = evidence_from([measurement("a", 0.5), measurement("b", 0.4)])
    reproduce = reproduction("autospec tune seed=3", 3)
    policy = build_policy(decoder, workload, {"device_kind": "cpu"}, Choice(DRAFT, evidence), {}, reproduce)
    policy.save(tmp_path / "policy.json")
    assert reproduce.created.endswith("+00:00")


def test_evidence_is_paired_by_prompt_and_totals_are_ratios_of_sums():
    evidence = evidence_from([measurement("a", 0.5), measurement("a", 0.125, repeat=1), measurement("b", 0.25)])
    assert evidence.speedup.value == pytest.approx(4.0)  # a: mean of log 2 and log 8, b: log 4
    assert evidence.speedup.num_prompts == 2
    assert evidence.baseline_tokens_per_second == pytest.approx(10.0)
    assert evidence.tokens_per_second == pytest.approx(30 / 0.875)
    decode = [(math.log(0.9 / 0.4) + math.log(0.9 / 0.025)) / 2, math.log(0.9 / 0.15)]
    assert evidence.decode_speedup is not None
    assert evidence.decode_speedup.value == pytest.approx(math.exp(sum(decode) / 2))
    assert evidence.tokens_per_step == 3.0
    assert evidence.acceptance_rate == pytest.approx(2 / 3)
    assert evidence.position_acceptance == (1.0, 1.0, 0.0)
    assert (evidence.num_prompts, evidence.num_measurements) == (2, 3)


@pytest.mark.parametrize(
    ("identical", "verdict", "count"),
    [((True, True), "identical", 2), ((True, False), "different", 1), ((None, None), "not compared", 0)],
)
def test_quality_sums_up_what_was_seen(identical, verdict, count):
    quality = evidence_from([measurement("a", 0.5, 0, identical[0]), measurement("b", 0.5, 0, identical[1])]).quality
    assert (quality.verdict, quality.num_identical, quality.num_excused) == (verdict, count, 1)


def test_every_output_of_a_batch_counts() -> None:
    group = replace(measurement("a", 0.5, 0, False), num_outputs=8, num_different=3)
    quality = quality_from([group, replace(group, prompt_id="b", identical=True, num_different=0)])
    assert (quality.verdict, quality.num_identical) == ("different", 13)


def test_what_a_lossy_rule_loses_is_bounded_over_prompts_and_survives_its_way_through_json():
    losses = {"a": (0.1, 1.0), "b": (0.3, 0.5)}
    seen = [
        replace(measurement(name, 0.5, 0, None), quality=OutputQuality(-1.0 - loss, -1.0, 0.8, 1.0, score, 1.0))
        for name, (loss, score) in losses.items()
    ]
    quality = quality_from([*seen, replace(seen[0], repeat=1)])
    # Two prompts, one degree of freedom: t is 6.3138 at 95 %, one-sided; deviations over sqrt(2) are 0.1 and 0.25.
    assert quality.loss == Bound(pytest.approx(0.2), pytest.approx(0.2 + 0.6313751515), 2)
    assert quality.score_drop == Bound(pytest.approx(0.25), pytest.approx(0.25 + 6.313751515 * 0.25), 2)
    assert quality.agreement == Bound(0.8, 0.8, 2)
    assert Quality.from_json(json.loads(json.dumps(quality.to_json()))) == quality
    alone = quality_from(seen[:1])
    assert alone.loss is not None
    assert math.isinf(alone.loss.bound)
    assert Quality.from_json(json.loads(json.dumps(alone.to_json()))) == alone


def test_evidence_is_about_one_configuration():
    with pytest.raises(ValueError, match="about one configuration"):
        evidence_from([])


def test_the_costs_that_a_row_reads_go_with_the_policy(decoder, workload, tmp_path):
    decoder.costs = {"draft": CostCurve(2.0, 0.1, 0.5, ((1, 2.0), (4, 2.5))), "ngram": CostCurve(2.0, 0.1, 0.0)}
    assert build(decoder, workload, {}).costs == {}  # neither row draws its length from costs
    aware = SpecConfig("draft", 8, stop_rule="cost_aware")
    policy = build_policy(
        decoder, workload, {"device_kind": "cpu"}, Choice(aware), {}, Reproduction("autospec tune", 3, "0.1.0", "2026")
    )
    assert policy.costs == {"draft": decoder.costs["draft"]}
    policy.save(tmp_path / "policy.json")
    assert load_policy(tmp_path / "policy.json").costs == policy.costs
