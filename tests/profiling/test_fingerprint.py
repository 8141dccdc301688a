from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from autospec.errors import ConfigError
from autospec.profiling import (
    device_fingerprint,
    differences,
    fingerprint,
    fingerprint_hash,
    host_fingerprint,
)


def test_cpu_fingerprint_says_what_changes_speed() -> None:
    values = device_fingerprint("cpu", torch.float32)
    assert values["device_kind"] == "cpu"
    assert values["dtype"] == "float32"
    assert values["num_threads"] == torch.get_num_threads()
    assert values["torch_version"] == torch.__version__
    assert values["python_version"] == ".".join(map(str, sys.version_info[:3]))
    assert int(values["num_cores"]) >= 1
    assert int(values["memory_gib"]) >= 1
    assert "cuda_version" not in values


def test_fingerprint_is_named_and_ordered_for_people() -> None:
    assert list(device_fingerprint("cpu", "float32")) == [
        "device_kind",
        "device_name",
        "num_cores",
        "num_threads",
        "operating_system",
        "python_version",
        "torch_version",
        "transformers_version",
        "dtype",
        "memory_gib",
    ]


def test_fingerprint_is_plain_json_and_the_same_twice() -> None:
    values = device_fingerprint("cpu", "float32")
    assert json.loads(json.dumps(values)) == values
    assert {type(value) for value in values.values()} == {str, int}
    assert device_fingerprint(torch.device("cpu"), torch.float32) == values


def test_dtype_and_threads_are_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = device_fingerprint("cpu", torch.float32)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 17)
    after = device_fingerprint("cpu", torch.bfloat16)
    assert {line.partition(":")[0] for line in differences(before, after)} == {"dtype", "num_threads"}


# Profiles and measurements are keyed by this value.
def test_hash_is_pinned_and_ignores_order() -> None:
    values = {"device_kind": "cpu", "num_cores": 2}
    assert fingerprint_hash(values) == "d46c40fb4d733849"
    assert fingerprint_hash(dict(reversed(values.items()))) == "d46c40fb4d733849"
    assert fingerprint_hash({**values, "num_cores": 4}) != "d46c40fb4d733849"


def test_differences_are_readable_lines() -> None:
    before = {"device_name": "Small", "num_threads": 2, "dtype": "float32"}
    after = {"device_name": "Small", "num_threads": 4, "cuda_version": "13.0"}
    assert differences(before, after) == [
        "num_threads: 2 -> 4",
        "dtype: float32 -> absent",
        "cuda_version: absent -> 13.0",
    ]
    assert differences(before, dict(before)) == []


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name="Fake GPU", total_memory=24 * 1024**3 - 5_000_000)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.version, "cuda", "13.0")


@pytest.mark.usefixtures("fake_gpu")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", torch.device("cuda", 0)])
def test_gpu_fingerprint_has_driver_and_memory_of_the_device(
    device: torch.device | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlSystemGetDriverVersion=lambda: "580.65",
        nvmlShutdown=lambda: None,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    values = device_fingerprint(device, "bfloat16")
    assert values["device_name"] == "Fake GPU"
    assert values["memory_gib"] == 24
    assert (values["driver_version"], values["cuda_version"]) == ("580.65", "13.0")


@pytest.mark.usefixtures("fake_gpu")
def test_driver_without_its_library_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert device_fingerprint("cuda", "float16")["driver_version"] == "unknown"


@pytest.mark.usefixtures("fake_gpu")
def test_driver_that_does_not_answer_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        pass

    def refuse() -> None:
        raise NVMLError

    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(NVMLError=NVMLError, nvmlInit=refuse))
    assert device_fingerprint("cuda", "float16")["driver_version"] == "unknown"


@pytest.mark.usefixtures("fake_gpu")
def test_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="1 GPUs"):
        device_fingerprint("cuda:3", "float32")


@pytest.mark.parametrize("device", ["meta", "no such thing", "cuda:x"])
def test_other_devices_are_refused(device: str) -> None:
    with pytest.raises(ConfigError, match="cpu, cuda"):
        device_fingerprint(device, "float32")


def test_missing_apple_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="mps"):
        device_fingerprint("mps", "float32")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor : 0\nmodel name\t: Fast CPU @ 3 GHz\nmodel name\t: Other\n", "Fast CPU @ 3 GHz"),
        ("nothing\n", "arm"),
    ],
)
def test_processor_name(text: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    monkeypatch.setattr(fingerprint, "_CPU_INFO", file)
    monkeypatch.setattr(fingerprint.platform, "processor", lambda: "arm")
    assert device_fingerprint("cpu", "float32")["device_name"] == expected


def test_package_that_is_not_installed_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise fingerprint.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(fingerprint.importlib.metadata, "version", missing)
    assert device_fingerprint("cpu", "float32")["transformers_version"] == "absent"


def test_host_fingerprint_is_the_part_that_needs_no_torch() -> None:
    host = host_fingerprint()
    assert list(host) == ["device_kind", "device_name", "num_cores"]
    assert host.items() <= device_fingerprint("cpu", "float32").items()


def test_transformers_is_not_imported_and_torch_only_when_asked() -> None:
    program = (
        "import sys; from autospec.profiling import device_fingerprint, host_fingerprint; host_fingerprint();"
        "before = 'torch' in sys.modules;"
        "device_fingerprint('cpu', 'float32'); print(before, 'transformers' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False False"


@pytest.mark.gpu
def test_real_gpu_has_a_name_memory_and_driver() -> None:
    values = device_fingerprint("cuda", torch.bfloat16)
    assert values["device_name"] == torch.cuda.get_device_name()
    assert int(values["memory_gib"]) >= 1
    assert values["driver_version"] != "unknown"
    assert values["cuda_version"] == torch.version.cuda
