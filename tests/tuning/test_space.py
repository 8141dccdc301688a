from __future__ import annotations

from pathlib import Path

import numpy as np
import optuna
import pytest

from autospec.config import SamplingParams, SpecConfig
from autospec.errors import ConfigError
from autospec.tuning.knobs import Choices, Condition, Constraint, Knob, Range
from autospec.tuning.space import SearchSpace

GREEDY, SAMPLING = SamplingParams(), SamplingParams(temperature=0.8)
DRAFTER = Knob("drafter", Choices(("draft", "ngram")))
LENGTH = Knob("draft_length", Range(1, 4, 1, False, True))
NGRAM_MAX = Knob("ngram_max", Range(1, 3, 1, False, True), (Condition("drafter", ("ngram",)),))


def fixed(**params: object) -> optuna.trial.FixedTrial:
    return optuna.trial.FixedTrial(params)


def test_a_knob_that_does_not_apply_keeps_its_default():
    space = SearchSpace([DRAFTER, LENGTH, NGRAM_MAX])
    assert space.suggest(fixed(drafter="draft", draft_length=3, ngram_max=2)) == SpecConfig("draft", 3)
    assert space.suggest(fixed(drafter="ngram", draft_length=3, ngram_max=2)) == SpecConfig("ngram", 3, ngram_max=2)


def test_size_counts_distinct_configurations():
    # 4 lengths for the draft; 4 lengths x 3 n-gram sizes for the other
    assert SearchSpace([DRAFTER, LENGTH, NGRAM_MAX]).size() == 16
    assert SearchSpace([DRAFTER, LENGTH, NGRAM_MAX], [Constraint("ngram_max <= draft_length")]).size() == 4 + 9
    off = Knob("draft_length", Range(0, 4, 1, False, True))
    assert SearchSpace([DRAFTER, off, NGRAM_MAX]).size() == 17  # length 0 is one configuration, whoever drafts


def test_a_space_too_large_to_count_is_not_counted():
    knobs = [DRAFTER, *(Knob(name, Range(1, 40, 1, False, True)) for name in ("draft_length", "tree_width"))]
    assert SearchSpace(knobs).size() == 2 * 40  # the width has no effect on chains
    assert SearchSpace([*knobs, Knob("tree_nodes", Range(1, 40, 1, False, True))]).size() is None


def test_size_of_a_float_is_counted_by_its_step_and_unknown_without_one():
    rule = Knob("stop_rule", Choices(("confidence",)))
    stepped = Knob("stop_threshold", Range(0.1, 0.9, 0.2, False, False))
    continuous = Knob("stop_threshold", Range(0.1, 0.9, None, False, False))
    assert SearchSpace([DRAFTER, LENGTH, rule, stepped]).size() == 2 * 4 * 5
    assert SearchSpace([DRAFTER, LENGTH, rule, continuous]).size() is None


def test_a_broken_constraint_is_refused():
    space = SearchSpace([DRAFTER, LENGTH], [Constraint("not (drafter == 'ngram' and draft_length > 2)")])
    with pytest.raises(ConfigError, match="draft_length > 2"):
        space.suggest(fixed(drafter="ngram", draft_length=3))
    assert not space.contains(SpecConfig("ngram", 3))
    assert space.contains(SpecConfig("draft", 3))


def test_constraints_that_leave_nothing_are_refused():
    with pytest.raises(ConfigError, match="must leave something"):
        SearchSpace([DRAFTER, LENGTH], [Constraint("draft_length > 9")], "my.yaml")


def test_a_file_that_leaves_nothing_names_line_and_key(tmp_path: Path):
    path = tmp_path / "my.yaml"
    knobs = "knobs:\n  drafter: {choices: [draft]}\n  draft_length: {range: [1, 4]}\n"
    path.write_text(knobs + "constraints:\n  - draft_length > 9\n")
    with pytest.raises(ConfigError) as caught:
        SearchSpace.load(path)
    rule = "constraints must leave something to try, but ['draft_length > 9'] do not"
    assert caught.value.faults == [f"{path}:5: `constraints`: {rule}"]


def test_without_constraints_the_knobs_are_at_fault():
    shape = Knob("tree_shape", Choices(("static",)))
    with pytest.raises(ConfigError, match=r"^`knobs`: knobs must leave something to try, but .*needs `tree_paths`"):
        SearchSpace([DRAFTER, LENGTH, shape])


def test_a_drafter_that_is_not_there_names_line_and_key(tmp_path: Path):
    path = tmp_path / "my.yaml"
    path.write_text("knobs:\n  drafter:\n    choices: [draft, ngrm]\n  draft_length: {range: [1, 4]}\n")
    with pytest.raises(ConfigError) as caught:
        SearchSpace.load(path).check(["draft", "ngram"])
    rule = "must name drafters of the decoder ['draft', 'ngram'], but got 'ngrm'; did you mean `ngram`?"
    assert caught.value.faults == [f"{path}:3: `knobs.drafter.choices`: {rule}"]
    with pytest.raises(ConfigError) as loading:
        SearchSpace.load(path, ["draft", "ngram"])
    assert loading.value.faults == caught.value.faults


def test_lines_make_no_difference_between_spaces(tmp_path: Path):
    assert Knob("draft_length", Choices((1,)), line=3) == Knob("draft_length", Choices((1,)), line=9)


def test_params_come_back_to_the_same_configuration():
    space = SearchSpace.load("chain").under(SAMPLING)
    rng = np.random.default_rng(0)
    for _ in range(100):
        params = space.draw(rng)
        assert params is not None
        config = space.config(params)
        assert space.to_params(config) == params


def test_a_configuration_outside_the_space_has_no_params():
    space = SearchSpace([DRAFTER, LENGTH, NGRAM_MAX])
    assert space.to_params(SpecConfig("draft", 5)) is None
    assert space.to_params(SpecConfig("draft", 3, stop_rule="heuristic")) is None  # a field that is no knob
    assert space.to_params(SpecConfig()) is None


def test_grid_floats_are_equal_however_they_were_computed():
    knob = Knob("stop_threshold", Range(0.1, 0.9, 0.1, False, False))
    space = SearchSpace([DRAFTER, LENGTH, Knob("stop_rule", Choices(("confidence",))), knob])
    summed = space.config(
        {"drafter": "draft", "draft_length": 2, "stop_rule": "confidence", "stop_threshold": 0.1 + 0.2}
    )
    assert summed == SpecConfig("draft", 2, stop_rule="confidence", stop_threshold=0.3)


def test_under_greedy_decoding_the_acceptance_rule_is_pinned():
    space = SearchSpace.load("chain")
    assert "accept_rule" not in space.under(GREEDY).distributions
    assert not space.under(GREEDY).contains(SpecConfig("draft", 4, accept_rule="block"))
    assert space.under(SAMPLING).contains(SpecConfig("draft", 4, accept_rule="block"))
    assert space.under(SAMPLING).size() == 3 * (space.under(GREEDY).size() or 0)


def test_chain_holds_what_it_says():
    space = SearchSpace.load("chain").under(GREEDY)
    # draft: 16 static + 16 x 17 confidence + (15 + 13 + 9) heuristic; ngram: (16 + 37) x 14 pairs of sizes
    assert space.size() == 16 + 272 + 37 + 53 * 14
    assert space.contains(SpecConfig("draft", 4))
    assert space.contains(SpecConfig("draft", 5, stop_rule="confidence", stop_threshold=0.4))
    assert space.contains(SpecConfig("ngram", 10))
    assert not space.contains(SpecConfig("ngram", 10, stop_rule="confidence", stop_threshold=0.4))


@pytest.mark.parametrize("name", ["chain", "smoke", "tree", "drafters", "full"])
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLING])
def test_every_shipped_space_gives_valid_configurations(name: str, sampling: SamplingParams):
    space = SearchSpace.load(name).under(sampling)
    rng = np.random.default_rng(1)
    configs = {space.config(params) for params in (space.draw(rng) for _ in range(50)) if params is not None}
    assert len(configs) > 3
    assert all(space.contains(config) for config in configs)


def test_unseen_is_over_when_all_were_seen():
    space = SearchSpace([DRAFTER, LENGTH])
    seen = {SpecConfig(name, length) for name in ("draft", "ngram") for length in (1, 2, 3, 4)}
    assert space.unseen(seen) is False
    assert space.unseen(list(seen)[1:]) is True


def test_a_drafter_the_decoder_has_not_is_refused_with_a_hint():
    space = SearchSpace.load("chain")
    space.check(["draft", "ngram", "other"])
    with pytest.raises(ConfigError, match=r"'draft'; did you mean `draft_model`") as caught:
        space.check(["draft_model"])
    assert len(caught.value.faults) == 2


def test_every_drafter_of_a_combination_must_be_there():
    space = SearchSpace([Knob("drafter", Choices(("draft", "ngram+draft", "ngram+suffix")))])
    space.check(["draft", "ngram", "suffix"])
    with pytest.raises(ConfigError, match="but got 'suffix'") as caught:
        space.check(["draft", "ngram"])
    assert len(caught.value.faults) == 1


def test_the_hash_ignores_comments_and_sees_values(tmp_path: Path):
    text = "knobs:\n  drafter: {choices: [draft]}\n  draft_length: {range: [1, 4]}\n"
    paths = []
    for name, content in {"a": text, "b": "# a comment\n" + text, "c": text.replace("4", "5")}.items():
        paths.append(tmp_path / f"{name}.yaml")
        paths[-1].write_text(content)
    first, second, third = (SearchSpace.load(path).content_hash for path in paths)
    assert first == second != third


def test_an_unknown_name_lists_what_ships():
    with pytest.raises(
        ConfigError, match=r"\['chain', 'drafters', 'full', 'lossy', 'smoke', 'tree'\].*did you mean `chain`"
    ):
        SearchSpace.load("chian")


def test_a_file_that_is_no_text_is_a_config_error(tmp_path: Path):
    path = tmp_path / "space.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="readable"):
        SearchSpace.load(path)


def test_optuna_can_fill_every_knob():
    space = SearchSpace.load("chain").under(SAMPLING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    good = 0
    for _ in range(60):
        trial = study.ask()
        try:
            config = space.suggest(trial)
        except ConfigError:
            continue
        good += 1
        assert space.config(trial.params) == config
        assert space.contains(config)
    assert good > 20


def test_a_space_with_lossy_rules_is_refused_by_their_names() -> None:
    space = SearchSpace([DRAFTER, LENGTH, Knob("accept_rule", Choices(("exact", "typical")))])
    with pytest.raises(ConfigError, match=r"but \['typical'\] are lossy .*ACCEPT_RULES") as caught:
        space.check(["draft", "ngram"])
    assert len(caught.value.faults) == 1
    space.check(["draft", "ngram"], allow_lossy=True)
