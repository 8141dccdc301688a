"""Drafters of one's own: what is asked of them, and that one given as an object or by a factory changes no text."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autospec import pocket
from autospec.config import SamplingParams, SpecConfig
from autospec.engine.decoder import SpeculativeDecoder
from autospec.engine.drafters import DraftPlan, Needs, Trail
from autospec.engine.own_drafters import drafter_faults, import_drafter
from autospec.engine.tree import TokenTree, chain
from autospec.errors import ConfigError, ModelError

PROMPT = list(range(5, 17)) * 2


class Echo:
    """Says again what stood `distance` tokens back."""

    source, has_probs, shapes, needs = "echo", False, ("chain",), Needs()

    def __init__(self, distance: int = 12) -> None:
        self.distance = distance

    def start(self, prompt_ids: Sequence[int], plan: DraftPlan) -> None:
        self.text = list(prompt_ids)

    def propose(self, max_length: int) -> TokenTree:
        return chain(self.text[-self.distance :][:max_length])

    def commit(self, token_ids: Sequence[int], trail: Trail | None = None) -> None:
        self.text += token_ids


MODULE = "own_drafter_of_test"
CODE = """
from echo_of_test import Echo

def echo(target, text): return Echo(12 if target.vocab_size else 0)
def nothing(target, text): return None
def broken(target, text): raise KeyError("left")
def leaving(target, text): raise SystemExit(3)
class Frozen(Echo):
    __slots__ = ()
    source = property(lambda self: "frozen")
def frozen(target, text): return Frozen()
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / f"{MODULE}.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "echo_of_test", sys.modules[__name__])
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    return MODULE


def load(drafter: Any, **options: Any) -> SpeculativeDecoder:
    return SpeculativeDecoder.from_pretrained(pocket.target_path(), {"own": drafter}, device="cpu", **options)


def test_a_good_drafter_has_no_faults() -> None:
    assert drafter_faults(Echo()) == []


def test_every_fault_of_an_object_is_told() -> None:
    half = SimpleNamespace(source=3, has_probs=1, shapes=["chain"], needs=None, start=len, propose="x")
    assert drafter_faults(half) == [
        "it lacks commit",
        "its source must be text, but is 3",
        "its has_probs must be true or false, but is 1",
        "its shapes must be a tuple of names of ['chain', 'static', 'optimal', 'beam', 'best_first', 'trie'], "
        "but is ['chain']",
        "its needs must be a `Needs`, but is None",
        "its propose must be a method, but is 'x'",
    ]
    assert drafter_faults(Echo) == ["it is the class Echo itself and no instance of it"]
    assert drafter_faults(object())[0] == "it lacks source, has_probs, shapes, needs, start, propose, commit"


def test_an_object_that_is_no_drafter_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"but `own` is .*it lacks source"):
        load(object())


@pytest.mark.parametrize("sampling", [SamplingParams(), SamplingParams(temperature=0.8, seed=3)])
@pytest.mark.parametrize("rule", ["exact", "multi_candidate"])
def test_an_object_drafts_and_changes_nothing_that_is_written(sampling: SamplingParams, rule: str) -> None:
    decoder = load(Echo())
    config = SpecConfig("own", 6, accept_rule=rule)
    plain = decoder.generate([PROMPT], sampling=sampling, max_new_tokens=24)[0]
    ours = decoder.generate([PROMPT], config=config, sampling=sampling, max_new_tokens=24)[0]
    if rule == "exact" or sampling.is_greedy:
        assert ours.token_ids == plain.token_ids
    assert ours.stats.num_drafted > 0
    assert ours.stats.num_accepted > 0


def test_a_shape_it_does_not_draft_is_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match=r"drafts the shapes .*but got .trie."):
        load(Echo()).generate([PROMPT], config=SpecConfig("own", 4, tree_shape="trie"))


def test_a_factory_makes_one_that_says_how_it_was_made(own_module: str) -> None:
    decoder = load(f"import:{own_module}:echo", allow_import=[own_module])
    assert isinstance(decoder.drafters["own"], Echo)
    assert decoder.drafters["own"].source == f"import:{own_module}:echo"
    plain = decoder.generate([PROMPT], max_new_tokens=16)[0]
    assert decoder.generate([PROMPT], config=SpecConfig("own", 6), max_new_tokens=16)[0].token_ids == plain.token_ids


def test_a_factory_that_is_not_allowed_does_not_run(own_module: str) -> None:
    with pytest.raises(ConfigError, match=rf"`allow_import=\[{own_module}\]`"):
        load(f"import:{own_module}:echo")
    assert own_module not in sys.modules


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("nothing", "must return a `Drafter`, but of its NoneType: it lacks source"),
        ("broken", "must return a drafter, but failed: KeyError: 'left'"),
        ("leaving", "must return a drafter, but failed: SystemExit: 3"),
        ("frozen", "its source must be possible to set, but: "),
    ],
)
def test_a_factory_that_makes_no_drafter_is_told_of(factory: str, message: str, own_module: str) -> None:
    target: Any = SimpleNamespace(vocab_size=8)
    with pytest.raises(ModelError, match=message):
        import_drafter(f"{own_module}:{factory}", target, None, [own_module])
