"""How a study is run: its budget, its sampler and when it stops. Passive, checked on construction."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from autospec.errors import ConfigError
from autospec.yardsticks import DECISIVE

SAMPLERS = ("tpe", "gp")
OBJECTIVES = tuple(DECISIVE)
_AT_LEAST = {
    "trials": 1,
    "replayed_trials": 1,
    "minutes": 0,
    "prompts_per_trial": 2,
    "finalists": 1,
    "finalist_prompts": 2,
    "repeats": 1,
    "max_repeats": 1,
    "patience": 0,
    "max_failures": 1,
    "max_memory_bytes": 0,
    "seed": 0,
}


@dataclass(frozen=True, slots=True)
class QualitySettings:
    """What may be lost for speed.

    Args:
        max_loss: Most nats per token by which outputs may be less (or more) probable under the target than its own,
            by a one-sided 95 % bound over prompts; None allows lossless rules only.
        scorer: Of the task, for lossy rules: `exact`, `regex:PATTERN` or `package.module:function`; see
            `autospec.runners.make_scorer`. Reported, and constrains nothing.
        allow_import: Modules from which a scorer may be imported, which runs their code.

    Raises:
        ConfigError: A value is out of range, or a scorer is named where nothing lossy is allowed.
    """

    max_loss: float | None = None
    scorer: str | None = None
    allow_import: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        faults = []
        if self.max_loss is not None and not 0.0 <= self.max_loss < math.inf:
            faults.append(f"`max_loss >= 0` must hold, or null for lossless rules only, but got {self.max_loss}")
        if self.scorer is not None and self.max_loss is None:
            faults.append(
                f"a `scorer` judges lossy rules, so `max_loss` must be named with it, but got {self.scorer!r} alone"
            )
        if faults:
            raise ConfigError(faults)

    @property
    def allows_lossy(self) -> bool:
        """Whether lossy rules may be tried."""
        return self.max_loss is not None


@dataclass(frozen=True, slots=True)
class StudySettings:
    """Settings of one study.

    Args:
        trials: Most configurations measured, the baseline's own trial not counted.
        minutes: Most minutes for everything, confirmation included; 0 is no limit. A trial that has begun is ended,
            and confirmation keeps a minimum, so a small budget can be overrun by those.
        objective: What is looked for. `tokens_per_second` maximises the log speedup against the interleaved baseline.
            `p95_inter_token_latency` does the same with the 95th percentile of the gaps between arrivals of tokens,
            where all tokens of a step arrive at once. `pareto` looks for the front of speed, loss of quality and
            memory without ending trials early, and takes the fastest that keeps the limits.
        guided: Record and profile first, and begin with what is predicted from these; greedy decoding only.
        replayed_trials: Most configurations that are priced, where the space is not priced whole.
        sampler: `tpe` or `gp`; of a guided study, for what cannot be predicted.
        seed: Seed of everything that is drawn.
        prompts_per_trial: Tune prompts of one trial.
        finalists: Most configurations that go from the search to the final choice over all categories; the best one
            of each category goes with them.
        finalist_prompts: Tune prompts on which the final choice is made, over all categories.
        repeats: How often each prompt is measured in the final choice and on held-out prompts; twice more where the
            baseline's noise is over 20 %.
        max_repeats: How often the search measures one configuration that is suggested again.
        patience: The search has converged when the best value has not risen by more than the noise for so many
            trials; 0 turns this off.
        max_failures: The search stops when so many configurations have failed.
        max_memory_bytes: Memory a configuration may take, on a CPU with the whole process; 0 is no limit. Under
            `pareto` it is the footprint, weights and caches of what the configuration itself runs.
        strict: Refuse to go on when the baseline's noise is over 20 %.
        quality: What may be lost for speed; nothing by default.

    Raises:
        ConfigError: A value is out of range; all faults are listed.
    """

    trials: int = 30
    minutes: float = 5.0
    objective: str = "tokens_per_second"
    guided: bool = True
    replayed_trials: int = 2000
    sampler: str = "tpe"
    seed: int = 0
    prompts_per_trial: int = 12
    finalists: int = 3
    finalist_prompts: int = 24
    repeats: int = 1
    max_repeats: int = 2
    patience: int = 20
    max_failures: int = 5
    max_memory_bytes: int = 0
    strict: bool = False
    quality: QualitySettings = field(default_factory=QualitySettings)

    def __post_init__(self) -> None:
        faults = [
            f"`{name} >= {least}` must hold, but got {getattr(self, name)}"
            for name, least in _AT_LEAST.items()
            if not least <= getattr(self, name) < math.inf
        ]
        if self.sampler not in SAMPLERS:
            faults.append(f"`sampler` must be one of {list(SAMPLERS)}, but got {self.sampler!r}")
        if self.objective not in OBJECTIVES:
            faults.append(f"`objective` must be one of {list(OBJECTIVES)}, but got {self.objective!r}")
        if faults:
            raise ConfigError(faults)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values; `quality` only where lossy rules are allowed."""
        return {name: value for name, value in asdict(self).items() if name != "quality" or self.quality.allows_lossy}
