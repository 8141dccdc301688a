"""The setting `threads`: how many of torch's threads a command runs with, given or measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from autospec.cli.console import Terminal
from autospec.errors import ConfigError, ProfileError
from autospec.profiling import ThreadChoice, host_fingerprint, load_threads, save_threads, threads_path

if TYPE_CHECKING:
    from autospec.engine.decoder import SpeculativeDecoder
    from autospec.records import Workload

# How many; `auto`: the fastest, measured; None: as torch has it.
Threads = Literal["auto"] | int | None


def check_threads(threads: Threads) -> None:
    """Refuse numbers that make no sense.

    Raises:
        ConfigError: Fewer than one, or more than this process has cores.
    """
    num_cores = int(host_fingerprint()["num_cores"])
    if isinstance(threads, int) and not 1 <= threads <= num_cores:
        raise ConfigError(
            f"`threads` must be auto, null, or 1 to {num_cores}, the cores this process may use, but got {threads}"
        )


def use_threads(threads: Threads) -> None:
    """Let torch use a number that was given, before models are loaded."""
    if isinstance(threads, int):
        import torch

        torch.set_num_threads(threads)


def choose_threads(
    decoder: SpeculativeDecoder, workload: Workload, root: Path, terminal: Terminal, *, keeps: bool, anew: bool
) -> ThreadChoice | None:
    """Let torch use the number of threads that was chosen for this target on this machine, or choose it now.

    A number is kept, so that all that is measured here can be compared.

    Args:
        decoder: Its target is measured.
        workload: Its text is decoded meanwhile.
        root: The folder of all outputs.
        terminal: Told what was chosen.
        keeps: Write down what is measured.
        anew: Measure, whatever was chosen before.

    Returns:
        None where the models do not run on a CPU: then nothing is changed.
    """
    import torch

    from autospec.profiling import measure_threads, text_of, threads_key_of

    if decoder.target.device.type != "cpu":
        terminal.line(f"threads: as torch has them, {torch.get_num_threads()}, because models run on a GPU")
        return None
    path, found = threads_path(root, threads_key_of(decoder)), None
    if path.is_file() and not anew:
        try:
            found = load_threads(path)
        except ProfileError as error:
            terminal.line(f"threads are compared again: {error}")
    if found is None:
        found = measure_threads(decoder.target, text_of(decoder, workload)[2])
        if keeps:
            save_threads(path, found)
    return _use(found, terminal)


def keep_threads(
    decoder: SpeculativeDecoder, root: Path, folder: Path, num_threads: int, terminal: Terminal
) -> ThreadChoice | None:
    """Let torch use the number of threads that an unfinished run was begun with, whatever was chosen since.

    Args:
        decoder: Its target's choice is looked up.
        root: The folder of all outputs.
        folder: Of the run.
        num_threads: Its number.
        terminal: Told so.

    Returns:
        By which numbers it was chosen; None where these are kept no more.
    """
    import torch

    from autospec.profiling import threads_key_of

    try:
        chosen = load_threads(threads_path(root, threads_key_of(decoder)))
    except ProfileError:  # none, or damaged
        chosen = None
    if chosen is not None and chosen.num_threads == num_threads:
        return _use(chosen, terminal)
    torch.set_num_threads(num_threads)
    since = "" if chosen is None else f", though {chosen.num_threads} were chosen since (resume=false begins anew)"
    terminal.line(f"threads: {num_threads}, with which the unfinished run in {folder} was begun{since}")
    return None


def _use(choice: ThreadChoice, terminal: Terminal) -> ThreadChoice:
    import torch

    torch.set_num_threads(choice.num_threads)
    times = ", ".join(f"{1e3 * one.plain.seconds:.2f} ms with {one.num_threads}" for one in choice.points)
    terminal.line(f"threads: {choice.num_threads}; a plain forward takes {times}")
    return choice
