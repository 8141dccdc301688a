from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from autospec import clock
from autospec.clock import Clock
from autospec.errors import ConfigError


def test_time_does_not_run_backwards() -> None:
    watch = Clock("cpu")
    times = [watch.now() for _ in range(100)]
    assert times == sorted(times)


@pytest.mark.parametrize("device", ["cuda:1", torch.device("cuda", 1)])
def test_gpu_is_waited_for_before_the_time_is_read(
    device: torch.device | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def read() -> float:
        events.append("read")
        return 7.0

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append(f"wait for {device}"))
    monkeypatch.setattr(clock.time, "perf_counter", read)
    assert Clock(device).now() == 7.0
    assert events == ["wait for cuda:1", "read"]


def test_apple_gpu_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: events.append("wait"))
    Clock("mps").now()
    assert events == ["wait"]


@pytest.mark.parametrize("device", ["meta", "tpu:0", ""])
def test_device_that_cannot_be_waited_for_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match="cpu, cuda or mps"):
        Clock(device)


def test_cpu_clock_does_not_import_torch() -> None:
    program = "import sys; from autospec.clock import Clock; Clock('cpu').now(); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


@pytest.mark.gpu
def test_queued_work_is_in_the_measured_time() -> None:
    size = 8192
    matrix = torch.randn(size, size, device="cuda")
    watch = Clock("cuda")
    (matrix @ matrix).sum().item()
    start, done = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin = watch.now()
    start.record()
    for _ in range(20):
        matrix = matrix @ matrix / size
    done.record()
    seconds = watch.now() - begin
    assert done.query()
    assert seconds >= start.elapsed_time(done) / 1000
