"""How often a step waits for the device: once, by every rule that can decide a draft as a whole.

Logits stand for a device's: whatever is computed of them is marked too, and reading a mark's numbers is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.decoder import SpeculativeDecoder
from autospec.engine.drafters import NgramDrafter, SmallModelDrafter

READING = {"tolist", "item", "cpu", "numpy", "nonzero", "masked_select", "unique", "equal", "allclose"}
READING |= {f"__{name}__" for name in ("bool", "int", "float", "index", "array", "contains")}

GREEDY, SAMPLED = SamplingParams(), SamplingParams(temperature=1.0, seed=5)
KNOBS: dict[str, dict[str, Any]] = {
    "typical": {"accept_threshold": 0.5, "accept_delta": 0.5},
    "lenient": {"accept_threshold": 0.5},
    "relaxed": {"accept_top": 2, "accept_delta": 0.4},
    "margin": {"accept_threshold": 0.5},
}
GREEDY_RULES = ("exact", "typical", "lenient", "relaxed", "margin", "contrastive")
SAMPLED_RULES = ("exact", "rejection", "block", "coupled", "typical", "relaxed", "margin")  # others go node by node


class Distant(Tensor):
    """A tensor whose numbers the host has to wait for."""

    reads: ClassVar[Counter[str]] = Counter()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        is_chosen_by_marks = name == "__getitem__" and any(
            isinstance(one, Distant) and one.dtype == torch.bool
            for one in (args[1] if isinstance(args[1], tuple) else args[1:])
        )
        if name in READING or is_chosen_by_marks:
            cls.reads[name] += 1
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.fixture
def far(table: Callable[..., Tensor], table_model: Any) -> Any:
    """A table model on what stands for a device."""

    class Far(table_model):  # type: ignore[misc]
        def forward(self, *args: Any, **options: Any) -> Tensor:
            logits: Tensor = super().forward(*args, **options)
            return logits.as_subclass(Distant)

    Distant.reads.clear()
    return Far(table(0))


@pytest.mark.parametrize("read", [Tensor.tolist, lambda row: int(row[0]), lambda row: row[row > 0.0], Tensor.cpu])
def test_reading_what_was_computed_of_logits_is_seen(far: Any, read: Callable[[Tensor], Any]) -> None:
    row = far.forward(torch.tensor([[1, 2]]), far.new_cache(4))[0, -1].softmax(dim=-1)
    assert not Distant.reads
    read(row)
    assert Distant.reads.total() == 1


def check_one_wait(decoder: SpeculativeDecoder, config: SpecConfig | None, sampling: SamplingParams) -> None:
    drafted = accepted = 0
    for prompt in ([0, 1, 2, 0, 1, 1, 2, 0, 1], [2, 2, 1, 0, 2, 2], [1, 1, 0, 2]):
        Distant.reads.clear()
        (output,) = decoder.generate([prompt], config=config, sampling=sampling, max_new_tokens=24, ignore_eos=True)
        # The prompt's own forward is one more.
        assert Distant.reads.total() == output.stats.num_steps + 1, dict(Distant.reads)
        drafted, accepted = drafted + output.stats.num_drafted, accepted + output.stats.num_accepted
    assert (0 < accepted < drafted) == (config is not None)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_plain_decoding_waits_once_a_step(far: Any, sampling: SamplingParams) -> None:
    check_one_wait(SpeculativeDecoder(far), None, sampling)


@pytest.mark.parametrize(
    ("rule", "sampling"),
    [*((rule, GREEDY) for rule in GREEDY_RULES), *((rule, SAMPLED) for rule in SAMPLED_RULES)],
    ids=lambda one: one if isinstance(one, str) else ("sampled" if one.temperature else "greedy"),
)
def test_a_draft_is_accepted_with_one_wait(
    far: Any, table: Callable[..., Tensor], table_model: Any, rule: str, sampling: SamplingParams
) -> None:
    small = SmallModelDrafter(table_model(0.5 * table(0) + 0.5 * table(1)), far.vocab_size)
    config = SpecConfig("small", 3, accept_rule=rule, **KNOBS.get(rule, {}))
    check_one_wait(SpeculativeDecoder(far, {"small": small}), config, sampling)


def test_a_tree_by_exact_matching_is_accepted_with_one_wait(far: Any) -> None:
    config = SpecConfig("ngram", 3, ngram_min=1, ngram_max=2, tree_shape="trie", tree_width=2, tree_nodes=5)
    check_one_wait(SpeculativeDecoder(far, {"ngram": NgramDrafter()}), config, GREEDY)
    check_one_wait(SpeculativeDecoder(far, {"ngram": NgramDrafter()}), config, SAMPLED)
