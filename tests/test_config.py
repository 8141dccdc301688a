from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from autospec.config import SamplingParams, SpecConfig
from autospec.errors import ConfigError


def test_default_config_is_speculation_off() -> None:
    config = SpecConfig()
    assert config.is_off
    assert config.short() == "off"
    assert config.to_json() == {"draft_length": 0}


def test_canonical_json_omits_defaults() -> None:
    config = SpecConfig(drafter="draft", draft_length=4, stop_rule="static", ngram_max=3)
    assert config.to_json() == {"drafter": "draft", "draft_length": 4}


def test_every_way_to_be_off_has_one_json_form() -> None:
    assert SpecConfig(drafter="draft", stop_rule="confidence").to_json() == SpecConfig().to_json()
    assert SpecConfig(drafter="draft", ngram_max=9).config_hash == SpecConfig().config_hash


# Measurements are found again by these values: a change here loses every stored measurement and policy.
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (SpecConfig(), "a2e5f3cde624"),
        (SpecConfig(drafter="draft", draft_length=4), "2dbbe5c90b39"),
        (SpecConfig(drafter="ngram", draft_length=8, ngram_min=2, ngram_max=5, accept_rule="block"), "2ae386d9349b"),
        (SpecConfig(drafter="draft", draft_length=6, stop_rule="confidence", stop_threshold=0.25), "f44d691c6257"),
    ],
)
def test_hashes_never_change(config: SpecConfig, expected: str) -> None:
    assert config.config_hash == expected


def test_equal_configs_have_one_hash_however_the_number_is_written() -> None:
    whole = SpecConfig(drafter="draft", draft_length=4, stop_rule="confidence", stop_threshold=1)
    real = SpecConfig(drafter="draft", draft_length=4, stop_rule="confidence", stop_threshold=1.0)
    assert whole == real
    assert whole.config_hash == real.config_hash
    assert json.dumps(SamplingParams(temperature=-0.0).to_json()) == json.dumps(
        SamplingParams(temperature=0).to_json()
    )


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(SpecConfig)])
def test_every_field_changes_the_hash(field: str) -> None:
    other: dict[str, Any] = {
        "drafter": "other",
        "draft_length": 5,
        "stop_rule": "heuristic",
        "stop_threshold": 0.5,
        "draft_length_start": 6,
        "accept_rule": "rejection",
        "ngram_min": 2,
        "ngram_max": 4,
        "tree_shape": "beam",
        "tree_width": 3,
        "tree_nodes": 9,
        "tree_paths": ((0,), (1,)),
        "entropy_form": "adaedl",
        "entropy_scale": 0.3,
        "adaptive_goal": 0.8,
        "exit_layer": 3,
        "combine": "merge",
        "suffix_factor": 2.0,
        "suffix_min_prob": 0.2,
        "suffix_depth": 8,
        "lookahead_window": 8,
        "lookahead_ngram": 4,
        "accept_threshold": 0.7,
        "accept_delta": 0.6,
        "accept_top": 10,
        "with_replacement": True,
        "draft_temperature": 0.0,
    }
    needed: dict[str, dict[str, Any]] = {  # with which a field has an effect
        "stop_threshold": {"stop_rule": "confidence"},
        "draft_length_start": {"stop_rule": "heuristic"},
        "tree_width": {"tree_shape": "beam"},
        "tree_nodes": {"tree_shape": "beam"},
        "tree_paths": {"tree_shape": "static", "tree_paths": ((0,),)},
        "entropy_form": {"stop_rule": "entropy"},
        "entropy_scale": {"stop_rule": "entropy", "entropy_form": "adaedl"},
        "adaptive_goal": {"stop_rule": "adaptive"},
        "combine": {"drafter": "a+b", "tree_shape": "trie"},
        "accept_threshold": {"accept_rule": "margin"},
        "accept_delta": {"accept_rule": "relaxed"},
        "accept_top": {"accept_rule": "relaxed"},
        "with_replacement": {"accept_rule": "traversal", "tree_shape": "static", "tree_paths": ((0,), (1,))},
    }
    base = SpecConfig(**{"drafter": "draft", "draft_length": 7, **needed.get(field, {})})
    assert dataclasses.replace(base, **{field: other[field]}).config_hash != base.config_hash


def test_knobs_without_effect_do_not_change_the_configuration() -> None:
    static = SpecConfig(drafter="draft", draft_length=4)
    assert SpecConfig(drafter="draft", draft_length=4, stop_threshold=0.9, draft_length_start=9) == static
    assert SpecConfig(drafter="draft", draft_length=4, combine="merge") == static
    off = SpecConfig(drafter="ngram", draft_length=0, stop_rule="confidence", accept_rule="block", ngram_max=5)
    assert off == SpecConfig()
    assert SpecConfig.from_json(off.to_json()) == off


@pytest.mark.parametrize(
    "values",
    [
        {"accept_rule": "block", "accept_threshold": 0.9, "accept_delta": 0.1, "accept_top": 9},
        {"accept_rule": "margin", "accept_delta": 0.9},
        {"accept_rule": "relaxed", "accept_threshold": 0.9},
        {"accept_rule": "multi_candidate", "with_replacement": True},  # a chain has no siblings
        {"accept_rule": "traversal", "with_replacement": True, "tree_shape": "beam"},  # which are not drawn
        {"accept_rule": "exact", "with_replacement": True, "tree_shape": "static", "tree_paths": ((0,), (1,))},
        {
            "accept_rule": "traversal",
            "with_replacement": True,
            "tree_shape": "static",
            "tree_paths": ((0,), (1,)),
            "draft_temperature": 0.0,  # a greedy drafter draws nothing
        },
    ],
)
def test_acceptance_knobs_without_effect_are_forgotten(values: dict[str, Any]) -> None:
    knobs = ("accept_threshold", "accept_delta", "accept_top", "with_replacement")
    without = {name: value for name, value in values.items() if name not in knobs}
    assert SpecConfig("draft", 4, **values) == SpecConfig("draft", 4, **without)


def test_the_drafter_samples_as_the_target_unless_told_otherwise() -> None:
    sampling = SamplingParams(temperature=0.8, top_p=0.9, top_k=5, seed=3)
    assert SpecConfig("draft", 4).draft_sampling(sampling) == sampling
    cold = SpecConfig("draft", 4, draft_temperature=0.25).draft_sampling(sampling)
    assert cold == dataclasses.replace(sampling, temperature=0.25)
    assert SpecConfig("draft", 4, draft_temperature=0).draft_sampling(sampling).is_greedy
    assert SpecConfig("draft", 4, draft_temperature=0.25).draft_sampling(SamplingParams()).is_greedy


def test_config_round_trips_through_json_text() -> None:
    config = SpecConfig("ngram", 7, "heuristic", 0.4, 2, "rejection", 2, 6)
    assert SpecConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_tree_paths_round_trip_through_json_text() -> None:
    config = SpecConfig("draft", 4, tree_shape="static", tree_paths=[[0], [1], [0, 1]])  # type: ignore[arg-type]
    assert config.tree_paths == ((0,), (1,), (0, 1))
    assert SpecConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert hash(config) == hash(SpecConfig.from_json(config.to_json()))


def test_tree_paths_can_be_written_as_text() -> None:
    config = SpecConfig("draft", 4, tree_shape="static", tree_paths="0 1 0.0 0.12")  # type: ignore[arg-type]
    assert config.tree_paths == ((0,), (1,), (0, 0), (0, 12))


def test_paths_longer_than_a_draft_are_cut_off() -> None:
    deep = SpecConfig("draft", 1, tree_shape="static", tree_paths=((0,), (1,), (0, 0)))
    assert deep == SpecConfig("draft", 1, tree_shape="static", tree_paths=((0,), (1,)))
    assert deep.config_hash == SpecConfig("draft", 1, tree_shape="static", tree_paths=((0,), (1,))).config_hash


def test_config_is_frozen_and_hashable() -> None:
    config = SpecConfig(drafter="draft", draft_length=4)
    assert {config: 1}[SpecConfig(drafter="draft", draft_length=4)] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.draft_length = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"draft_length": -1}, "draft_length"),
        ({"drafter": "draft", "draft_length": 65}, "draft_length"),
        ({"draft_length": 4}, "drafter"),
        ({"stop_rule": "sometimes"}, "stop_rule"),
        ({"stop_threshold": 1.01}, "stop_threshold"),
        ({"stop_threshold": float("nan")}, "stop_threshold"),
        ({"draft_length_start": 0}, "draft_length_start"),
        ({"accept_rule": "atypical"}, "accept_rule"),
        ({"accept_threshold": 1.1}, "accept_threshold"),
        ({"accept_delta": -0.1}, "accept_delta"),
        ({"accept_top": 0}, "accept_top"),
        ({"with_replacement": 1}, "with_replacement"),
        ({"draft_temperature": -0.5}, "draft_temperature"),
        ({"draft_temperature": float("inf")}, "draft_temperature"),
        ({"ngram_min": 0}, "ngram_min"),
        ({"ngram_min": 4, "ngram_max": 3}, "ngram_max"),
        ({"draft_length": 4.0}, "draft_length"),
        ({"draft_length": True}, "draft_length"),
        ({"drafter": None}, "drafter"),
        ({"stop_threshold": "0.4"}, "stop_threshold"),
        ({"tree_shape": "bush"}, "tree_shape"),
        ({"tree_width": 0}, "tree_width"),
        ({"tree_nodes": 513}, "tree_nodes"),
        ({"tree_paths": ((-1,),)}, "tree_paths"),
        ({"tree_paths": ((),)}, "tree_paths"),
        ({"tree_paths": 3}, "tree_paths"),
        ({"entropy_form": "shannon"}, "entropy_form"),
        ({"adaptive_goal": 1.5}, "adaptive_goal"),
        ({"tree_paths": "0 1 0.x"}, "tree_paths"),
        ({"combine": "vote"}, "combine"),
        ({"suffix_factor": -0.5}, "suffix_factor"),
        ({"suffix_min_prob": 1.5}, "suffix_min_prob"),
        ({"suffix_depth": 0}, "suffix_depth"),
        ({"suffix_depth": 65}, "suffix_depth"),
    ],
)
def test_impossible_config_is_refused_by_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SpecConfig(**values)
    assert len(caught.value.faults) == 1
    assert f"{named}" in caught.value.faults[0]


def test_all_config_faults_are_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        SpecConfig(draft_length=99, stop_rule="x", stop_threshold=2.0, accept_rule="y", ngram_min=5, ngram_max=1)
    faults = caught.value.faults
    assert [sum(name in fault for fault in faults) > 0 for name in ("99", "'x'", "2.0", "'y'", "5 and 1")] == [
        True
    ] * 5
    assert len(faults) == 6  # the sixth: a draft without a drafter


def test_all_type_faults_are_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        SpecConfig(drafter=1, draft_length="4", ngram_min=None)  # type: ignore[arg-type]
    assert len(caught.value.faults) == 3


@pytest.mark.parametrize("values", [{"gamma": 4}, {"draft_len": 4, "drafter": "draft"}])
def test_unknown_names_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="takes only"):
        SpecConfig.from_json(values)


@pytest.mark.parametrize("values", [None, 4, ["draft"], "draft"])
def test_what_is_not_a_mapping_is_refused(values: Any) -> None:
    with pytest.raises(ConfigError, match="mapping"):
        SpecConfig.from_json(values)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (SpecConfig(drafter="draft", draft_length=4), "draft x4 exact"),
        (
            SpecConfig(drafter="draft", draft_length=8, stop_rule="confidence", stop_threshold=0.25),
            "draft x8 confidence 0.25 exact",
        ),
        (SpecConfig(drafter="ngram", draft_length=6, accept_rule="block"), "ngram x6 n1-3 block"),
        (
            SpecConfig(drafter="draft", draft_length=9, stop_rule="heuristic", draft_length_start=3),
            "draft x9 heuristic from 3 exact",
        ),
        (SpecConfig("draft", 4, tree_shape="beam", tree_width=3, tree_nodes=20), "draft x4 beam 3/20 exact"),
        (SpecConfig("draft", 4, tree_shape="static", tree_paths=((0,), (1,))), "draft x4 static 2 exact"),
        (SpecConfig("draft", 4, stop_rule="entropy", stop_threshold=0.5), "draft x4 svip 0.50 exact"),
        (SpecConfig("draft", 4, stop_rule="cost_aware"), "draft x4 cost_aware exact"),
        (SpecConfig("lookahead", 4, lookahead_window=8), "lookahead x4 w8 n5 exact"),
        (SpecConfig("suffix", 4, suffix_factor=2, suffix_min_prob=0.25), "suffix x4 s24 2 0.25 exact"),
        (SpecConfig("ngram+draft", 4), "ngram+draft x4 fallback n1-3 exact"),
        (SpecConfig("a+b", 4, tree_shape="trie", combine="merge"), "a+b x4 merge trie 2/16 exact"),
        (
            SpecConfig("draft", 4, accept_rule="typical", accept_threshold=0.09, draft_temperature=0),
            "draft x4 typical 0.09 0.3 drawn at 0",
        ),
        (SpecConfig("draft", 4, accept_rule="relaxed", accept_top=10, accept_delta=0.6), "draft x4 relaxed 10 0.6"),
        (
            SpecConfig(
                "draft",
                4,
                accept_rule="traversal",
                with_replacement=True,
                tree_shape="static",
                tree_paths=((0,), (1,)),
            ),
            "draft x4 static 2 traversal replaced",
        ),
    ],
)
def test_short_form(config: SpecConfig, expected: str) -> None:
    assert config.short() == expected


def test_drafters_are_named_one_by_one() -> None:
    assert SpecConfig("a+b", 4).drafter_names == ("a", "b")
    assert SpecConfig("draft", 4).drafter_names == ("draft",)
    assert SpecConfig().drafter_names == ()


def test_sampling_is_greedy_only_at_temperature_zero() -> None:
    assert SamplingParams().is_greedy
    assert not SamplingParams(temperature=0.01).is_greedy


def test_sampling_round_trips_through_json_text() -> None:
    sampling = SamplingParams(temperature=0.8, top_p=0.95, top_k=40, seed=7)
    assert SamplingParams.from_json(json.loads(json.dumps(sampling.to_json()))) == sampling


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"seed": -1}, "seed"),
        ({"seed": 0.5}, "seed"),
    ],
)
def test_impossible_sampling_is_refused_by_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        SamplingParams(**values)


def test_all_sampling_faults_are_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        SamplingParams(temperature=-1.0, top_p=0.0, top_k=-1, seed=-1)
    assert len(caught.value.faults) == 4
