"""Measures on the built-in engine: a prompt under a configuration and under plain decoding, one right after the other.

A prompt with companions is a batch: all of them are decoded side by side, and the call as a whole is timed.
Whole calls are timed with the device's clock, nothing is logged in between. Knows no study and no other prompt.
"""

from __future__ import annotations

import gc
import math
import zlib
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import psutil
import torch

from autospec.clock import Clock
from autospec.config import SamplingParams, SpecConfig
from autospec.errors import AutospecError, BaselineError, MeasurementError, MismatchError
from autospec.records import Generation, Measurement, Prompt, StepStats
from autospec.rules import ACCEPT_RULES
from autospec.runners.footprint import Footprint
from autospec.runners.quality import QualityMeter
from autospec.runners.scoring import Scorer

if TYPE_CHECKING:
    from autospec.engine.decoder import SpeculativeDecoder

TIE_GAP = 1e-4  # forwards of different shape differ by about 1e-5
_WARM_UP_TOKENS = 8
_OFF = SpecConfig()


def sampling_of(sampling: SamplingParams, prompt: Prompt) -> SamplingParams:
    """Return the decoding settings under which a prompt is measured: with a seed of its own, the same every time."""
    return replace(sampling, seed=sampling.seed + zlib.crc32(prompt.prompt_id.encode()))


@dataclass(frozen=True, slots=True)
class _Timed:
    """What a call brought, a generation for each prompt of the group, and how long the whole call took."""

    generations: list[Generation]
    seconds: float

    @property
    def num_tokens(self) -> int:
        return sum(len(one.token_ids) for one in self.generations)

    @property
    def stats(self) -> StepStats:
        """Counts and seconds of all of them; a batch shares out drafts and forwards among its rows."""
        if len(self.generations) == 1:
            return self.generations[0].stats
        total = StepStats()
        for one in self.generations:
            total.merge(one.stats)
        return total


@dataclass(frozen=True, slots=True)
class _Likeness:
    """How an output compares with plain decoding's; the fields are those of `Measurement`."""

    identical: bool | None
    num_excused: int = 0
    difference_index: int | None = None
    difference_gap: float | None = None
    num_different: int = 0


class LiveRunner:
    """Measures with a decoder.

    Which of the two runs first alternates from prompt to prompt of a category and from repeat to repeat (A B, B A,
    ...), so that an effect of the order cancels. Both ignore the end-of-text token and emit `max_new_tokens`. Under
    sampling every prompt has a seed of its own, the same in every repeat.

    Args:
        decoder: The models.
        sampling: Decoding settings.
        max_new_tokens: Tokens generated for each prompt.
        scorer: Judges outputs under lossy rules by their task.
    """

    def __init__(
        self,
        decoder: SpeculativeDecoder,
        sampling: SamplingParams,
        max_new_tokens: int,
        scorer: Scorer | None = None,
    ) -> None:
        self._meter, self._footprint = QualityMeter(decoder, scorer), Footprint(decoder)
        self._decoder, self._sampling, self._max_new_tokens = decoder, sampling, max_new_tokens
        self._device = decoder.target.device
        self._clock = Clock(self._device)
        self._warm: set[tuple[SpecConfig, int]] = set()  # with the number of prompts side by side
        self._turns: Counter[tuple[SpecConfig, str, str, int]] = Counter()

    def try_scorer(self, prompt: Prompt) -> None:
        """Let the scorer judge plain decoding's output of a prompt once, so that a broken one is known beforehand.

        Raises:
            ScorerError: It raised, or returned no number.
        """
        timed = self._time(_OFF, [self._decoder.render(prompt)], self._sampling)
        self._meter.score(prompt, timed.generations[0].token_ids)

    def measure(self, config: SpecConfig, prompt: Prompt, *, stage: str, trial: int, repeat: int) -> Measurement:
        """Time one prompt, with its companions, under `config` and under plain decoding; see `Runner`."""
        try:
            group = [self._decoder.render(one) for one in (prompt, *prompt.companions)]
            sampling = sampling_of(self._sampling, prompt)
            self._warm_up(config, group, sampling)
            turn = (config, prompt.category, stage, repeat)
            config_first = bool((self._turns[turn] + repeat) % 2)
            self._turns[turn] += 1
            self._reset_peak()
            if config_first:
                own = self._time(config, group, sampling)
                peak = self._peak_bytes()
                baseline = self._time(_OFF, group, sampling)
            else:
                baseline = self._time(_OFF, group, sampling)
                self._reset_peak()
                own = self._time(config, group, sampling)
                peak = self._peak_bytes()
            num_tokens = sum(len(one) + self._max_new_tokens for one in group)
            footprint, baseline_footprint = (self._footprint.of(one, num_tokens) for one in (config, _OFF))
            likeness = self._compare_all(config, prompt, own, baseline, sampling)
            is_judged = not (ACCEPT_RULES[config.accept_rule].is_lossless or prompt.companions)
            outputs = own.generations[0], baseline.generations[0]
            quality = self._meter.judge(prompt, *outputs, sampling) if is_judged else None
        except BaselineError as error:
            raise BaselineError(f"prompt {prompt.prompt_id!r}: {error}") from error.__cause__
        except torch.OutOfMemoryError as error:
            raise MeasurementError(f"out of memory under {config.short()}: {_first_line(error)}") from error
        except AutospecError:
            raise
        except RuntimeError as error:
            raise MeasurementError(f"{config.short()} failed: {_first_line(error)}") from error
        return Measurement(
            config=config,
            prompt_id=prompt.prompt_id,
            category=prompt.category,
            stage=stage,
            trial=trial,
            repeat=repeat,
            seconds=own.seconds,
            baseline_seconds=baseline.seconds,
            num_tokens=own.num_tokens,
            baseline_num_tokens=baseline.num_tokens,
            prefill_seconds=own.stats.prefill_seconds,
            baseline_prefill_seconds=baseline.stats.prefill_seconds,
            stats=own.stats,
            identical=likeness.identical,
            num_excused=likeness.num_excused,
            peak_memory_bytes=peak,
            difference_index=likeness.difference_index,
            difference_gap=likeness.difference_gap,
            quality=quality,
            baseline_gap_seconds=tuple(baseline.stats.gap_seconds),
            footprint_bytes=footprint,
            baseline_footprint_bytes=baseline_footprint,
            num_outputs=len(group),
            num_different=likeness.num_different,
        )

    def _generate(
        self, config: SpecConfig, group: list[list[int]], sampling: SamplingParams, max_new_tokens: int
    ) -> list[Generation]:
        try:
            return self._decoder.generate(
                group,
                config=config,
                sampling=sampling,
                max_new_tokens=max_new_tokens,
                ignore_eos=True,
                batch_size=len(group),
            )
        except (AutospecError, RuntimeError) as error:
            if config.is_off:
                rule = "plain decoding must be possible on every prompt"
                raise BaselineError(f"{rule}, but: {_first_line(error)}") from error
            raise

    def _warm_up(self, config: SpecConfig, group: list[list[int]], sampling: SamplingParams) -> None:
        """Run a configuration, and plain decoding, shortly before they are measured for the first time."""
        for one in (_OFF, config):
            if (one, len(group)) not in self._warm:
                self._decoder.check(one)
                self._generate(one, group, sampling, min(_WARM_UP_TOKENS, self._max_new_tokens))
                self._warm.add((one, len(group)))

    def _time(self, config: SpecConfig, group: list[list[int]], sampling: SamplingParams) -> _Timed:
        """Time one whole call, without the pauses of the garbage collector."""
        collects = gc.isenabled()
        gc.disable()
        try:
            started = self._clock.now()
            generations = self._generate(config, group, sampling, self._max_new_tokens)
            seconds = self._clock.now() - started
        finally:
            if collects:
                gc.enable()
        return _Timed(generations, seconds)

    def _compare_all(
        self, config: SpecConfig, prompt: Prompt, own: _Timed, baseline: _Timed, sampling: SamplingParams
    ) -> _Likeness:
        """Compare every prompt of the group; what is said of a difference is said of the first, one without excuse
        before others."""
        found = []
        for row, (mine, plain) in enumerate(zip(own.generations, baseline.generations, strict=True)):
            found.append(self._compare(config, prompt, mine, plain, replace(sampling, seed=sampling.seed + row)))
        worst = max(found, key=lambda one: (one.identical is False, one.difference_index is not None))
        num_different = sum(one.identical is False for one in found)
        identical = None if worst.identical is None else num_different == 0
        num_excused = sum(one.num_excused for one in found)
        return replace(worst, identical=identical, num_excused=num_excused, num_different=num_different)

    def _compare(
        self, config: SpecConfig, prompt: Prompt, own: Generation, baseline: Generation, sampling: SamplingParams
    ) -> _Likeness:
        """Compare the tokens with plain decoding's; a tie excuses a first difference.

        Behind a first difference the texts are different ones, so nothing more is compared.

        Raises:
            MismatchError: In float32, where nothing excuses a difference.
        """
        promises_tokens = ACCEPT_RULES[config.accept_rule].is_lossless and sampling.is_greedy
        if not (promises_tokens or config.accept_rule == "exact"):
            return _Likeness(None)
        if own.token_ids == baseline.token_ids:
            return _Likeness(True)
        pairs = zip(own.token_ids, baseline.token_ids, strict=False)
        shortest = min(len(own.token_ids), len(baseline.token_ids))
        index = next((place for place, (first, second) in enumerate(pairs) if first != second), shortest)
        gap = math.inf
        if index < shortest:
            gap = self._decoder.tie_gap(list(baseline.prompt_ids), list(baseline.token_ids), index, sampling)
            if gap < TIE_GAP:
                return _Likeness(True, 1, index, gap)
        if self._decoder.target.dtype == torch.float32:
            raise MismatchError(
                f"a lossless rule must give the tokens of plain decoding, but {config.short()} on prompt "
                f"{prompt.prompt_id!r} differs at token {index}: {_around(own.token_ids, index)} instead of "
                f"{_around(baseline.token_ids, index)}, where plain decoding was {gap:.2e} away from another token "
                f"(a tie is below {TIE_GAP:.0e})"
            )
        return _Likeness(False, 0, index, gap if math.isfinite(gap) else None)

    def _reset_peak(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def _peak_bytes(self) -> int:
        """Return the most memory torch held on the device since the reset; on a CPU what the process holds now.

        The latter counts every model, the interpreter and what was freed and kept, whatever the configuration.
        """
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        return int(psutil.Process().memory_info().rss)


def _around(token_ids: tuple[int, ...], index: int) -> list[int]:
    """Return the token at a position with two neighbours on each side."""
    return list(token_ids[max(0, index - 2) : index + 3])


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
