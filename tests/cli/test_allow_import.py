"""Code of one's own on the command line: it runs where the command line itself allows it, and nowhere else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from autospec.cli import main
from autospec.cli.compose import compose_values, plain_values

MODULE = "own_drafters_of_test"
CODE = """
from autospec.engine.drafters import Needs
from autospec.engine.tree import chain

class Repeat:
    source, has_probs, shapes, needs = "repeat", False, ("chain",), Needs()
    def start(self, prompt_ids, plan): self.last = prompt_ids[-1]
    def propose(self, max_length): return chain([self.last] * max_length)
    def commit(self, token_ids, trail=None): self.last = token_ids[-1]

def make(target, text): return Repeat()
"""
OWN = [
    "model=pocket",
    f"model.drafters.own=import:{MODULE}:make",
    "config={drafter:own,draft_length:3}",
    "prompt=import os",
]


@pytest.fixture
def own_module(in_empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module in the folder in which the command is started."""
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(Path.cwd()))])
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    file = in_empty_folder / f"{MODULE}.py"
    file.write_text(CODE)
    return file


def test_a_drafter_of_ones_own_generates(own_module: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "prompt=import os", "config=off", "max_new_tokens=12"]) == 0
    plain = capsys.readouterr().out
    assert main(["generate", *OWN, f"allow_import=[{MODULE}]", "max_new_tokens=12"]) == 0
    shown = capsys.readouterr()
    assert shown.out == plain
    assert "draft tokens accepted" in shown.err


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("generate", OWN, f"with `allow_import=[{MODULE}]` on the command line"),
        ("generate", [*OWN, "allow_import=[other]"], "and allowed are ['other']"),
        ("bench", [*OWN[:2], "configs=[{drafter:own}]"], f"with `allow_import=[{MODULE}]` on the command line"),
        ("tune", [OWN[1]], f"with `allow_import=[{MODULE}]` on the command line"),
        ("tune", [OWN[1][:-1], f"allow_import=[{MODULE}]"], "`mak` is not there; did you mean `make`?"),
    ],
)
def test_what_may_not_or_cannot_be_imported_is_bad_input(
    command: str, words: list[str], message: str, own_module: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, *words]) == 2
    assert message in capsys.readouterr().err
    assert [one.name for one in own_module.parent.iterdir() if one.suffix] == [own_module.name]


def test_nothing_but_the_command_line_allows_it() -> None:
    from omegaconf import OmegaConf

    config = OmegaConf.create({"allow_import": ["os"]})
    rule = "`allow_import` must be given on the command line itself, but a file sets it to ['os']"
    assert plain_values(config).faults == [rule]
    # A sweep of a file reaches a job among its overrides, but was not typed.
    assert plain_values(config, ["allow_import=[os]"], ["--multirun", "seed=1,2"]).faults == [rule]
    assert plain_values(config, ["allow_import=[os]"], ["--multirun", "allow_import=[os]"]).faults == []
    assert compose_values("generate", ["prompt=x", "allow_import=[os]"]).faults == []
