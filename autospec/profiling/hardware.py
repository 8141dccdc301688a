"""The hardware profile: what target, drafters and host cost on one device, and what a cost model asks of it.

Measured points are returned as they were measured, between them values lie on straight lines, and beyond them nothing
is said. Knows no search and no policy, and needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from autospec.config import SamplingParams
from autospec.engine.costs import CostCurve
from autospec.errors import MeasurementError, ProfileError
from autospec.files import line_by_line
from autospec.profiling.documents import PROFILE_FILE, document_of, fields_of
from autospec.profiling.parts import (
    DrafterCosts,
    Memory,
    Noise,
    PlainPoint,
    PrefillPoint,
    TargetPoint,
    ThreadChoice,
    profile_key,
    twice,
)
from autospec.profiling.stopping import cost_curve
from autospec.profiling.surfaces import DrafterSurfaces, TargetSurfaces
from autospec.sources import ModelSource


@dataclass(frozen=True)
class HardwareProfile:
    """Measured costs of one device, dtype and set of models, in seconds.

    Every method raises a `MeasurementError` for what lies beyond the measured points or was not measured.

    Args:
        fingerprint: The device, its driver, the dtype, threads and versions; see `device_fingerprint`.
        target: The target.
        drafters: Each drafter that was loaded, by name.
        sampling: Decoding settings of the steps.
        workload: Name and hash of what was decoded.
        target_points: Target forwards.
        plain_points: The plain loop.
        prefill_points: Prompts through the target.
        memory: What the models take.
        noise: How far the numbers can be believed.
        left_out: A sentence for everything that was to be measured and was not.
        wall_seconds: How long it took.
        created: When, in UTC.
        autospec_version: By what.
        threads: By which numbers the number of threads was chosen; None where it was not.
        compile: Whether the models ran compiled.

    Raises:
        ProfileError: A point is there twice.
    """

    fingerprint: Mapping[str, str | int]
    target: ModelSource
    drafters: Mapping[str, DrafterCosts]
    sampling: SamplingParams
    workload: str
    target_points: tuple[TargetPoint, ...]
    plain_points: tuple[PlainPoint, ...]
    prefill_points: tuple[PrefillPoint, ...]
    memory: Memory
    noise: Noise
    left_out: tuple[str, ...]
    wall_seconds: float
    created: str
    autospec_version: str
    threads: ThreadChoice | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        names = ("target_points", "plain_points", "prefill_points")
        groups = {name: getattr(self, name) for name in names}
        for name, drafter in self.drafters.items():
            groups |= {f"drafters.{name}.points": drafter.points, f"drafters.{name}.contexts": drafter.contexts}
        faults = [
            f"`{name}` must be all different, but some are there twice" for name in groups if twice(groups[name])
        ]
        if faults:
            raise ProfileError("\n".join(faults))

    @property
    def key(self) -> str:
        """Names what a profile is made for: device, software, dtype, models, compiled or not, decoding."""
        sources = {name: drafter.source for name, drafter in self.drafters.items()}
        return profile_key(self.fingerprint, self.target, sources, self.sampling, self.compile)

    @property
    def dtype(self) -> str:
        """Number format of the target, such as `float32`."""
        return str(self.fingerprint.get("dtype", "unknown"))

    @property
    def contexts(self) -> tuple[int, ...]:
        """Context lengths behind which target steps were measured, ascending."""
        return tuple(sorted({point.context_length for point in self.target_points if point.batch_size == 1}))

    def target_seconds(self, num_tokens: int, context_length: int, batch_size: int = 1) -> float:
        """Return the seconds of a target forward.

        Args:
            num_tokens: New tokens of each row: the root and the nodes of a draft.
            context_length: Tokens cached before.
            batch_size: Rows.
        """
        return self._target.forwards.at(batch_size, context_length, num_tokens)

    def host_seconds(
        self,
        num_tokens: int,
        context_length: int,
        drafter: str | None = None,
        *,
        exit_layer: int = 0,
        batch_size: int = 1,
    ) -> float:
        """Return the seconds that a step spends on acceptance, commit and Python, outside drafter and target.

        Args:
            num_tokens: Tokens that the target verified, the root among them.
            context_length: Tokens before the step.
            drafter: Adds what this one's own commit takes; None: without any.
            exit_layer: See `draft_seconds`.
            batch_size: Rows.
        """
        own = self._target.hosts.at(batch_size, context_length, num_tokens)
        if drafter is None:
            return own
        surfaces = self._drafter(drafter)
        return own + surfaces.host_extra.at(surfaces.layer(exit_layer), batch_size, context_length)

    def plain_seconds(self, context_length: int, batch_size: int = 1) -> float:
        """Return the seconds of a token of the plain loop, the whole step."""
        return self._target.plain.at(batch_size, context_length)

    def prefill_seconds(self, num_tokens: int, drafter: str | None = None, batch_size: int = 1) -> float:
        """Return the seconds of a prompt through the target.

        Args:
            num_tokens: Length of the prompt.
            drafter: With the hidden states and logits that this one asks for; its own prefill is a part of
                `first_draft_seconds`.
            batch_size: Rows.
        """
        if drafter is None:
            return self._target.prefills.at(batch_size, num_tokens)
        surfaces = self._drafter(drafter)
        return surfaces.prefill.at(surfaces.layer(0), batch_size, num_tokens)

    def draft_seconds(
        self,
        drafter: str,
        depth: int,
        context_length: int,
        *,
        width: int = 1,
        exit_layer: int = 0,
        batch_size: int = 1,
    ) -> float:
        """Return the seconds that a drafter takes for a draft, all its forwards or lookups together.

        Args:
            drafter: Its name.
            depth: Of the draft: one forward for each level in drafters that run a model token by token. 0 is free.
            context_length: Tokens before the step.
            width: Rows of every forward but the first; 1 is a chain. For levels of several widths see
                `tree_draft_seconds`.
            exit_layer: Of a target that drafts for itself; 0 is what 0 in a configuration means.
            batch_size: Rows of the batch.
        """
        surfaces = self._drafter(drafter)
        if depth == 0:
            return 0.0
        return surfaces.drafts.at(surfaces.layer(exit_layer), batch_size, width, context_length, depth)

    def tree_draft_seconds(
        self, drafter: str, widths: Sequence[int], context_length: int, exit_layer: int = 0, batch_size: int = 1
    ) -> float:
        """Return the seconds of a draft whose forwards have different numbers of rows.

        A forward of w rows at level i takes what a comb of width w takes for i levels beyond what it takes for i - 1,
        so that uniform widths give exactly `draft_seconds`.

        Args:
            drafter: Its name.
            widths: Rows of each forward; the first is the root's, 1.
            context_length: Tokens before the step.
            exit_layer: See `draft_seconds`.
            batch_size: Rows of the batch.
        """
        surfaces = self._drafter(drafter)
        return surfaces.tree_seconds(widths, surfaces.layer(exit_layer), batch_size, context_length)

    def first_draft_seconds(
        self, drafter: str, context_length: int, exit_layer: int = 0, batch_size: int = 1
    ) -> float:
        """Return the seconds until a drafter's first token is there: the prompt through it, and a draft of one."""
        surfaces = self._drafter(drafter)
        return surfaces.first_draft.at(surfaces.layer(exit_layer), batch_size, context_length)

    def fixed_seconds(self, drafter: str, context_length: int, exit_layer: int = 0, batch_size: int = 1) -> float:
        """Return by how much a target forward takes longer because a drafter is there; within noise it may be below 0.

        That is the hidden states and logits it asks for, and caches that its drafts have emptied of the target.
        """
        surfaces = self._drafter(drafter)
        return surfaces.verify_extra.at(surfaces.layer(exit_layer), batch_size, context_length)

    def step_seconds(
        self,
        drafter: str,
        depth: int,
        context_length: int,
        *,
        width: int = 1,
        exit_layer: int = 0,
        batch_size: int = 1,
    ) -> float:
        """Return the seconds of a whole step, as it was measured: draft, verify, accept and commit.

        Args:
            drafter: See `draft_seconds`, like the rest.
            depth: At least 1.
            context_length: Tokens before the step.
            width: Rows of every draft forward but the first.
            exit_layer: Of a target that drafts for itself.
            batch_size: Rows of the batch.
        """
        surfaces = self._drafter(drafter)
        return surfaces.steps.at(surfaces.layer(exit_layer), batch_size, width, context_length, depth)

    def measured_forwards(self, context_length: int) -> dict[int, float]:
        """Return the seconds of target forwards behind one context, for every number of tokens that was measured."""
        sizes = sorted({point.num_tokens for point in self.target_points})
        ask = self._target.forwards
        return {size: ask.at(1, context_length, size) for size in sizes if ask.knows(1, context_length, size)}

    def measured_drafts(self, drafter: str, context_length: int, exit_layer: int = 0) -> dict[int, float]:
        """Return the seconds of a drafter's chains behind one context, for every depth that was measured."""
        surfaces = self._drafter(drafter)
        place, ask = (surfaces.layer(exit_layer), 1, 1, context_length), surfaces.drafts
        return {depth: ask.at(*place, depth) for depth in surfaces.depths if ask.knows(*place, depth)}

    def cost_curve(self, drafter: str, context_length: int, exit_layer: int = 0) -> CostCurve:
        """Return what the cost-aware stopping rule and the choice of trees need to know of drafts behind one context.

        `target` is what a step costs before its first draft token: the forward of the root, the host's part, what the
        drafter costs by being there, and what its first forward takes more than the others. `draft` and
        `target_per_token` are slopes of least-squares lines over drafts of up to 16 tokens.
        """
        return cost_curve(self, drafter, context_length, exit_layer)

    def to_json(self) -> dict[str, Any]:
        """Return the document that `save` writes, schema version and checksum included."""
        return document_of(self)

    @classmethod
    def from_json(cls, document: Any) -> HardwareProfile:
        """Build from `to_json`.

        Raises:
            ProfileError: The document is malformed, was changed or is of another schema version; all faults are
                listed.
        """
        return cls(**fields_of(document))

    def save(self, path: str | Path) -> None:
        """Write the profile as JSON; a reader sees the old file or the new one, never a part.

        Raises:
            ProfileError: The file cannot be written.
        """
        PROFILE_FILE.write(Path(path), line_by_line(self.to_json()))

    @cached_property
    def _target(self) -> TargetSurfaces:
        return TargetSurfaces.of(self.target_points, self.plain_points, self.prefill_points)

    @cached_property
    def _drafters(self) -> dict[str, DrafterSurfaces]:
        return {name: DrafterSurfaces(name, costs) for name, costs in self.drafters.items()}

    def _drafter(self, name: str) -> DrafterSurfaces:
        if name not in self._drafters:
            raise MeasurementError(
                f"a drafter must be one of the profile's, {sorted(self._drafters)}, but got {name!r}"
            )
        return self._drafters[name]
