from __future__ import annotations

from pathlib import Path

import pytest

from autospec.errors import ConfigError
from autospec.tuning.space_file import read_space

BASE = "knobs:\n  drafter: {choices: [draft]}\n  draft_length: {range: [1, 4]}\n"


def faults_of(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_space(Path("my.yaml"), text)
    return caught.value.faults


def test_reads_knobs_in_order_with_conditions_and_constraints():
    knobs, constraints = read_space(
        Path("my.yaml"),
        BASE + "  stop_rule: {choices: [static, heuristic]}\n"
        "  draft_length_start: {choices: [2], when: {stop_rule: heuristic}}\n"
        "constraints: [draft_length_start <= draft_length]\n",
    )
    assert [knob.name for knob in knobs] == ["drafter", "draft_length", "stop_rule", "draft_length_start"]
    assert knobs[3].conditions[0].values == ("heuristic",)
    assert constraints[0].knobs == ("draft_length_start", "draft_length")


@pytest.mark.parametrize(
    ("extra", "fault"),
    [
        ("  draft_lenght: {range: [1, 2]}\n", "my.yaml:4: `knobs.draft_lenght`: * did you mean `draft_length`?"),
        ("  ngram_min: {range: [3, 2]}\n", "my.yaml:4: `knobs.ngram_min.range`: `low <= high` must hold*[3, 2]*"),
        ("  ngram_min: {range: [1.5, 2]}\n", "my.yaml:4: `knobs.ngram_min.range`: * of type int*"),
        ("  ngram_min: {range: [0, 2]}\n", "my.yaml:4: `knobs.ngram_min.range`: *1 <= ngram_min*"),
        ("  stop_threshold: {range: [0.0, 2.0]}\n", "my.yaml:4: `knobs.stop_threshold.range`: *stop_threshold <= 1*"),
        ("  stop_threshold: {range: [0.1, 0.9], step: 0.3}\n", "my.yaml:4: `knobs.stop_threshold.step`: *divide*"),
        ("  stop_threshold: {range: [0.0, 0.9], log: true}\n", "my.yaml:4: `knobs.stop_threshold.log`: *low > 0*"),
        ("  stop_threshold: {range: [0.1, 0.9], log: yes it is}\n", "my.yaml:4: *.log`: must be true or false*"),
        ("  ngram_min: {choices: []}\n", "my.yaml:4: `knobs.ngram_min.choices`: *at least one value*"),
        ("  ngram_min: {choices: [1, 1]}\n", "my.yaml:4: `knobs.ngram_min.choices`: *repeat*"),
        ("  ngram_min: {choices: [1], range: [1, 2]}\n", "my.yaml:4: `knobs.ngram_min`: *either*"),
        ("  ngram_min: 3\n", "my.yaml:4: `knobs.ngram_min`: must be a table*"),
        ("  ngram_min:\n    range: [1, 2]\n    stepp: 1\n", "my.yaml:6: `knobs.ngram_min.stepp`: *`step`?"),
        (
            "  stop_rule: {choices: [confidense]}\n",
            "my.yaml:4: `knobs.stop_rule.choices`: *did you mean `confidence`?",
        ),
        ("  stop_rule: {range: [1, 2]}\n", "my.yaml:4: `knobs.stop_rule.range`: *numeric*"),
        ("  ngram_min: {range: [1, 2], when: {draftr: draft}}\n", "my.yaml:4: *draftr`: *did you mean `drafter`?"),
        ("  ngram_min: {range: [1, 2], when: {ngram_max: 2}}\n  ngram_max: {range: [2, 3]}\n", "*comes later*"),
        ("  ngram_min: {range: [1, 2], when: {drafter: draf}}\n", "my.yaml:4: *can take*did you mean `draft`?"),
        ("  ngram_min: {range: [1, 2], when: {draft_length: 9}}\n", "my.yaml:4: *can take*9*"),
        ("  draft_length: {range: [1, 3]}\n", "my.yaml:4: `knobs.draft_length`: may appear once*"),
        ("constraints:\n  - draft_lengt < 3\n", "my.yaml:5: `constraints[0]`: *did you mean `draft_length`?"),
        ("constraints:\n  - __import__('os')\n", "my.yaml:5: `constraints[0]`: *Call*"),
        ("constraints:\n  - draft_length <\n", "my.yaml:5: `constraints[0]`: *expression*"),
        ("constraints:\n  - 1 < 2\n", "my.yaml:5: `constraints[0]`: *speak of a knob*"),
        ("constraints:\n  - drafter < 2\n", "my.yaml:5: `constraints[0]`: *like with like*"),
        ("constraints: 3\n", "my.yaml:4: `constraints`: must be a list*"),
        ("constrains: []\n", "my.yaml:4: `constrains`: *did you mean `constraints`?"),
    ],
)
def test_a_fault_names_file_line_and_key(extra: str, fault: str):
    import fnmatch

    faults = faults_of(BASE + extra)
    assert len(faults) == 1, faults
    assert fnmatch.fnmatchcase(faults[0], fault.replace("[", "[[]")), faults[0]


def test_all_faults_come_at_once_in_the_order_of_lines():
    faults = faults_of(BASE + "  ngram_min: {range: [3, 2]}\n  ngram_max: {choices: []}\nextra: 1\n")
    assert [fault.split(":")[1] for fault in faults] == ["4", "5", "6"]


def test_without_drafter_or_length_speculation_would_stay_off():
    assert "['drafter']" in faults_of("knobs:\n  draft_length: {range: [1, 4]}\n")[0]


@pytest.mark.parametrize("text", ["", "# nothing\n"])
def test_an_empty_file_is_a_fault(text: str):
    assert "empty" in faults_of(text)[0]


def test_broken_yaml_names_the_line():
    assert faults_of("knobs:\n  drafter: {choices: [draft\n")[0].startswith("my.yaml:3:")


def test_a_file_that_is_no_table_is_a_fault():
    assert "must be a table" in faults_of("- 1\n")[0]


def test_plain_yaml_only():
    assert "python/object" in faults_of(BASE + "  ngram_min: {choices: [!!python/object:os.x 1]}\n")[0]
