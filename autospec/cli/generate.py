"""`python -m autospec generate`: streams a continuation and says how the drafts fared."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autospec.cli.build import (
    check_configs,
    check_models,
    embedded_model,
    let_import,
    load_decoder,
    quieten,
    spec_config,
)
from autospec.cli.compose import Composed, near
from autospec.cli.faults import Faults
from autospec.cli.schema import ModelSettings, typed
from autospec.config import SamplingParams, SpecConfig
from autospec.errors import AutospecWarning, ConfigError
from autospec.policy import Policy, load_policy
from autospec.records import StepStats
from autospec.rules import model_named

if TYPE_CHECKING:
    from autospec.engine.decoder import SpeculativeDecoder


@dataclass(frozen=True, slots=True)
class GenerateSettings:
    """Settings of `generate`; see `conf/generate.yaml`."""

    model: ModelSettings | None = None
    prompt: str | None = None
    prompt_file: str | None = None
    policy: str | None = None
    config: Any = None
    category: str | None = None
    max_new_tokens: int = 128
    stop: tuple[str, ...] = ()
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int = 0
    allow_import: tuple[str, ...] = ()
    output_root: str = "outputs"

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"`max_new_tokens >= 1` must hold, but got {self.max_new_tokens}")


@dataclass(frozen=True, slots=True)
class _Request:
    """What to generate, all of it checked."""

    prompt: str
    config: SpecConfig | Policy
    sampling: SamplingParams


def run(composed: Composed) -> int:
    """Stream the text to standard output and the statistics to standard error."""
    faults = Faults(composed.faults)
    settings = typed(GenerateSettings, composed.values, faults.found)
    assert settings is not None
    request = _request(settings, faults)
    if settings.model is not None:
        check_models(settings.model, faults, settings.allow_import)
    faults.raise_if_any()
    if settings.model is None and isinstance(request.config, Policy):
        quieten(_sources(request.config))
        let_import(settings.allow_import)
        decoder = request.config.decoder(allow_import=settings.allow_import)
    else:
        model = settings.model or embedded_model("generate")
        if isinstance(request.config, SpecConfig):
            check_configs([request.config], model, faults)
            faults.raise_if_any()
        decoder = load_decoder(model, settings.allow_import)
    stats = _stream(decoder, request, settings)
    print("\n".join(statistics(stats)), file=sys.stderr)
    return 0


def _sources(policy: Policy) -> list[str]:
    """Return where the models of a policy come from; drafters that are built in come from nowhere."""
    sources = [policy.target.source, *(drafter.source for drafter in policy.drafters.values())]
    return [path for path in map(model_named, sources) if path]


def _check_category(category: str | None, policy: Policy) -> None:
    """Warn where the policy has never seen a category: the row for all serves it."""
    known = sorted({*policy.workload.categories, *(row.category for row in policy.rows if row.category)})
    if category is not None and category not in known:
        rule = f"the policy knows the categories {known} and serves all else by its row for all"
        warnings.warn(f"{rule}, but got {category!r}{near(category, known)}", AutospecWarning, stacklevel=2)


def _request(settings: GenerateSettings, faults: Faults) -> _Request:
    prompt = faults.attempt(lambda: _prompt(settings))
    config: SpecConfig | Policy | None = None
    if settings.policy is not None and settings.config is not None:
        faults.found.append("`policy` and `config` each say how to speculate, so only one can be given")
    if settings.policy is None:
        config = faults.attempt(lambda: spec_config(settings.config), "config")
    else:
        config = faults.attempt(lambda: load_policy(Path(settings.policy or "").expanduser()))
    if isinstance(config, Policy):
        _check_category(settings.category, config)
    tuned = config.sampling if isinstance(config, Policy) else SamplingParams()
    given = {name: getattr(settings, name) for name in ("temperature", "top_p", "top_k")}
    changes = {name: value for name, value in given.items() if value is not None}
    sampling = faults.attempt(lambda: replace(tuned, seed=settings.seed, **changes))
    return _Request(prompt or "", config or SpecConfig(), sampling or tuned)


def _prompt(settings: GenerateSettings) -> str:
    if (settings.prompt is None) == (settings.prompt_file is None):
        raise ConfigError('one of prompt="TEXT" and prompt_file=PATH must be given, and not both')
    text, where = settings.prompt or "", "prompt"
    if settings.prompt_file is not None:
        where = "prompt_file"
        try:
            text = Path(settings.prompt_file).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"`prompt_file` must be a readable text file, but: {error}") from error
    if not text:
        raise ConfigError(f"`{where}` must hold some text, but it is empty")
    return text


def _stream(decoder: SpeculativeDecoder, request: _Request, settings: GenerateSettings) -> StepStats:
    stats = StepStats()
    chunks = decoder.stream(
        request.prompt,
        config=request.config,
        sampling=request.sampling,
        max_new_tokens=settings.max_new_tokens,
        stop=settings.stop,
        category=settings.category,
    )
    for chunk in chunks:
        print(chunk.text, end="", flush=True)
        stats = chunk.stats
    print(flush=True)
    return stats


def statistics(stats: StepStats) -> list[str]:
    """Return the lines about one generation."""
    speed = stats.num_new_tokens / stats.total_seconds if stats.total_seconds else 0.0
    lines = [
        f"{stats.num_new_tokens} tokens in {stats.total_seconds:.2f} s ({speed:.1f} tok/s), {stats.num_steps} steps"
    ]
    if stats.num_drafted:
        by_position = " ".join(f"{share:.2f}" for share in stats.position_acceptance)
        lines += [
            f"{stats.tokens_per_step:.2f} tokens per step, {stats.num_accepted} of {stats.num_drafted} draft tokens "
            f"accepted ({stats.acceptance_rate:.0%})",
            f"accepted by position, given all before: {by_position}",
        ]
    seconds = ", ".join(
        f"{name} {getattr(stats, f'{name}_seconds'):.2f} s" for name in ("prefill", "draft", "verify", "accept")
    )
    return [*lines, f"time: {seconds}"]
