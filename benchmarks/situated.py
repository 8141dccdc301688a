"""The embedded pair in a setting of `benchmarks/transfer.py`: recorded, profiled, chosen for, measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autospec import pocket
from autospec.config import SamplingParams, SpecConfig
from autospec.cost_model import Predictor
from autospec.engine.decoder import SpeculativeDecoder
from autospec.profiling import ProfileSettings, device_fingerprint, profile
from autospec.records import Prompt
from autospec.replay import RecordedPrompt, Recorder, RecordingBudget, Simulator, Trace
from autospec.runners.live import LiveRunner
from autospec.tuning import SearchSpace
from autospec.tuning.situations import Situation
from autospec.workloads import WorkloadSource, load_workload

NUM_RECORDED, NUM_GROUPS, NUM_LONG = 12, 6, 6  # prompts, groups of prompts side by side, prompts of another length
STRETCH = 5.0


@dataclass(frozen=True, slots=True)
class Setting:
    """Where a policy is chosen for, and measured.

    Args:
        threads: Of torch.
        dtype: Of the models.
        batch_size: Prompts side by side.
        prompt_length: Tokens of a prompt, at most; 0 are the workload's own prompts.
    """

    threads: int
    dtype: str
    batch_size: int = 1
    prompt_length: int = 0

    @property
    def num_new(self) -> int:
        """Tokens after each prompt."""
        return 160 if self.prompt_length else 48

    @property
    def name(self) -> str:
        """For people."""
        parts = [f"{self.threads} threads", self.dtype]
        parts += [f"batch {self.batch_size}"] * (self.batch_size > 1)
        parts += [f"prompts of {self.prompt_length:,} tokens"] * (self.prompt_length > 0)
        return ", ".join(parts)


class Situated:
    """The pair and its prompts in a setting.

    Args:
        setting: Which.
        folder: Where stretched models and traces lie, for all settings.
    """

    def __init__(self, setting: Setting, folder: Path) -> None:
        torch.set_num_threads(setting.threads)
        self.setting, self._traces = setting, folder / ("long" if setting.prompt_length else "short")
        target, draft = pocket.target_path(), pocket.draft_path()
        if setting.prompt_length:
            target, draft = (_stretched(source, folder / source.name) for source in (target, draft))
        sources: dict[str, Any] = {"draft": draft, "ngram": "ngram"}
        self.decoder = SpeculativeDecoder.from_pretrained(target, sources, device="cpu", dtype=setting.dtype)
        workload = WorkloadSource(pocket.workload_path(), name="pocket", max_new_tokens=setting.num_new)
        self._tune = load_workload(workload).tune

    @property
    def prompts(self) -> list[Prompt]:
        """What is measured."""
        size, setting = self.setting.batch_size, self.setting
        if setting.prompt_length:
            return [self._behind_others(number) for number in range(NUM_LONG)]
        if size == 1:
            return list(self._tune[:NUM_RECORDED])
        return Situation(size).groups(self._tune[: NUM_GROUPS * size], lambda prompt: 0)

    def record(self) -> None:
        """Record the short prompts."""
        asked = [
            RecordedPrompt(one.prompt_id, one.category, tuple(self.decoder.render(one))) for one in self._recorded
        ]
        recorder = Recorder(self.decoder, RecordingBudget(width=4))
        recorder.record(asked, self.setting.num_new).save(self._traces)

    def choose(self) -> dict[str, Any]:
        """Profile here, and choose by that and the trace alone."""
        (kept,) = sorted(self._traces.iterdir())
        trace, candidates = Trace.load(kept), all_candidates()
        length = self._middle_length if self.setting.prompt_length else None
        made = profile(self.decoder, self._text, self._profile_settings(trace, length))
        predictor = Predictor(Simulator(trace, self.decoder.drafters), made, prompt_length=length)
        if self.setting.batch_size > 1:
            values = predictor.for_batches(self.setting.batch_size).log_speedups(candidates)
        else:
            values = [None if one is None else one.log_speedup for one in predictor.predict(candidates)]
        prices = {config: value for config, value in zip(candidates, values, strict=True) if value is not None}
        best = max(prices, key=lambda config: prices[config])
        return {
            "machine": dict(device_fingerprint(self.decoder.target.device, self.decoder.target.dtype)),
            "trace": trace.content_hash,
            "chosen": best.to_json(),
            "num_priced": len(prices),
            "predicted": {config.config_hash: value for config, value in prices.items()},
        }

    def measure(self, configs: Sequence[SpecConfig], repeats: int) -> dict[str, dict[str, list[float]]]:
        """Measure configurations: hash to prompt to log speedups, in the order of repeats."""
        runner = LiveRunner(self.decoder, SamplingParams(), self.setting.num_new)
        prompts = self.prompts
        for prompt in prompts[:2]:
            runner.measure(SpecConfig(), prompt, stage="warm_up", trial=-1, repeat=0)
        found: dict[str, dict[str, list[float]]] = {config.config_hash: {} for config in configs}
        for repeat in range(repeats):
            for prompt in prompts:
                for config in configs:
                    one = runner.measure(config, prompt, stage="transfer", trial=-1, repeat=repeat)
                    found[config.config_hash].setdefault(prompt.prompt_id, []).append(one.log_speedup)
        return found

    @property
    def _recorded(self) -> Sequence[Prompt]:
        return self._tune[:NUM_RECORDED]

    @property
    def _text(self) -> list[int]:
        """What the profile runs steps behind."""
        shown = self.prompts if self.setting.prompt_length else self._recorded
        return [token for one in shown for token in self.decoder.render(one)]

    @property
    def _middle_length(self) -> int:
        return int(np.mean([len(self.decoder.render(one)) for one in self.prompts]))

    def _profile_settings(self, trace: Trace, length: int | None) -> ProfileSettings:
        low, high = int(trace.contexts.min()) - 1, int(trace.contexts.max()) - 1
        sizes = (self.setting.batch_size,) if self.setting.batch_size > 1 else ()
        if length is not None:
            low, high = length, length + self.setting.num_new
        contexts = tuple(sorted({low, (low + high) // 2, high}))
        return ProfileSettings(budget_seconds=60.0 if length else 20.0, contexts=contexts, batch_sizes=sizes)

    def _behind_others(self, number: int) -> Prompt:
        """Return a recorded prompt behind as many of the others as fit."""
        own, text = self._tune[number], self._tune[number].text
        for other in self._tune[NUM_RECORDED * (1 + number) :]:
            longer = f"{other.text}\n\n{text}"
            if len(self.decoder.render(replace(own, text=longer))) > self.setting.prompt_length:
                break
            text = longer
        return replace(own, text=text)


def _stretched(source: Path, place: Path) -> Path:
    """Return a copy of a model that reads texts several times as long."""
    if not place.is_dir():
        shutil.copytree(source, place)
        config = json.loads((place / "config.json").read_text())
        usual, most = config["rope_parameters"], config["max_position_embeddings"]
        stretch = {"rope_type": "yarn", "factor": STRETCH, "original_max_position_embeddings": most}
        config |= {"rope_parameters": {**usual, **stretch}, "max_position_embeddings": int(STRETCH * most)}
        (place / "config.json").write_text(json.dumps(config))
    return place


def all_candidates() -> list[SpecConfig]:
    """Return what may be chosen."""
    spaces = (SearchSpace.load("chain").walk(), SearchSpace.load(Path(__file__).parent / "grid.yaml").walk())
    return list(dict.fromkeys(config for space in spaces for config in space if config.accept_rule == "exact"))
