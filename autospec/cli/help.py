"""Help texts: what each command does, its groups and settings, examples.

Read from `conf/` where it can be, so that no choice is listed that is not there. Composes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from autospec.cli.settings_help import defaults, group_lines, leaves, setting_lines
from autospec.paths import data_dir


@dataclass(frozen=True, slots=True)
class Command:
    """What the help says about a command."""

    summary: str
    description: str
    examples: tuple[str, ...]


COMMANDS = {
    "tune": Command(
        "find the fastest policy for a model, a workload and this machine",
        "Measures plain decoding, searches configurations, confirms the best on held-out prompts and writes\n"
        "policy.json and its evidence to outputs/tune/<date_time>/. Started again, it goes on with the newest\n"
        "unfinished run of the same configuration, workload and device.",
        (
            "python -m autospec tune",
            "python -m autospec tune study=quick workload=pocket_edit",
            "python -m autospec tune study.trials=60 study.minutes=15 search_space=my_space.yaml",
            "python -m autospec tune model=custom model.target=Qwen/Qwen3-8B model.drafters.draft=Qwen/Qwen3-0.6B "
            "workload=file workload.path=prompts.jsonl",
            "python -m autospec tune dry_run=true",
            "python -m autospec tune --multirun workload=pocket,pocket_sampled",
        ),
    ),
    "bench": Command(
        "compare policies and configurations with plain decoding",
        "Measures each of them beside plain decoding, interleaved, on the same prompts; says for every category\n"
        "which is faster and which cannot be told apart. Writes bench.json to outputs/bench/<date_time>/.",
        (
            "python -m autospec bench 'policies=[outputs/tune/2026-01-31_12-00-00/policy.json]'",
            "python -m autospec bench 'configs=[{drafter:draft,draft_length:4},{drafter:ngram,draft_length:8}]'",
            "python -m autospec bench 'policies=[a.json,b.json]' workload=pocket_docs repeats=4",
        ),
    ),
    "profile": Command(
        "measure what target, drafters and host cost on this machine",
        "Times real steps of the engine on text of the workload: target forwards by number of tokens, context and\n"
        "rows, every drafter by depth, width and context, prefills, the host's part, memory. Writes\n"
        "outputs/profiles/<key>.json, one for each device, dtype, set of models and versions, compiled or not.",
        (
            "python -m autospec profile",
            "python -m autospec profile hardware=auto",
            "python -m autospec profile costs.budget_seconds=120 'costs.contexts=[64,512,2048]'",
            "python -m autospec profile model=custom model.target=Qwen/Qwen3-8B model.drafters.draft=Qwen/Qwen3-0.6B "
            "workload=file workload.path=prompts.jsonl",
            "python -m autospec profile hardware=another_machine.json",
        ),
    ),
    "replay": Command(
        "find the best policy for a device from its profile alone",
        "Replays configurations on a recorded trace and prices their steps by a hardware profile, which may be of\n"
        "another device. Loads no models: what it says is predicted, not measured there. Writes replay.json to\n"
        "outputs/replay/<date_time>/.",
        (
            "python -m autospec replay trace=outputs/tune/2026-01-31_12-00-00/trace hardware=another_machine.json",
            "python -m autospec replay trace=TRACE hardware=PROFILE search_space=tree trials=5000",
        ),
    ),
    "generate": Command(
        "stream text and see how the drafts fared",
        "Text goes to standard output, the statistics of acceptance to standard error. Without a policy and a\n"
        "configuration, speculation is off.",
        (
            'python -m autospec generate policy=policy.json prompt="def read_lines(path):"',
            "python -m autospec generate prompt='import os' 'config={drafter:ngram,draft_length:8}' max_new_tokens=64",
            "python -m autospec generate policy=policy.json prompt_file=question.txt temperature=0.8 seed=7",
        ),
    ),
    "train": Command(
        "make the embedded models, or a family of your own, by a recipe",
        "Builds the corpus, trains the tokenizer, the target and the draft, and writes weights that plain\n"
        "transformers loads. What was finished before is not done again.",
        (
            "python -m autospec train recipe=pocket",
            "python -m autospec train recipe=pocket recipe.device=cuda",
        ),
    ),
    "datastore": Command(
        "make text files into a datastore to draft from",
        "Reads files with the tokenizer of a model and writes what the drafter datastore:PATH looks through: what\n"
        "followed the longest ending of the text that occurs in them. It serves models with that tokenizer only.",
        (
            "python -m autospec datastore 'paths=[src,docs]' output=my_datastore",
            "python -m autospec datastore 'paths=[notes.txt]' model=custom model.target=Qwen/Qwen3-8B output=my_notes",
            "python -m autospec datastore 'paths=[src]' output=my_datastore max_tokens=50000000",
        ),
    ),
    "mlflow": Command(
        "browse the experiments that tune logged",
        "Starts MLflow's server on the store under outputs/, for this machine only, until Ctrl-C.",
        ("python -m autospec mlflow", "python -m autospec mlflow port=5001"),
    ),
}


def overview() -> str:
    """Return the list of commands."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: python -m autospec COMMAND [NAME=VALUE ...]",
            "",
            "autospec finds the fastest speculative-decoding policy that does not hurt quality.",
            "",
            "commands:",
            *(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()),
            "",
            "python -m autospec COMMAND --help shows settings and examples; --version the version.",
        ]
    )


def command_help(name: str) -> str:
    """Return usage, groups, settings and examples of one command."""
    command, conf = COMMANDS[name], data_dir("conf")
    choices = dict(_choices(conf / f"{name}.yaml"))
    sections = [
        f"usage: python -m autospec {name} [NAME=VALUE ...]",
        "",
        command.description,
        "",
        "examples:",
        *(f"  {example}" for example in command.examples),
    ]
    if choices:
        sections += ["", "choices (GROUP=CHOICE):", *_groups(choices, conf)]
    sections += ["", "settings (NAME=VALUE):", *setting_lines(leaves(conf / f"{name}.yaml"))]
    for group, default in choices.items():
        sections += ["", *group_lines(conf, group, default)]
    sections += ["", "--cfg job prints the composed configuration, --multirun runs every combination of a,b,c."]
    return "\n".join(sections)


def _choices(path: Path) -> Iterator[tuple[str, str | None]]:
    """Yield the groups that a command chooses from, with the choice it takes by itself."""
    for entry in defaults(path):
        if isinstance(entry, dict):
            yield from entry.items()


def _groups(choices: Mapping[str, str | None], conf: Path) -> Iterator[str]:
    for group, default in choices.items():
        names = sorted(path.stem for path in (conf / group).glob("*.yaml"))
        marked = [f"{name} (default)" if name == default else name for name in names]
        yield f"  {group:<14} {', '.join(marked)}"
