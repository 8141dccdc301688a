"""`python -m autospec bench`: policies and configurations against plain decoding and against each other."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from autospec.cli import contest
from autospec.cli.bench_report import report_lines, result_document
from autospec.cli.build import (
    check_configs,
    check_models,
    checked_root,
    embedded_model,
    fit_workload,
    load_decoder,
    make_runner,
    read_workload,
    spec_config,
)
from autospec.cli.compose import Composed
from autospec.cli.console import Terminal
from autospec.cli.contest import Contender, Pick
from autospec.cli.faults import EXIT_FAILED, EXIT_INTERRUPTED, Faults
from autospec.cli.runs import write_config
from autospec.cli.schema import Dtype, ModelSettings, typed
from autospec.config import SpecConfig
from autospec.errors import AutospecWarning, ConfigError
from autospec.paths import new_output_dir
from autospec.policy import Policy, load_policy, portable_source
from autospec.profiling import device_fingerprint
from autospec.records import Measurement, Workload
from autospec.workloads import WorkloadSource

if TYPE_CHECKING:
    from autospec.engine.decoder import SpeculativeDecoder


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """Settings of `bench`; see `conf/bench.yaml`."""

    model: ModelSettings | None = None
    workload: WorkloadSource | None = None
    configs: tuple[Any, ...] = ()
    policies: tuple[str, ...] = ()
    split: Literal["held_out", "tune"] = "held_out"
    repeats: int = 2
    allow_import: tuple[str, ...] = ()
    output_root: str = "outputs"

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise ConfigError(f"`repeats >= 1` must hold, but got {self.repeats}")


@dataclass(slots=True)
class _Bench:
    """What is compared, all of it read and checked."""

    configs: list[SpecConfig] = field(default_factory=list)
    policies: dict[str, Policy] = field(default_factory=dict)
    workload: Workload | None = None

    @property
    def picked(self) -> list[SpecConfig]:
        """What the policies may pick."""
        return [row.config for policy in self.policies.values() for row in policy.rows]


def run(composed: Composed) -> int:
    """Measure, print the tables and write the output folder."""
    faults = Faults(composed.faults)
    settings = typed(BenchSettings, composed.values, faults.found)
    assert settings is not None
    bench = _read(settings, faults)
    model = settings.model or _policies_model(bench.policies, faults)
    check_models(model, faults, settings.allow_import)
    check_configs([*bench.configs, *bench.picked], model, faults)
    root = faults.attempt(lambda: checked_root(settings.output_root))
    faults.raise_if_any()
    assert root is not None
    assert bench.workload is not None
    assert settings.workload is not None
    decoder = load_decoder(model, settings.allow_import)
    bench.workload = fit_workload(bench.workload, settings.workload, decoder)
    contenders = _contenders(bench, decoder, bench.workload)
    folder = new_output_dir(root, "bench")
    write_config(folder, composed.values)
    return _compare(contenders, bench.workload, decoder, settings, folder)


def _read(settings: BenchSettings, faults: Faults) -> _Bench:
    bench = _Bench()
    if not settings.configs and not settings.policies:
        faults.found.append("something to compare must be given: policies=[PATH] or configs=[{drafter:NAME,...}]")
    for index, value in enumerate(settings.configs):
        config = faults.attempt(partial(spec_config, value), f"configs[{index}]")
        if config is not None and config not in bench.configs:
            bench.configs.append(config)
    for path in settings.policies:
        policy = faults.attempt(partial(load_policy, Path(path).expanduser()))
        if policy is not None:
            bench.policies[path] = policy
    if settings.workload is not None:
        source = settings.workload
        bench.workload = faults.attempt(lambda: read_workload(source))
    return bench


def _policies_model(policies: dict[str, Policy], faults: Faults) -> ModelSettings:
    """Return the models that all policies name, or the embedded family where there is no policy."""
    if not policies:
        return embedded_model("bench")
    first = next(iter(policies.values()))
    drafters: dict[str, str | None] = {}
    for path, policy in policies.items():
        if policy.target != first.target or policy.dtype != first.dtype:
            faults.found.append(
                f"all policies must be for one target, {first.target.source} ({first.dtype}), but {path} is for "
                f"{policy.target.source} ({policy.dtype}); name the models to use with model=custom"
            )
        if policy.compile != first.compile:
            faults.found.append(
                f"all policies must be for models compiled alike, compile={first.compile}, but {path} is for "
                f"compile={policy.compile}; name the models to use with model=custom"
            )
        if policy.tokenizer != first.tokenizer:
            faults.found.append(
                f"all policies must be for one tokenizer, {_tokenizer(first)}, but {path} is for "
                f"{_tokenizer(policy)}; name the models to use with model=custom"
            )
        for name, drafter in policy.drafters.items():
            if drafters.setdefault(name, drafter.source) != drafter.source:
                faults.found.append(
                    f"a drafter's name must mean one model in all policies, but {name!r} is {drafters[name]} and, in "
                    f"{path}, {drafter.source}"
                )
    return ModelSettings(
        target=first.target.source,
        drafters=drafters,
        tokenizer=None if first.tokenizer is None else first.tokenizer.source,
        dtype=cast(Dtype, first.dtype),
        revision=first.target.revision,
        compile=first.compile,
    )


def _tokenizer(policy: Policy) -> str:
    return "the target's own" if policy.tokenizer is None else policy.tokenizer.source


def _contenders(bench: _Bench, decoder: SpeculativeDecoder, workload: Workload) -> list[Contender]:
    """Return what competes; everything that a policy may pick must run on this decoder.

    Raises:
        ConfigError: A configuration needs what the decoder has not.
    """
    faults = Faults()
    for config in dict.fromkeys([*bench.configs, *bench.picked]):
        faults.attempt(partial(decoder.check, config), config.short())
    faults.raise_if_any()
    for path, policy in bench.policies.items():
        if policy.sampling != workload.sampling:
            message = f"{path} was tuned for {policy.sampling}, but is measured under {workload.sampling}"
            warnings.warn(message, AutospecWarning, stacklevel=2)
    by_policy = [Contender(path, _pick_by(policy, decoder)) for path, policy in bench.policies.items()]
    return by_policy + [Contender(config.short(), _pick_always(config)) for config in bench.configs]


def _pick_by(policy: Policy, decoder: SpeculativeDecoder) -> Pick:
    return lambda prompt: policy.choose(1, len(decoder.render(prompt)), prompt.category)


def _pick_always(config: SpecConfig) -> Pick:
    return lambda prompt: config


def _compare(
    contenders: list[Contender], workload: Workload, decoder: SpeculativeDecoder, settings: BenchSettings, folder: Path
) -> int:
    """Measure, judge and tell; after Ctrl-C what was measured until then is judged and saved."""
    prompts = workload.held_out if settings.split == "held_out" else workload.tune
    interrupted = False
    with Terminal() as terminal:
        terminal.line(
            f"{len(contenders)} to compare on {len(prompts)} {settings.split} prompts of {workload.name}, "
            f"{settings.repeats} times, each beside plain decoding"
        )
        terminal.begin("bench", len(contenders) * len(prompts) * settings.repeats)
        with (folder / "measurements.jsonl").open("w", encoding="utf-8") as log:

            def on_measured(measurement: Measurement) -> None:
                log.write(json.dumps(measurement.to_json()) + "\n")
                terminal.advance()

            runner = make_runner(decoder, workload)
            try:
                contest.measure(contenders, prompts, runner, settings.repeats, on_measured)
            except KeyboardInterrupt:
                interrupted = True
        alone = contest.against_baseline(contenders, prompts)
        pairs = contest.against_each_other(contenders, prompts)
        document = {
            "interrupted": interrupted,
            "target": portable_source(decoder.target.name),
            "device": device_fingerprint(decoder.target.device, decoder.target.dtype),
            "compile": decoder.target.compiles,
            "workload": {"name": workload.name, "content_hash": workload.content_hash, "split": settings.split},
            "sampling": workload.sampling.to_json(),
            "repeats": settings.repeats,
            **result_document(contenders, alone, pairs),
        }
        (folder / "bench.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        terminal.lines(report_lines(contenders, alone, pairs))
        terminal.line()
        terminal.line(f"{'interrupted, partial result' if interrupted else 'result'}: {folder / 'bench.json'}")
    if interrupted:
        return EXIT_INTERRUPTED
    return EXIT_FAILED if all(contender.failure for contender in contenders) else 0
