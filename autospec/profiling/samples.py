"""What is profiled, and the timings that are taken of it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from autospec.config import SamplingParams
from autospec.engine.drafters import Drafter
from autospec.engine.model import CausalLM
from autospec.profiling.probe import StepTimes, Watch


@dataclass(frozen=True, slots=True)
class Subject:
    """What is profiled.

    Args:
        target: The target.
        drafters: By name.
        token_ids: Text of the workload.
        sampling: Decoding settings.
        watch: Reads the time.
    """

    target: CausalLM
    drafters: dict[str, Drafter]
    token_ids: tuple[int, ...]
    sampling: SamplingParams
    watch: Watch


@dataclass(frozen=True, slots=True)
class StepKey:
    """Which steps are alike.

    Args:
        drafter: Its name; empty for the target alone.
        exit_layer: Of a target that drafts for itself, how many first layers do; 0 for other drafters.
        width: Rows of a draft forward: 1 for chains; 0 for steps of the plain loop.
        context_length: Tokens before the step.
        depth: Depth of the draft.
    """

    drafter: str
    exit_layer: int
    width: int
    context_length: int
    depth: int = 0


@dataclass(slots=True)
class Samples:
    """All timings taken, in seconds.

    Args:
        steps: By what they are alike in.
        prefills: By drafter whose needs the target serves meanwhile (empty: none), rows, and tokens of a row.
        first_drafts: Until a drafter's first token was there, by drafter, exit layer and context.
        forwards: Of batches, by rows, context and tokens of a row.
        kv_bytes_per_token: What a token takes in the target's cache; 0 before anything was run.
    """

    steps: defaultdict[StepKey, list[StepTimes]] = field(default_factory=lambda: defaultdict(list))
    prefills: defaultdict[tuple[str, int, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    first_drafts: defaultdict[tuple[str, int, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    forwards: defaultdict[tuple[int, int, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    kv_bytes_per_token: float = 0.0
