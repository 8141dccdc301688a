"""How much memory decoding takes beyond weights and caches: `python benchmarks/memory.py`.

On a random Llama of 110 M parameters in float32, saved and loaded again, each case in a process of its own: what the
process grows by after all imports, at most, over the weights in the form in which they are held and the caches: memory
of its own, without the pages of the checkpoint's file, which the system takes back when it needs them. The peak is
that of loading and decoding together. At most 1.15 is wanted. Takes a minute, needs Linux and the package alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch
from common import arguments, begin, random_llama, random_text, say, write

from autospec import SpecConfig, SpeculativeDecoder
from autospec.engine.drafters import Drafter, NgramDrafter, SmallModelDrafter
from autospec.engine.model import CausalLM, load_model
from autospec.profiling.memory import cache_bytes, weight_bytes

SHAPE = {
    "hidden_size": 768,
    "intermediate_size": 2304,
    "num_hidden_layers": 14,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "max_position_embeddings": 4096,
}
SMALL = SHAPE | {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 2}
VOCAB, NUM_NEW, GOAL = 8192, 16, 1.15
_MIB = 1 << 20
_SECONDS_BETWEEN = 0.002  # looks at what the process holds


@dataclass(frozen=True, slots=True)
class Case:
    """What is decoded.

    Args:
        num_prompts: Side by side.
        prompt_length: Tokens of each.
        drafter: Name of one, or "" for plain decoding.
    """

    num_prompts: int
    prompt_length: int
    drafter: str = ""


CASES = (Case(1, 512), Case(1, 4000), Case(8, 512), Case(1, 512, "draft"), Case(1, 4000, "ngram"))


class Peak:
    """The most memory of its own that this process had while it was watched, beyond what it had before."""

    def __init__(self) -> None:
        self._done, self.before = Event(), _own_bytes()
        self.most = self.before
        self._thread = Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(_SECONDS_BETWEEN):
            self.most = max(self.most, _own_bytes())

    def end(self) -> int:
        """Return its bytes."""
        self._done.set()
        self._thread.join()
        return self.most - self.before


def _own_bytes() -> int:
    """Return what the process holds that is no file's: `RssAnon` of Linux."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """Decode one case in this process and return its bytes."""
    tiny = random_llama("cpu", torch.float32, 64, **(SMALL | {"hidden_size": 48}))
    # Libraries take what they need when they are first called.
    SpeculativeDecoder(CausalLM(tiny, "tiny")).generate([[1, 2, 3]], max_new_tokens=2)
    peak = Peak()
    decoder = _loaded(case, folder)
    seen = _watched_caches(decoder)
    prompts = [random_text(case.prompt_length, VOCAB, seed) for seed in range(case.num_prompts)]
    config = SpecConfig(case.drafter, 4) if case.drafter else None
    decoder.generate(prompts, config=config, max_new_tokens=NUM_NEW, ignore_eos=True, batch_size=case.num_prompts)
    models = _models(decoder)
    needed = sum(weight_bytes(model) for model in models) + sum(seen)
    grown = peak.end()
    return {"case": asdict(case), "peak_bytes": grown, "needed_bytes": needed, "ratio": grown / needed}


def _loaded(case: Case, folder: Path) -> SpeculativeDecoder:
    """Load the models of a case, which have no tokenizer."""
    target = load_model(str(folder / "target"), device="cpu")
    drafters: dict[str, Drafter] = {}
    if case.drafter == "draft":
        drafters["draft"] = SmallModelDrafter(load_model(str(folder / "draft"), device="cpu"), VOCAB)
    elif case.drafter == "ngram":
        drafters["ngram"] = NgramDrafter()
    return SpeculativeDecoder(target, drafters)


def _models(decoder: SpeculativeDecoder) -> list[CausalLM]:
    drafters = (getattr(drafter, "model", None) for drafter in decoder.drafters.values())
    return [decoder.target, *(model for model in drafters if isinstance(model, CausalLM))]


def _watched_caches(decoder: SpeculativeDecoder) -> list[int]:
    """Return a list to which the bytes of every model's cache are added when the next forward has filled it."""
    sizes: list[int] = []
    for model in _models(decoder):
        for name in ("forward", "forward_rows"):
            setattr(model, name, _watched(getattr(model, name), set(), sizes))
    return sizes


def _watched(forward: Any, known: set[int], sizes: list[int]) -> Any:
    def watched(tokens: Any, cache: Any, *rest: Any, **more: Any) -> Any:
        answer = forward(tokens, cache, *rest, **more)
        if id(cache.whole) not in known:
            known.add(id(cache.whole))
            sizes.append(cache_bytes(cache.whole))
        return answer

    return watched


def in_its_own_process(case: Case, folder: Path, threads: int) -> dict[str, Any]:
    """Return what another process measures."""
    command = [sys.executable, __file__, "--case", json.dumps(asdict(case)), "--folder", str(folder)]
    done = subprocess.run([*command, "--threads", str(threads)], capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def save_models(folder: Path) -> None:
    """Save a target and a draft model of random weights."""
    for name, shape in (("target", SHAPE), ("draft", SMALL)):
        random_llama("cpu", torch.float32, VOCAB, **shape).save_pretrained(folder / name)


def main() -> None:
    """Measure and write."""
    parser = arguments(__doc__, "memory")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        torch.set_num_threads(options.threads)
        say(json.dumps(measure(Case(**json.loads(options.case)), options.folder)))
        return
    document = begin(options) | {"shape": SHAPE, "goal": GOAL, "cases": []}
    with tempfile.TemporaryDirectory() as name:
        saving = multiprocessing.get_context("spawn").Process(target=save_models, args=(Path(name),))
        saving.start()
        saving.join()
        for case in CASES:
            result = in_its_own_process(case, Path(name), options.threads)
            document["cases"].append(result)
            mib = [result[key] / _MIB for key in ("peak_bytes", "needed_bytes")]
            say(f"{case}: {mib[0]:.0f} MiB for {mib[1]:.0f} MiB of weights and caches, {result['ratio']:.3f}")
    write(document, options.out)


if __name__ == "__main__":
    main()
