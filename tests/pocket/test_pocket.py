from __future__ import annotations

import json
import lzma
import subprocess
import sys
from collections import Counter, defaultdict

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from autospec import pocket

ROWS = [json.loads(line) for line in pocket.workload_path().read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("path", "max_bytes"), [(pocket.target_path(), 32_000_000), (pocket.draft_path(), 4_000_000)])
def test_plain_transformers_loads_the_family(path, max_bytes: int) -> None:
    model = AutoModelForCausalLM.from_pretrained(path)
    assert model.dtype == torch.bfloat16
    assert (path / "model.safetensors").stat().st_size <= max_bytes
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert len(tokenizer) == model.config.vocab_size
    text = "def f(x):\n    return x  # caf\u00e9\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_target_and_draft_have_the_same_tokenizer() -> None:
    files = [path / "tokenizer.json" for path in (pocket.target_path(), pocket.draft_path())]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_draft_is_about_a_tenth_of_the_target_or_less_in_depth() -> None:
    configs = [json.loads((path / "config.json").read_text()) for path in (pocket.target_path(), pocket.draft_path())]
    assert configs[0]["num_hidden_layers"] >= 10 * configs[1]["num_hidden_layers"]
    assert configs[0]["max_position_embeddings"] == configs[1]["max_position_embeddings"] == 1024


def test_each_category_has_its_prompts_in_both_splits() -> None:
    counts = Counter((row["category"], row["split"]) for row in ROWS)
    assert {category for category, _ in counts} == {"complete", "docs", "edit"}
    assert {split for _, split in counts} == {"tune", "held_out"}
    assert set(counts.values()) == {32}


def test_no_prompt_comes_twice_and_no_file_is_in_both_splits() -> None:
    assert len({row["prompt"] for row in ROWS}) == len({row["id"] for row in ROWS}) == len(ROWS)
    sources = defaultdict(set)
    for row in ROWS:
        sources[row["split"]].add(row["source"])
    assert not sources["tune"] & sources["held_out"]


def test_prompts_are_of_varied_length_within_the_bounds() -> None:
    tokenizer = AutoTokenizer.from_pretrained(pocket.target_path())
    for category in ("complete", "docs", "edit"):
        for split in ("tune", "held_out"):
            members = [row for row in ROWS if (row["category"], row["split"]) == (category, split)]
            lengths = sorted(len(tokenizer(row["prompt"]).input_ids) for row in members)
            assert 64 <= lengths[0] <= 160
            assert 700 <= lengths[-1] <= 768
            assert 200 <= lengths[16] <= 400


def test_every_prompt_comes_from_a_file_that_was_held_out() -> None:
    path = pocket.workload_path().parent / "manifest.json.xz"
    files = json.loads(lzma.decompress(path.read_bytes()))["files"]
    names = zip(files["package"], files["path"], files["held_out"], strict=True)
    held_out = {f"{package}:{name}" for package, name, is_held_out in names if is_held_out}
    assert {row["source"] for row in ROWS} <= held_out


def test_paths_come_without_heavy_imports() -> None:
    code = "import sys, autospec.pocket as p; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
