"""`autospec.profile`: a decoder in, its hardware profile out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import autospec
from autospec import pocket
from autospec.clock import Clock
from autospec.config import SamplingParams
from autospec.errors import MeasurementError
from autospec.profiling.assembly import TargetParts, drafter_costs
from autospec.profiling.campaign import Campaign, OnProgress
from autospec.profiling.fingerprint import device_fingerprint
from autospec.profiling.hardware import HardwareProfile
from autospec.profiling.memory import own_weight_bytes, peak_bytes, reset_peak, weight_bytes
from autospec.profiling.parts import Memory, ThreadChoice, profile_key, threads_key
from autospec.profiling.probe import Watch
from autospec.profiling.samples import Subject
from autospec.profiling.settings import ProfileSettings
from autospec.records import Workload
from autospec.sources import drafter_source, loaded_source
from autospec.workloads import WorkloadSource, load_workload

if TYPE_CHECKING:
    from autospec.engine.decoder import SpeculativeDecoder

# Decoding settings of the steps, name of the text and its tokens.
Text = tuple[SamplingParams, str, tuple[int, ...]]


def profile(
    decoder: SpeculativeDecoder,
    workload: Workload | Sequence[int] | None = None,
    settings: ProfileSettings | None = None,
    *,
    on_progress: OnProgress = lambda what, used: None,
    watch: Watch | None = None,
    threads: ThreadChoice | None = None,
) -> HardwareProfile:
    """Measure what the target, every drafter and the host cost on the device of a decoder.

    Real steps of the engine are timed, on text of the workload. Takes about `settings.budget_seconds`.

    Args:
        decoder: The models.
        workload: Its prompts to tune on are the text, its sampling settings those of the steps; or the ids of a text,
            decoded greedily. None: the embedded workload.
        settings: What to measure, and for how long.
        on_progress: Told what is being measured, and which share of the budget was used before.
        watch: Reads the time; the default waits for the device.
        threads: By which numbers the number of threads of this process was chosen, for the record.

    Raises:
        MeasurementError: The text or the target's context is too short for a single step.
        ModelError: The workload is text and the decoder has no tokenizer.
        WorkloadError: A prompt cannot be rendered.
    """
    text = text_of(decoder, workload)
    return profile_text(decoder, text, settings, on_progress=on_progress, watch=watch, threads=threads)


def profile_text(
    decoder: SpeculativeDecoder,
    text: Text,
    settings: ProfileSettings | None = None,
    *,
    on_progress: OnProgress = lambda what, used: None,
    watch: Watch | None = None,
    threads: ThreadChoice | None = None,
) -> HardwareProfile:
    """Measure on a text that `text_of` made, which may be that of a decoder with more drafters; see `profile`."""
    settings, target = settings or ProfileSettings(), decoder.target
    sampling, name, token_ids = text
    watch = Clock(target.device) if watch is None else watch
    subject = Subject(target, dict(decoder.drafters), token_ids, sampling, watch)
    own = {name: own_weight_bytes(drafter, target) for name, drafter in subject.drafters.items()}
    reset_peak(target.device)
    started = watch.now()
    campaign = Campaign(subject, settings, on_progress)
    campaign.run()
    samples, parts = campaign.samples, TargetParts.of(campaign.samples)
    return HardwareProfile(
        fingerprint=device_fingerprint(target.device, target.dtype),
        target=loaded_source(target.name, target),
        drafters={one: drafter_costs(one, subject, own[one], samples, parts) for one in subject.drafters},
        sampling=sampling,
        workload=name,
        target_points=parts.targets,
        plain_points=parts.plain,
        prefill_points=parts.prefills,
        memory=Memory(weight_bytes(target), samples.kv_bytes_per_token, peak_bytes(target.device)),
        noise=parts.noise,
        left_out=tuple(campaign.left_out),
        wall_seconds=watch.now() - started,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        autospec_version=autospec.__version__,
        threads=threads,
        compile=target.compiles,
    )


def key_of(decoder: SpeculativeDecoder, sampling: SamplingParams) -> str:
    """Return the key that a profile of this decoder has, without measuring."""
    target = decoder.target
    drafters = {name: drafter_source(drafter) for name, drafter in decoder.drafters.items()}
    fingerprint = device_fingerprint(target.device, target.dtype)
    return profile_key(fingerprint, loaded_source(target.name, target), drafters, sampling, target.compiles)


def threads_key_of(decoder: SpeculativeDecoder) -> str:
    """Return under which key the number of threads is kept that was chosen for this target."""
    target = decoder.target
    fingerprint = device_fingerprint(target.device, target.dtype)
    return threads_key(fingerprint, loaded_source(target.name, target), target.compiles)


def text_of(decoder: SpeculativeDecoder, workload: Workload | Sequence[int] | None) -> Text:
    """Return decoding settings, name and tokens of what is decoded: all prompts to tune on, one behind the other."""
    if workload is None:
        workload = load_workload(WorkloadSource(pocket.workload_path(), name="pocket"))
    if not isinstance(workload, Workload):
        if not workload:
            raise MeasurementError("a text must hold tokens, but got none")
        return SamplingParams(), "token ids", tuple(workload)
    token_ids = [token for prompt in workload.tune for token in decoder.render(prompt)]
    return workload.sampling, f"{workload.name} {workload.content_hash}", tuple(token_ids)
