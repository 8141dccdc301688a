from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from autospec.cli import build, main
from autospec.cli.faults import Faults
from autospec.cli.schema import ModelSettings
from autospec.config import SpecConfig
from autospec.errors import ConfigError, ModelError, WorkloadError
from autospec.rules import DRAFTER_KINDS
from autospec.workloads import WorkloadSource


def test_every_kind_of_drafter_has_a_maker() -> None:
    from autospec.engine.loading import MAKERS

    assert set(DRAFTER_KINDS) == set(MAKERS)


def test_the_embedded_workload_goes_by_its_name() -> None:
    workload = build.read_workload(WorkloadSource("pocket/workload", name="pocket", max_prompts_per_category=1))
    assert workload.categories == ("complete", "docs", "edit")
    assert len(workload.tune) == len(workload.held_out) == 3


def test_a_home_folder_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    rows = [f'{{"prompt": "prompt {index}"}}' for index in range(4)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    assert build.read_workload(WorkloadSource("~/prompts.jsonl")).name == "prompts"


@pytest.mark.parametrize(
    ("value", "config"),
    [
        ("off", SpecConfig()),
        (False, SpecConfig()),
        (None, SpecConfig()),
        ({"drafter": "draft", "draft_length": 4}, SpecConfig(drafter="draft", draft_length=4)),
    ],
)
def test_configurations_as_written(value: Any, config: SpecConfig) -> None:
    assert build.spec_config(value) == config


@pytest.mark.parametrize("value", ["on", 3, [], {"draft_lenght": 4}])
def test_what_is_no_configuration_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError):
        build.spec_config(value)


def test_the_embedded_model_is_that_of_the_configuration() -> None:
    model = build.embedded_model("bench")
    assert model.target == "pocket/target"
    built_in = {name: name for name in ("ngram", "suffix", "recycling", "early_exit", "lookahead")}
    assert model.named_drafters == {"draft": "pocket/draft", **built_in}


def test_every_model_that_is_missing_is_a_fault() -> None:
    faults = Faults()
    drafters: dict[str, str | None] = {"a": "/no/where", "b": "ngram", "c": None, "d": "pocket/drft"}
    drafters |= {"e": "datastore:/no/where", "f": "suffix:/no/where.jsonl", "g": f"suffix:{__file__}", "h": "suffix"}
    build.check_models(ModelSettings(target="./no", drafters=drafters, tokenizer="~/no/tokenizer"), faults)
    assert [fault.split(":")[0] for fault in faults.found] == [
        "`model.drafters.e`",
        "`model.drafters.f`",
        "`model.target`",
        "`model.tokenizer`",
        "`model.drafters.a`",
        "`model.drafters.d`",
    ]


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from autospec.engine import location

    asked = []

    def locate(source: str) -> str:
        asked.append(source)
        raise ModelError(f"{source} cannot be reached")

    monkeypatch.setattr(location, "locate", locate)
    faults = Faults()
    build.check_models(ModelSettings(target="org/a", drafters={"x": "org/b", "y": "./path"}), faults)
    assert asked == ["org/a", "./path"]
    assert len(faults.found) == 2


@pytest.mark.parametrize("compile", [True, False])
def test_models_are_compiled_where_that_is_asked(monkeypatch: pytest.MonkeyPatch, compile: bool) -> None:
    from autospec.engine.decoder import SpeculativeDecoder

    monkeypatch.setattr(SpeculativeDecoder, "from_pretrained", lambda **options: options)
    options: Any = build.load_decoder(ModelSettings(target="pocket/target", compile=compile))
    assert options["compile"] is compile


def test_compiling_on_a_device_that_is_not_there_is_a_fault_of_the_device() -> None:
    faults = Faults()
    build.check_models(ModelSettings(target="pocket/target", device="nowhere", compile=True), faults)
    (fault,) = faults.found
    assert fault.startswith("`model.device`: ")


def test_compiling_for_a_cpu_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    faults = Faults()
    for compile, device in ((True, "cpu"), (True, "meta"), (False, "cpu")):  # a GPU brings one of its own
        build.check_models(ModelSettings(target="pocket/target", device=device, compile=compile), faults)
    assert faults.found == [
        "`model.compile`: compiling for a CPU needs a C++ compiler, but `no-such-compiler` is not there "
        "(CXX names another)"
    ]
    monkeypatch.setenv("CXX", sys.executable)
    build.check_models(ModelSettings(target="pocket/target", device="cpu", compile=True), there := Faults())
    assert there.found == []


def test_every_drafter_of_a_combination_must_be_known() -> None:
    faults, model = Faults(), ModelSettings(target="t", drafters={"draft": "d", "ngram": "ngram"})
    build.check_configs([SpecConfig("ngram+draft", 4), SpecConfig("ngram+darft", 4)], model, faults)
    assert faults.found == [
        "`drafter` must be one of ['draft', 'ngram'], but got 'darft'; did you mean `draft`?",
    ]


def test_an_output_root_is_checked_without_being_made(tmp_path: Path) -> None:
    root = build.checked_root(str(tmp_path / "a" / "b"))
    assert root == tmp_path / "a" / "b"
    assert list(tmp_path.iterdir()) == []


def test_an_output_root_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        build.checked_root(str(tmp_path / "file" / "below"))


def test_faults_are_kept_in_order_and_each_once() -> None:
    faults = Faults(["first"])

    def refuse(error: Exception) -> Any:
        raise error

    assert faults.attempt(lambda: 3) == 3
    assert faults.attempt(lambda: refuse(ConfigError(["a", "b"])), "where") is None
    assert faults.attempt(lambda: refuse(WorkloadError("c"))) is None
    assert faults.attempt(lambda: refuse(WorkloadError("c"))) is None
    with pytest.raises(ConfigError) as caught:
        faults.raise_if_any()
    assert caught.value.faults == ["first", "`where`: a", "`where`: b", "c"]


def test_no_faults_raise_nothing() -> None:
    faults = Faults()
    assert faults.attempt(lambda: 3) == 3
    faults.raise_if_any()
    assert faults.found == []


def test_errors_of_the_machine_are_not_taken_for_faults() -> None:
    with pytest.raises(ZeroDivisionError):
        Faults().attempt(lambda: 1 // 0)


@pytest.mark.parametrize("command", ["generate", "bench"])
def test_settings_of_a_model_need_its_target(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["prompt=x"] if command == "generate" else ["configs=[{drafter:own}]"]
    assert main([command, "model.drafters.own=ngram", *words]) == 2
    assert "`model.target` must be given where settings of `model` are" in capsys.readouterr().err
