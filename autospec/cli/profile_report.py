"""A hardware profile as tables for people. Formats; measures nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from autospec.cli.console import minutes, table
from autospec.errors import MeasurementError
from autospec.profiling import HardwareProfile, ThreadChoice

_SHOWN_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128)
_SHOWN_DEPTHS = (1, 2, 4, 8, 16)
_MIB = 2**20


def report_lines(profile: HardwareProfile) -> Iterator[str]:
    """Yield the tables: the target by tokens, drafters by depth, and what stands beside them."""
    device = profile.fingerprint
    yield ""
    form = profile.dtype + ", compiled" * profile.compile
    yield f"{device.get('device_name')}, {device.get('num_threads')} threads, {form}: {profile.target.source}"
    if profile.threads is not None:
        yield ""
        yield from _threads_table(profile.threads)
    yield ""
    yield "milliseconds of a target forward, by context and number of tokens"
    yield from _target_table(profile)
    if profile.drafters:
        yield ""
        yield "milliseconds of drafts, by drafter, context and depth; verify +: what a target forward takes more"
        yield from _drafter_table(profile)
    memory = profile.memory
    yield ""
    yield (
        f"memory: target {memory.target_weight_bytes / _MIB:.0f} MiB, {memory.kv_bytes_per_token / 1024:.1f} KiB for "
        f"each cached token, peak {memory.peak_bytes / _MIB:.0f} MiB"
    )
    noise = profile.noise
    yield f"noise of one timing {noise.spread:.1%}: {noise.verdict}; took {minutes(profile.wall_seconds)}"
    for sentence in profile.left_out:
        yield f"left out: {sentence}"


def _threads_table(chosen: ThreadChoice) -> Iterator[str]:
    yield (
        f"threads: {chosen.num_threads}, the fewest that are not beyond noise slower than the fastest; milliseconds "
        f"behind {chosen.context_length} tokens"
    )
    rows = [["threads", "plain", f"verify {chosen.num_verified}", "plain, times the fastest"]]
    for one in chosen.points:
        ratio = f"{one.slowdown:.2f} [{one.slowdown_low:.2f}, {one.slowdown_high:.2f}]"
        times = (f"{1e3 * one.plain.seconds:.2f}", f"{1e3 * one.verify.seconds:.2f}")
        rows.append([str(one.num_threads), *times, ratio])
    yield from table(rows, right=range(3))


def _target_table(profile: HardwareProfile) -> list[str]:
    rows = [["batch", "context", "prefill", "plain step", "host", *map(str, _SHOWN_TOKENS)]]
    for batch, context in sorted({(point.batch_size, point.context_length) for point in profile.target_points}):
        rows.append(
            [
                str(batch),
                str(context),
                _milliseconds(lambda: profile.prefill_seconds(context, batch_size=batch)),  # noqa: B023
                _milliseconds(lambda: profile.plain_seconds(context, batch)),  # noqa: B023
                _milliseconds(lambda: profile.host_seconds(1, context, batch_size=batch)),  # noqa: B023
                *(_milliseconds(lambda: profile.target_seconds(size, context, batch)) for size in _SHOWN_TOKENS),  # noqa: B023
            ]
        )
    return table(rows, right=range(len(rows[0])))


def _drafter_table(profile: HardwareProfile) -> list[str]:
    rows = [["drafter", "context", "first draft", "verify +", "host +", *map(str, _SHOWN_DEPTHS)]]
    for name, costs in profile.drafters.items():
        for around in costs.contexts:
            context, layer = around.context_length, around.exit_layer
            rows.append(
                [
                    f"{name} ({layer} layers)" if layer else name,
                    str(context),
                    f"{1e3 * around.first_draft.seconds:.2f}",
                    f"{1e3 * around.verify_extra.seconds:+.2f}",
                    f"{1e3 * around.host_extra.seconds:+.2f}",
                    *_draft_cells(profile, name, context, layer),
                ]
            )
    return table(rows, right=range(1, len(rows[0])))


def _draft_cells(profile: HardwareProfile, name: str, context: int, layer: int) -> Sequence[str]:
    return [
        _milliseconds(lambda: profile.draft_seconds(name, depth, context, exit_layer=layer))  # noqa: B023
        for depth in _SHOWN_DEPTHS
    ]


def _milliseconds(ask: Callable[[], float]) -> str:
    try:
        return f"{1e3 * ask():.2f}"
    except MeasurementError:
        return "-"
