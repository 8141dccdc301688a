from __future__ import annotations

import inspect
import re

import pytest

import autospec

# What users may rely on from the first release: nothing may be taken away, and what is added is added on purpose.
PUBLIC = {
    "AutospecError",
    "HardwareProfile",
    "Policy",
    "ProfileSettings",
    "SamplingParams",
    "SearchSpace",
    "SpecConfig",
    "SpeculativeDecoder",
    "StudySettings",
    "Workload",
    "WorkloadSource",
    "load_policy",
    "load_profile",
    "load_workload",
    "profile",
    "tune",
}


def test_the_public_names_are_these() -> None:
    assert set(autospec.__all__) == PUBLIC
    assert autospec.__all__ == sorted(autospec.__all__)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert inspect.getdoc(getattr(autospec, name))
    assert name in dir(autospec)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        autospec.no_such_name  # noqa: B018


def test_the_version_is_one() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", autospec.__version__)


def _parameters(function: object) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]  # type: ignore[arg-type]


def test_the_signatures_of_the_public_contract() -> None:
    decoder = autospec.SpeculativeDecoder
    assert _parameters(decoder.from_pretrained) == [
        "target", "drafters", "tokenizer", "device", "dtype", "revision", "trust_remote_code", "compile",
        "allow_import",
    ]  # fmt: skip
    assert _parameters(decoder.generate) == [
        "prompts", "config", "sampling", "max_new_tokens", "stop", "ignore_eos", "category", "batch_size",
    ]  # fmt: skip
    assert _parameters(decoder.stream) == ["prompt", *_parameters(decoder.generate)[1:-1]]
    assert _parameters(autospec.load_policy) == ["path", "strict"]
    assert _parameters(autospec.Policy.choose) == ["batch_size", "context_length", "category"]
    assert _parameters(autospec.Policy.decoder) == [
        "device",
        "drafters",
        "allow_import",
        "trust_remote_code",
        "compile",
    ]
    assert _parameters(autospec.SearchSpace.load) == ["path", "drafters"]
    assert _parameters(autospec.tune) == [
        "decoder", "workload", "space", "output_dir", "settings", "tracker", "on_event", "command",
        "hardware", "threads",
    ]  # fmt: skip
    assert _parameters(autospec.profile) == ["decoder", "workload", "settings", "on_progress", "watch", "threads"]
    assert _parameters(autospec.load_profile) == ["path"]
    assert _parameters(autospec.load_workload) == ["source", "count_tokens"]
    assert _parameters(autospec.WorkloadSource)[0] == "path"
    assert _parameters(autospec.SamplingParams) == ["temperature", "top_p", "top_k", "seed"]
