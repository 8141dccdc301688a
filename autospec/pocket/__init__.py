"""The embedded model family: where its weights and its workload lie, nothing else.

How it was made stands in `MODEL_CARD.md` beside this file; plain transformers loads the two model folders.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["draft_path", "target_path", "workload_path"]

_ROOT = Path(__file__).resolve().parent


def target_path() -> Path:
    """Return the folder of the target: weights, configuration and tokenizer."""
    return _ROOT / "target"


def draft_path() -> Path:
    """Return the folder of the small model distilled from the target, with the same tokenizer."""
    return _ROOT / "draft"


def workload_path() -> Path:
    """Return the prompts, one JSON line each: id, category, split, source and prompt."""
    return _ROOT / "workload.jsonl"
