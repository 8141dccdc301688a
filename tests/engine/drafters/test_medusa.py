"""Medusa heads in the published layout, fitted to what a tiny target writes so that they are right now and then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from autospec.config import SamplingParams, SpecConfig
from autospec.engine.cache import KVCache
from autospec.engine.decoder import SpeculativeDecoder
from autospec.engine.drafters import Drafter, DraftPlan, MedusaDrafter, Trail
from autospec.engine.model import CausalLM
from autospec.engine.termination import Stopping
from autospec.errors import ModelError

WIDTH, NUM_HEADS, NUM_LAYERS = 32, 3, 2


def make_weights(target: CausalLM, has_own_heads: bool, prompts: Any) -> dict[str, Tensor]:
    """Random blocks; heads of their own are least-squares fits of the tokens that the target writes."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for head in range(NUM_HEADS):
        for layer in range(NUM_LAYERS):
            weights[f"{head}.{layer}.linear.weight"] = 0.05 * torch.randn(WIDTH, WIDTH, generator=generator)
            weights[f"{head}.{layer}.linear.bias"] = 0.05 * torch.randn(WIDTH, generator=generator)
    if has_own_heads:
        outputs = SpeculativeDecoder(target).generate(prompts, max_new_tokens=14, ignore_eos=True)
        texts = torch.tensor([[*prompt, *one.token_ids][-20:] for prompt, one in zip(prompts, outputs, strict=True)])
        hidden = target.forward_with_hidden(texts, KVCache(20, len(texts)), (-1,))[1]
        for head in range(NUM_HEADS):
            states = torch.cat([by_hand(weights, row, head) for row in hidden[:, : -2 - head]])
            wanted = torch.nn.functional.one_hot(texts[:, 2 + head :].reshape(-1), target.vocab_size).float()
            weights[f"{head}.{NUM_LAYERS}.weight"] = (
                torch.linalg.lstsq(states + 0.2 * torch.randn(states.shape, generator=generator), wanted).solution.T
                * 8
            )
    return {name: weight.contiguous() for name, weight in weights.items()}


def by_hand(weights: dict[str, Tensor], hidden: Tensor, head: int) -> Tensor:
    """The residual blocks, written down again."""
    for layer in range(NUM_LAYERS):
        inner = hidden @ weights[f"{head}.{layer}.linear.weight"].T + weights[f"{head}.{layer}.linear.bias"]
        hidden = hidden + inner / (1 + torch.exp(-inner))
    return hidden


def save(folder: Path, weights: dict[str, Tensor], kind: str = "pt", **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    config = {"medusa_num_heads": NUM_HEADS, "medusa_num_layers": NUM_LAYERS, "version": "2", **changes}
    (folder / "config.json").write_text(json.dumps(config))
    if kind == "pt":
        torch.save(weights, folder / "medusa_lm_head.pt")
    else:
        save_file(weights, folder / "medusa_lm_head.safetensors")
    return folder


@pytest.fixture(scope="module")
def target(tiny_model: Any) -> CausalLM:
    return CausalLM(tiny_model("llama", vocab_size=16), "target")


@pytest.fixture(scope="module")
def drafter(target: CausalLM, checks: Any, tmp_path_factory: pytest.TempPathFactory) -> MedusaDrafter:
    weights = make_weights(target, True, checks.prompts)
    return MedusaDrafter.load(str(save(tmp_path_factory.mktemp("medusa") / "own", weights)), target)


def test_laws(law: Any, target: CausalLM, drafter: Drafter, config: SpecConfig) -> None:
    law(target, drafter, config)


def test_rows_that_are_mixed_up_are_seen(target: CausalLM, drafter: Drafter, checks: Any, monkeypatch: Any) -> None:
    checks.check_mixed_rows_are_seen(target, drafter, monkeypatch)


def test_what_a_trace_lacks_is_added(target: CausalLM, drafter: Drafter, checks: Any, tmp_path: Path) -> None:
    checks.check_replay_on_demand(target, drafter, tmp_path)


def test_the_distribution_is_the_target_s(law_2: Any, tiny_model: Any, checks: Any, tmp_path: Path) -> None:
    target = CausalLM(tiny_model("llama", vocab_size=4), "target")
    drafter = MedusaDrafter.load(str(save(tmp_path, make_weights(target, True, checks.prompts))), target)
    law_2(target, drafter)


def drafted(drafter: MedusaDrafter, target: CausalLM, text: list[int], length: int, **knobs: Any) -> Any:
    config = SpecConfig("drafter", length, **knobs)
    hidden = target.forward_with_hidden(torch.tensor([text[:-1]]), KVCache(len(text)), (-1,))[1][0]
    drafter.start(text[:-1], DraftPlan(config, SamplingParams(), 0, 100, Stopping(config), KVCache(1)))
    drafter.commit(text[-1:], Trail(0, None, hidden))
    return drafter.propose(length), hidden[-1]


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
@pytest.mark.parametrize("has_own_heads", [True, False])
def test_heads_are_blocks_under_a_language_model_head(
    target: CausalLM, checks: Any, tmp_path: Path, kind: str, has_own_heads: bool
) -> None:
    weights = make_weights(target, has_own_heads, checks.prompts)
    drafter = MedusaDrafter.load(str(save(tmp_path, weights, kind)), target)
    tree, hidden = drafted(drafter, target, [1, 2, 3, 4], 3)
    expected = []
    for head in range(NUM_HEADS):
        last = weights[f"{head}.{NUM_LAYERS}.weight"] if has_own_heads else target.model.lm_head.weight
        expected.append(int((last @ by_hand(weights, hidden, head)).argmax()))
    assert tree.token_ids.tolist() == expected


def test_a_tree_holds_the_best_tokens_of_each_depth_under_every_parent(
    target: CausalLM, drafter: MedusaDrafter
) -> None:
    paths = ((0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1))
    tree, hidden = drafted(drafter, target, [3, 2, 1], 2, tree_shape="static", tree_paths=paths)
    first, second = (drafter.heads.logits(hidden, head).topk(2).indices.tolist() for head in (0, 1))
    assert tree.token_ids.tolist() == [*first, *second, *second]
    assert tree.parents == (-1, -1, 0, 0, 1, 1)


def test_drafts_are_as_deep_as_there_are_heads(target: CausalLM, drafter: MedusaDrafter) -> None:
    assert drafted(drafter, target, [3, 2, 1], 9)[0].num_nodes == NUM_HEADS


def test_it_is_made_from_its_source_even_out_of_a_whole_model(target: CausalLM, checks: Any, tmp_path: Path) -> None:
    weights = make_weights(target, False, checks.prompts)
    whole = {f"medusa_head.{name}": weight for name, weight in weights.items()}
    folder = save(tmp_path, whole | {"model.norm.weight": torch.ones(3)})
    decoder = SpeculativeDecoder.from_pretrained(target.model, {"heads": f"medusa:{folder}"})
    assert decoder.drafters["heads"].source == f"medusa:{folder}"
    output = decoder.generate([[1, 2, 3]], config=SpecConfig("heads", 3), max_new_tokens=6)[0]
    assert output.token_ids == decoder.generate([[1, 2, 3]], max_new_tokens=6)[0].token_ids


def test_heads_that_do_not_fit_are_refused(target: CausalLM, checks: Any, tmp_path: Path) -> None:
    weights = make_weights(target, False, checks.prompts)
    for changes, message in (
        ({"medusa_num_heads": 4}, r"`3\.0\.linear\.weight` .* must be \(32, 32\), but it is missing"),
        ({"medusa_num_heads": 0}, "`medusa_num_heads` .* must be a whole number from 1 on, but got 0"),
        ({"medusa_num_heads": "3"}, "must be a whole number from 1 on, but got '3'"),
    ):
        with pytest.raises(ModelError, match=message):
            MedusaDrafter.load(str(save(tmp_path, weights, **changes)), target)
    wide = weights | {"0.2.weight": torch.zeros(17, WIDTH)}
    with pytest.raises(ModelError, match=r"must be \(16, 32\), but it is \(17, 32\)"):
        MedusaDrafter.load(str(save(tmp_path, wide)), target)


def test_files_that_are_missing_or_damaged_are_refused(target: CausalLM, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"need config\.json and one of .* has \['config\.json'\]"):
        MedusaDrafter.load(str(tmp_path), target)
    (tmp_path / "medusa_lm_head.pt").write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="cannot be read"):
        MedusaDrafter.load(str(tmp_path), target)


class Payload:
    """An object that would run code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("touched"),)


def test_a_checkpoint_cannot_run_code(target: CausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path, {"0.0.linear.weight": Payload()})  # type: ignore[dict-item]
    with pytest.raises(ModelError, match="cannot be read"):
        MedusaDrafter.load(str(tmp_path), target)
    assert not (tmp_path / "touched").exists()
