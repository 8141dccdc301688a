from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autospec.config import SamplingParams, SpecConfig
from autospec.errors import ReplayError
from autospec.replay import Simulator, Trace, TracePrompt
from autospec.replay.forest import DraftForest, Rows


def tiny_trace() -> Trace:
    """Two prompts of 2 and 1 tokens, with outputs of 3 and 2: positions 0, 1 of the first and 2 of the second."""
    rows = Rows(
        np.array([[7, 8], [5, 6], [4, 3]], dtype=np.int32),
        np.log(np.array([[0.6, 0.4], [0.9, 0.1], [0.7, 0.3]], dtype=np.float32)),
        np.array([0.1, 0.2, 0.3], dtype=np.float32),
    )
    text = np.array([1, 2, 9, 8, 5, 1, 9, 3], dtype=np.int32)
    forest = DraftForest.of_positions(rows, np.full(3, 99, dtype=np.int32))
    forest.join_text(np.array([8, 5, 3], dtype=np.int32), np.array([True, False, False]))
    top = np.zeros((len(text), 2), dtype=np.int32)
    prompts = (TracePrompt("a", "x", 0, 2, 3), TracePrompt("b", "y", 1, 1, 2))
    return Trace("t", SamplingParams(), prompts, text, top, top.astype(np.float32), (0,), {"d": "m"}, {"d": forest})


def test_positions_are_numbered_through_all_prompts() -> None:
    trace = tiny_trace()
    assert trace.num_positions == 3
    assert trace.prompt_of.tolist() == [0, 0, 1]
    assert trace.contexts.tolist() == [3, 4, 2]
    assert trace.next_tokens.tolist() == [8, 5, 3]
    assert trace.left().tolist() == [2, 1, 1]
    assert trace.left(2).tolist() == [1, 0, 1]
    assert trace.prompt_ids(1) == [1]
    assert trace.output_ids(0) == [9, 8, 5]


def test_a_longer_output_than_was_recorded_is_refused() -> None:
    with pytest.raises(ReplayError, match="at most what was recorded, 2, but got 3"):
        tiny_trace().left(3)


def test_the_next_position_stands_behind_the_candidate_that_the_target_takes() -> None:
    # At position 0 the target writes 8, the drafter's second candidate.
    assert tiny_trace().forests["d"].children.tolist() == [[-1, 1], [-1, -1], [-1, -1]]


def test_a_trace_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    trace = tiny_trace()
    folder = trace.save(tmp_path)
    assert folder.name == trace.content_hash
    loaded = Trace.load(folder)
    assert isinstance(loaded.text.base, np.memmap | np.ndarray)
    assert loaded.header == trace.header
    for name, array in trace.tensors.items():
        np.testing.assert_array_equal(loaded.tensors[name], array)
    config = SpecConfig("d", 1)
    np.testing.assert_array_equal(Simulator(loaded).replay(config).nodes, Simulator(trace).replay(config).nodes)


def test_what_was_recorded_decides_the_hash() -> None:
    trace = tiny_trace()
    other = replace(trace, text=np.concatenate([trace.text[:-1], np.array([4], dtype=np.int32)]))
    assert trace.content_hash == tiny_trace().content_hash
    assert other.content_hash != trace.content_hash
    assert replace(trace, seconds={"plain": 2.0}).content_hash == trace.content_hash


@pytest.mark.parametrize("damage", ["cut", "changed", "version", "gone"])
def test_a_damaged_trace_is_refused(tmp_path: Path, damage: str) -> None:
    folder = tiny_trace().save(tmp_path)
    tensors, header = folder / "trace.safetensors", folder / "trace.json"
    content = tensors.read_bytes()
    if damage == "cut":
        tensors.write_bytes(content[:-8])
    elif damage == "changed":
        tensors.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "version":
        header.write_text(json.dumps({**json.loads(header.read_text()), "schema_version": 99}))
    else:
        header.unlink()
    with pytest.raises(ReplayError, match="a trace must"):
        Trace.load(folder)
