from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from autospec.cli.compose import compose_values
from autospec.cli.schema import ModelSettings, typed
from autospec.cli.tune import TuneSettings
from autospec.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Inner:
    low: int = 1
    high: int = 2

    def __post_init__(self) -> None:
        faults = [f"`{name} >= 0` must hold" for name in ("low", "high") if getattr(self, name) < 0]
        if faults:
            raise ConfigError(faults)


@dataclass(frozen=True, slots=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    count: int = 3
    share: float = 0.5
    name: str | None = None
    words: tuple[str, ...] = ()
    table: dict[str, str | None] = field(default_factory=dict)
    mode: Literal["fast", "slow"] = "fast"
    flag: bool = False
    anything: Any = None


@dataclass(frozen=True, slots=True)
class Placed:
    path: str | Path
    size: int = 1

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"`size >= 1` must hold, but got {self.size}")


def test_right_values_make_the_dataclass() -> None:
    faults: list[str] = []
    values = {
        "inner": {"low": 5},
        "count": 4,
        "share": 1,
        "name": "x",
        "words": ["a", "b"],
        "table": {"a": None, "b": "c"},
        "mode": "slow",
        "flag": True,
        "anything": [1],
    }
    made = typed(Outer, values, faults)
    assert faults == []
    assert made == Outer(Inner(5), 4, 1.0, "x", ("a", "b"), {"a": None, "b": "c"}, "slow", True, [1])
    assert isinstance(made.share, float)


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("count", "abc", "`count` must be an integer, but got 'abc'"),
        ("count", True, "`count` must be an integer, but got True"),
        ("count", 1.0, "`count` must be an integer, but got 1.0"),
        ("share", "1", "`share` must be a finite number, but got '1'"),
        ("share", float("nan"), "`share` must be a finite number, but got nan"),
        ("name", 3, "`name` must be text or null, but got 3"),
        ("words", "a", "`words` must be a list such as [a,b], but got 'a'"),
        ("words", ["a", 1], "`words` must be a list such as [a,b], but got ['a', 1]"),
        ("table", {"a": 1}, "`table` must be a table such as {name:value}, but got {'a': 1}"),
        ("mode", "fsat", "`mode` must be one of ['fast', 'slow'], but got 'fsat'; did you mean `fast`?"),
        ("flag", "yes", "`flag` must be true or false, but got 'yes'"),
        ("inner", 3, "`inner` must be a table with ['low', 'high'], but got 3"),
        ("counts", 3, "there is no setting `counts`; did you mean `count`?"),
    ],
)
def test_a_wrong_value_is_a_fault_and_its_default_stays(name: str, value: Any, fault: str) -> None:
    faults: list[str] = []
    assert typed(Outer, {name: value, "anything": "kept"}, faults) == Outer(anything="kept")
    assert faults == [fault]


def test_ranges_are_reported_with_their_section_and_only_the_broken_values_fall_back() -> None:
    faults: list[str] = []
    made = typed(Outer, {"inner": {"low": -1, "high": 9}, "count": "x"}, faults)
    assert faults == ["`inner`: `low >= 0` must hold", "`count` must be an integer, but got 'x'"]
    assert made == Outer(Inner(high=9))


def test_several_broken_ranges_are_all_reported() -> None:
    faults: list[str] = []
    assert typed(Inner, {"low": -1, "high": -2}, faults) == Inner()
    assert len(faults) == 2


def test_what_has_no_default_is_kept_beside_a_broken_range() -> None:
    faults: list[str] = []
    assert typed(Placed, {"path": "p", "size": 0}, faults) == Placed("p")
    assert faults == ["`size >= 1` must hold, but got 0"]


def test_a_missing_value_without_default_gives_nothing() -> None:
    faults: list[str] = []
    assert typed(Placed, {"size": 2}, faults) is None


def test_drafters_set_to_null_are_none() -> None:
    assert ModelSettings(drafters={"a": "x", "b": None}).named_drafters == {"a": "x"}


@pytest.mark.parametrize("override", ["study=default", "study=quick", "workload=pocket_sampled", "experiment=smoke"])
def test_shipped_configurations_fit_the_settings(override: str) -> None:
    faults: list[str] = []
    settings = typed(TuneSettings, compose_values("tune", [override]).values, faults)
    assert faults == []
    assert settings is not None
    assert settings.workload is not None


def test_the_settings_cover_every_name_of_the_shipped_configuration() -> None:
    values = compose_values("tune", []).values
    faults: list[str] = []
    settings = typed(TuneSettings, values, faults)
    assert settings is not None
    assert set(values["study"]) == set(settings.study.to_json())
