"""What differs between where a policy was made and where it is loaded: the device and the model files.

Speaks about things that change speed or output; never about library versions, which `device` in the policy records.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from autospec.errors import ConfigError
from autospec.profiling import fingerprint
from autospec.rules import split_source
from autospec.sources import ModelSource, model_digest, resolve_source

Device = Mapping[str, str | int | float]


def device_differences(device: Device) -> list[str]:
    """Return a sentence for each way in which this machine is not the one the policy was measured on.

    A processor is looked at without importing torch; for an accelerator torch is asked.
    """
    kind = str(device.get("device_kind", "cpu"))
    if kind == "cpu":
        here: Device = fingerprint.host_fingerprint()
    else:
        try:
            here = fingerprint.device_fingerprint(kind, str(device.get("dtype", "")))
        except ConfigError:
            return [f"the policy was measured on {kind} ({device.get('device_name')}), which this machine has not"]
    names = ("device_name", "num_cores") if kind == "cpu" else ("device_name",)
    return [
        f"the policy was measured with `{name}` {device[name]!r}, but here it is {here[name]!r}: its speed may differ"
        for name in names
        if name in device and device[name] != here[name]
    ]


def running_differences(device: Device, running: Device) -> list[str]:
    """Return what can only be compared once a decoder runs: the kind of device and the number of threads."""
    kinds = device.get("device_kind"), running["device_kind"]
    if None not in kinds and kinds[0] != kinds[1]:
        return [f"the policy was measured on {kinds[0]}, but the decoder runs on {kinds[1]}: its speed may differ"]
    threads = device.get("num_threads"), running["num_threads"]
    if kinds[1] == "cpu" and None not in threads and threads[0] != threads[1]:
        return [
            f"the policy was measured with {threads[0]} threads, but here are {threads[1]}: its speed may differ "
            f"(`torch.set_num_threads({threads[0]})`, or OMP_NUM_THREADS={threads[0]} in the environment)"
        ]
    return []


def model_differences(
    models: Mapping[str, ModelSource], digest_of: Callable[[str], str | None] = model_digest
) -> list[str]:
    """Return a sentence for each local model that is not there or holds other files than when the policy was made.

    Args:
        models: By what they are called in the sentence, such as `target`.
        digest_of: What identifies the files of a source.
    """
    found = []
    for role, model in models.items():
        if model.digest is None:
            continue
        try:
            digest = digest_of(model.source)
        except (ConfigError, OSError) as error:
            found.append(f"the {role} `{model.source}` cannot be looked at: {error}")
            continue
        if digest is None:
            place = Path(split_source(resolve_source(model.source))[1]).absolute()
            found.append(f"the {role} `{model.source}` is not there ({place})")
        elif digest != model.digest:
            found.append(f"the {role} `{model.source}` holds other files than when the policy was made")
    return found
