"""Says what a measurement was made on: device, threads, memory, versions, dtype.

A speedup holds for one fingerprint. Only things that change speed are in it; nothing that differs between two boots of
one machine, no host name, no user. Measures nothing; torch is imported inside the functions, transformers never.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from autospec.errors import ConfigError

if TYPE_CHECKING:
    import torch


_GIB = 1024**3
_CPU_INFO = Path("/proc/cpuinfo")


def device_fingerprint(device: torch.device | str, dtype: torch.dtype | str) -> dict[str, str | int]:
    """Describe a device and the software on it.

    Args:
        device: Such as `cpu`, `cuda:0`, `mps` or a `torch.device`.
        dtype: Such as `float32` or a `torch.dtype`.

    Returns:
        Names to JSON values. `num_cores` are those this process may use, `num_threads` those torch uses,
        `memory_gib` is the device's, rounded, `driver_version` and `cuda_version` are there for CUDA only.

    Raises:
        ConfigError: The device is of another kind or not in this machine.
    """
    import torch

    device = _available(device)
    values: dict[str, str | int] = {
        **host_fingerprint(),
        "device_kind": device.type,
        "num_threads": torch.get_num_threads(),
        "operating_system": f"{platform.system()} {platform.machine()}",
        "python_version": platform.python_version(),
        "torch_version": str(torch.__version__),
        "transformers_version": _version("transformers"),
        "dtype": str(dtype).removeprefix("torch."),
    }
    return {**values, **(_cuda_values(device) if device.type == "cuda" else {"memory_gib": _host_memory_gib()})}


def host_fingerprint() -> dict[str, str | int]:
    """Describe the processor alone, without importing torch: what loading a policy compares at once."""
    return {"device_kind": "cpu", "device_name": _processor_name(), "num_cores": _num_cores()}


def fingerprint_hash(fingerprint: Mapping[str, str | int]) -> str:
    """Return sixteen hexadecimal digits that change when any entry does, whatever the order of entries."""
    text = json.dumps(dict(fingerprint), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(before: Mapping[str, str | int], after: Mapping[str, str | int]) -> list[str]:
    """Return one line for each entry that is not the same, such as ``num_threads: 2 -> 4``."""
    names = [*before, *(name for name in after if name not in before)]
    return [
        f"{name}: {before.get(name, 'absent')} -> {after.get(name, 'absent')}"
        for name in names
        if before.get(name) != after.get(name)
    ]


def _available(device: torch.device | str) -> torch.device:
    """Return the device, or refuse one that cannot be used here."""
    import torch

    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"a device must be cpu, cuda, cuda:<number> or mps, but got {device!r}") from error
    if found.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"a device must be cpu, cuda, cuda:<number> or mps, but got {device!r}")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"a device must be there, but {str(found)!r} is none of {torch.cuda.device_count()} GPUs")
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"a device must be there, but {str(found)!r} is not")
    return found


def _cuda_values(device: torch.device) -> dict[str, str | int]:
    import torch

    properties = torch.cuda.get_device_properties(device)
    return {
        "device_name": properties.name,
        "memory_gib": round(properties.total_memory / _GIB),
        "driver_version": _driver_version(),
        "cuda_version": str(torch.version.cuda or torch.version.hip),
    }


def _driver_version() -> str:
    """Ask NVML; `unknown` where the library or the driver's part of it is missing (AMD devices, some containers)."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except ImportError:
        return "unknown"
    except pynvml.NVMLError:
        return "unknown"
    try:
        return str(pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()


def _processor_name() -> str:
    """Return the processor's name; the platform module has none on Linux."""
    lines = _CPU_INFO.read_text(errors="replace").splitlines() if _CPU_INFO.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next((name for name in names if name), "") or platform.processor() or platform.machine()


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _host_memory_gib() -> int:
    import psutil

    return round(psutil.virtual_memory().total / _GIB)


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
