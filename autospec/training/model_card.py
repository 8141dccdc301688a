"""The model card of a pocket family, written from its figures, its recipe and its list of packages alone.

Knows what the figures must reach and how to reproduce them; measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autospec.training.settings import PocketRecipe

CURVE_ROWS = 16


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure, what it must reach, and whether larger is better."""

    name: str
    reached: float
    bound: float
    larger_is_better: bool

    @property
    def is_met(self) -> bool:
        """Whether the figure is on the right side of its bound."""
        return self.reached >= self.bound if self.larger_is_better else self.reached <= self.bound

    @property
    def row(self) -> str:
        """The figure as a row of a table."""
        sign = "at least" if self.larger_is_better else "at most"
        return f"| {self.name} | {sign} {self.bound:g} | {self.reached:.3f} | {'yes' if self.is_met else 'no'} |"


def goals(metrics: Mapping[str, Any]) -> list[Goal]:
    """Return every figure that has something to reach."""
    acceptance = metrics["position_acceptance_0"]
    categories = [name for name in acceptance if name != "overall"]
    return [
        Goal("`position_acceptance[0]` over all", acceptance["overall"], 0.6, True),
        *(Goal(f"`position_acceptance[0]` on `{name}`", acceptance[name], 0.45, True) for name in categories),
        Goal("draft forward / target forward", metrics["forward_seconds"]["ratio"], 0.15, False),
        Goal("held-out bits per byte", metrics["bits_per_byte"]["value"], 1.2, False),
        *(
            Goal(f"tokens inside a verbatim loop on `{name}`", metrics["loop_share"][name], 0.15, False)
            for name in ("complete", "docs")
        ),
    ]


def verdicts(metrics: Mapping[str, Any]) -> list[str]:
    """Return a line for each goal."""
    return [f"{goal.name}: {goal.reached:.3f} ({'met' if goal.is_met else 'missed'})" for goal in goals(metrics)]


def curve_table(curve: Sequence[Sequence[float]]) -> str:
    """Return the loss in at most `CURVE_ROWS` stretches of equal length, each the mean of its steps."""
    size = -(-len(curve) // CURVE_ROWS)
    stretches = [curve[first : first + size] for first in range(0, len(curve), size)]
    rows = [f"| {part[-1][0]:,.0f} | {sum(loss for _, loss in part) / len(part):.3f} |" for part in stretches]
    return "\n".join(["| tokens seen | mean loss (nats per token) |", "|---:|---:|", *rows])


def _packages_table(packages: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        f"| {row['package']} | {row['version']} | {row['licence']} | {row['num_files']:,} | {row['num_bytes']:,} |"
        for row in packages
    ]
    total = (
        f"| all | | | {sum(row['num_files'] for row in packages):,} | {sum(row['num_bytes'] for row in packages):,} |"
    )
    return "\n".join(["| package | version | licence | files | bytes |", "|---|---|---|---:|---:|", *rows, total])


def _acceptance_table(metrics: Mapping[str, Any]) -> str:
    names = list(metrics["position_acceptance_0"])
    lines = ["| prompts | every position | live, positions 0, 1, 2, 3 | in verbatim loops |", "|---|---:|---|---:|"]
    for name in names:
        live = ", ".join(f"{value:.2f}" for value in metrics["live_position_acceptance"][name])
        loops = f"{metrics['loop_share'][name]:.3f}" if name in metrics["loop_share"] else ""
        lines.append(f"| {name} | {metrics['position_acceptance_0'][name]:.3f} | {live} | {loops} |")
    return "\n".join(lines)


def _samples(metrics: Mapping[str, Any]) -> str:
    parts = []
    for sample in metrics["samples"]:
        parts.append(f"`{sample['id']}`, end of the prompt:\n\n````python\n{sample['prompt']}\n````\n")
        parts.append(f"and what the target wrote:\n\n````python\n{sample['continuation']}\n````\n")
    return "\n".join(parts)


def _shape(recipe: PocketRecipe, name: str, metrics: Mapping[str, Any]) -> str:
    shape = getattr(recipe, name).shape
    size = metrics["size"][name]
    return (
        f"| {name} | {shape.num_layers} | {shape.hidden_size} | {shape.num_heads} | {shape.intermediate_size} "
        f"| {'tied' if shape.tied_embeddings else 'own head'} | {size['num_parameters']:,} | {size['num_bytes']:,} |"
    )


def render(metrics: Mapping[str, Any], packages: Sequence[Mapping[str, Any]], recipe: PocketRecipe) -> str:
    """Return the whole card as Markdown."""
    return "\n\n".join(
        [
            _INTRODUCTION,
            _reached(metrics),
            _shapes(metrics, recipe),
            _figures(metrics),
            _recipe(metrics, recipe),
            f"{_CORPUS}\n\n{_packages_table(packages)}",
            f"{_SAMPLES}\n\n{_samples(metrics)}",
        ]
    )


_INTRODUCTION = """# The pocket family

Two small language models of Python source, a target and a draft distilled from it, made so that speculative decoding
can be tuned, tested and shown without a download. They write text that looks like Python; they are of no use as
assistants. The weights come under the licence of this repository; the prompts of `workload.jsonl` are excerpts of the
files that their `source` names and stay under those packages' licences, listed below.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("autospec/pocket/target")
tokenizer = AutoTokenizer.from_pretrained("autospec/pocket/target")
```"""

_CORPUS = """## Corpus

Python sources of the standard library and of installed packages with permissive licences, near-copies dropped, whole
files held out, and edited copies of functions made from them."""

_SAMPLES = """## Samples

Greedy continuations of the first held-out prompts of each category."""


def _reached(metrics: Mapping[str, Any]) -> str:
    device = metrics["device"]
    return f"""## What was to be reached

Held-out prompts and files, float32, {device["device_name"]}, {device["num_threads"]} of {device["num_cores"]} cores.

| figure | wanted | reached | met |
|---|---|---:|---|
{chr(10).join(goal.row for goal in goals(metrics))}

`python -m autospec train recipe=pocket recipe.stages=[corpus,evaluate]` measures all figures of this card again and
writes them to `metrics.json` in its output folder; the corpus, and with it the bits per byte, is the same
only with the package versions below (`manifest.json.xz` holds the sha256 of every file)."""


def _shapes(metrics: Mapping[str, Any], recipe: PocketRecipe) -> str:
    forward, shape = metrics["forward_seconds"], recipe.target.shape
    return f"""## Shapes

| model | layers | hidden | heads | intermediate | embeddings | parameters | bytes (bfloat16) |
|---|---:|---:|---:|---:|---|---:|---:|
{_shape(recipe, "target", metrics)}
{_shape(recipe, "draft", metrics)}

Llama architecture, context {shape.context_length:,}, byte-level BPE of {recipe.corpus.vocab_size:,} tokens.
A one-token forward with plain transformers behind {forward["context"]} tokens takes
{forward["target"] * 1e3:.2f} ms (target) and {forward["draft"] * 1e3:.2f} ms (draft)."""


def _figures(metrics: Mapping[str, Any]) -> str:
    bits = metrics["bits_per_byte"]
    return f"""## Figures

Held-out bits per byte: {bits["value"]:.3f} in windows of {bits["window"]:,} tokens, over {bits["num_files"]} files of
{bits["num_bytes"]:,} bytes that share at most 5 % of their lines with files trained on.

Acceptance under greedy decoding. "Every position" compares the draft's first choice with the next token at every
position of the target's own continuation; "live" is `position_acceptance` of the engine with drafts of 4 tokens,
which tests only the positions at which steps start. A verbatim loop is a span of at least 4 tokens, 3 times or more in
a row.

{_acceptance_table(metrics)}"""


def _recipe(metrics: Mapping[str, Any], recipe: PocketRecipe) -> str:
    target, draft = metrics["training"]["target"], metrics["training"]["draft"]
    return f"""## Recipe

`python -m autospec train recipe=pocket` (`conf/recipe/pocket.yaml`, seed {recipe.seed}). Muon for the matrices of the
layers, AdamW for the rest, bfloat16 autocast.

- Target: {target["trunk_tokens"]:,} tokens at constant rate in windows of {recipe.target.trunk_window:,}, then
  {target["decay_tokens"]:,} tokens of linear decay in windows of {recipe.target.decay_window:,}.
- Draft: {draft["tokens"]:,} tokens of distillation, half of them corpus, half continuations that the target wrote,
  greedy and sampled at temperature 0.8. Loss: divergence from the target's distribution, plus
  {draft["greedy_weight"]:g} times the cross-entropy to its first choice.

Target:

{curve_table(target["curve"])}

Draft (its loss is the divergence and the weighted cross-entropy together):

{curve_table(draft["curve"])}"""
