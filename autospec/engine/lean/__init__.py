"""A forward of our own for models of the Llama kind: the same weights and numbers, with fewer and fused operations."""

from autospec.engine.lean.compiled import compile_lean
from autospec.engine.lean.forward import LeanForward
from autospec.engine.lean.reading import read_lean, speed_up

__all__ = ["LeanForward", "compile_lean", "read_lean", "speed_up"]
