"""A lean forward whose few tokens run by compiled code on a CPU: pieces for what lies between two attentions.

A small model spends most of a step on beginning operations. The compiler fuses those that follow one another, and
attention runs as ever, because what it reads depends on the text. Layers are alike, so that one piece with the weights
as arguments serves all of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding, pad

from autospec.engine.cache import KVCache
from autospec.engine.compiling import Piece, compiled_piece
from autospec.engine.lean.attention import Attending
from autospec.engine.lean.forward import LeanForward, LeanLayer, Norm
from autospec.engine.lean.maps import LinearMap, TurnedMap, stay_cached
from autospec.engine.masks import NewTokens
from autospec.engine.probing import differ, first_line

SIZES = (1, 2, 4, 8)  # tokens; 16 are as fast without (benchmarks/LOG.md)

_Part = LinearMap | Norm
_Pieces = dict[tuple[str, int, int], Piece]


class CompiledLean(LeanForward):
    """A lean forward that runs up to 8 tokens, of one row or of several laid one behind the other, by compiled pieces.

    Args:
        lean: What runs all others.
        pieces: Made already for layers of the same sizes: by name, tokens and threads. Under another number of threads
            they are made anew, because code has its own.

    Raises:
        RuntimeError: There is no compiler, it fails, or what it makes computes something else.
    """

    def __init__(self, lean: LeanForward, pieces: _Pieces | None = None) -> None:
        super().__init__(lean.embeddings, lean.layers, lean.norm, lean.output_map, lean.rotary, lean.windows)
        self._lean, self._pieces = lean, dict[tuple[str, int, int], Piece]() if pieces is None else pieces
        self._before = [_tensors(_parts_before(layer)) for layer in self.layers]
        self._after = [_tensors(_parts_after(layer)) for layer in self.layers]
        self._between = [(*after, *before) for after, before in zip(self._after, self._before[1:], strict=False)]
        self._at_end = (*self._after[-1], *_tensors((self.norm, self.output_map)))
        for size in SIZES:
            self._check(size)

    def through(
        self,
        input_ids: Tensor,
        rope: tuple[Tensor, Tensor],
        attending: Attending,
        with_logits: slice | Tensor,
        wants_hidden: bool,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `LeanForward`; tokens that fill up the next size reach no attention."""
        num_rows, num_new = input_ids.shape
        if num_rows > 1 or num_new > SIZES[-1]:
            return super().through(input_ids, rope, attending, with_logits, wants_hidden)
        size = next(size for size in SIZES if num_new <= size)
        beside, own = size - num_new, slice(None, num_new)
        states = _filled(embedding(input_ids, self.embeddings), beside)
        cosines, sines = (_filled(angles.view(1, num_new, 1, -1), beside) for angles in rope)
        hidden = [states]
        attended = self._piece("first", size)(states, cosines, sines, *self._before[0])
        for layer, weights in zip(self.layers, self._between, strict=False):
            mixed = attending.mix(layer.number, layer.heads, *(one[:, own] for one in attended))
            piece = self._piece("between", size)
            states, *rest = piece(states, _filled(mixed, beside), cosines, sines, *weights)
            attended = tuple(rest)
            hidden.append(states)
        layer = self.layers[-1]
        mixed = attending.mix(layer.number, layer.heads, *(one[:, own] for one in attended))
        logits, states = self._piece("last", size)(states, _filled(mixed, beside), *self._at_end)
        hidden.append(states)
        return logits[:, own][:, with_logits], tuple(one[:, own] for one in hidden) if wants_hidden else ()

    def weights(self) -> list[Tensor]:
        """See `LeanForward`; with those that had to be copied."""
        return [*super().weights(), *(one for part in (*self._before, *self._after) for one in part), *self._at_end]

    def keep(self, layers: Sequence[int]) -> LeanForward:
        """See `LeanForward`; the pieces are shared."""
        return CompiledLean(self._lean.keep(layers), self._pieces)

    def _piece(self, name: str, size: int) -> Piece:
        place = (name, size, torch.get_num_threads())
        if place not in self._pieces:
            self._pieces[place] = compiled_piece(*self._described(name, size))
        return self._pieces[place]

    def _described(self, name: str, size: int) -> tuple[Callable[..., Sequence[Tensor]], Sequence[Tensor]]:
        """Return a piece as a function, and examples of its arguments."""
        layer = self.layers[0]
        states = self.like.new_zeros(1, size, self.like.shape[1])
        mixed = self.like.new_zeros(1, size, layer.heads.num_queries, layer.heads.size)
        rope = [angles[None].clone() for angles in self.rotary.at(0, size)]
        if name == "first":
            return _first(layer), (states, *rope, *self._before[0])
        if name == "between":
            return _between(layer), (states, mixed, *rope, *self._between[0])
        return _last(layer, self.norm, self.output_map), (states, mixed, *self._at_end)

    def _check(self, size: int) -> None:
        """Refuse pieces that compute something else."""
        with torch.inference_mode():
            input_ids, new = torch.arange(size)[None] % len(self.embeddings), NewTokens([0], size)
            logits, _ = self.run(input_ids, new, KVCache(size), 0, wants_hidden=False)
            expected, _ = self._lean.run(input_ids, new, KVCache(size), 0, wants_hidden=False)
        if differ(logits, expected, expected.dtype):
            raise RuntimeError(f"compiled for {size} tokens they compute something else")


def compile_lean(lean: LeanForward) -> LeanForward:
    """Compile a lean forward where that pays, and say so where it cannot be; else return it as it is.

    It pays for models on a CPU that stay in the processor's cache: with larger ones reading weights takes the time.

    Args:
        lean: In the form that is fastest without.
    """
    maps = (*(one for layer in lean.layers for one in layer.maps), lean.output_map)
    if lean.like.device.type != "cpu" or not stay_cached(weight for one in maps for weight in one.weights()[:1]):
        return lean
    try:
        return CompiledLean(lean)
    except RuntimeError as error:  # of compilers, which raise what they like; running every operation is right
        warnings.warn(f"forwards are not compiled, because {first_line(error)}", stacklevel=2)
        return lean


def _first(like: LeanLayer) -> Callable[..., Sequence[Tensor]]:
    def first(states: Tensor, cosines: Tensor, sines: Tensor, *weights: Tensor) -> Sequence[Tensor]:
        return _with_before(like, iter(weights)).before(states, (cosines, sines))

    return first


def _between(like: LeanLayer) -> Callable[..., Sequence[Tensor]]:
    def between(states: Tensor, mixed: Tensor, cosines: Tensor, sines: Tensor, *weights: Tensor) -> Sequence[Tensor]:
        given = iter(weights)
        states = _with_after(like, given).after(states, mixed)
        return states, *_with_before(like, given).before(states, (cosines, sines))

    return between


def _last(like: LeanLayer, norm: Norm, output_map: LinearMap) -> Callable[..., Sequence[Tensor]]:
    def last(states: Tensor, mixed: Tensor, *weights: Tensor) -> Sequence[Tensor]:
        given = iter(weights)
        states = _with_after(like, given).after(states, mixed)
        states = _as_norm(norm, given)(states)
        return _as_map(output_map, given)(states), states

    return last


def _parts_before(layer: LeanLayer) -> tuple[_Part, ...]:
    return layer.norm_before, layer.project, *(layer.head_norms or ())


def _parts_after(layer: LeanLayer) -> tuple[_Part, ...]:
    return layer.out, layer.norm_between, layer.gate, layer.up, layer.down


def _with_before(like: LeanLayer, given: Iterator[Tensor]) -> LeanLayer:
    """Return a layer with weights in the order of `_parts_before`."""
    norm, project = _as_norm(like.norm_before, given), _as_map(like.project, given)
    head_norms = None
    if like.head_norms is not None:
        head_norms = (_as_norm(like.head_norms[0], given), _as_norm(like.head_norms[1], given))
    return replace(like, norm_before=norm, project=project, head_norms=head_norms)


def _with_after(like: LeanLayer, given: Iterator[Tensor]) -> LeanLayer:
    """Return a layer with weights in the order of `_parts_after`."""
    made: dict[str, Any] = {"out": _as_map(like.out, given), "norm_between": _as_norm(like.norm_between, given)}
    made |= {name: _as_map(getattr(like, name), given) for name in ("gate", "up", "down")}
    return replace(like, **made)


def _tensors(parts: Iterable[_Part]) -> tuple[Tensor, ...]:
    """Return the weights of parts, one after the other: of maps the turned matrix, and the bias where there is one."""
    found = list[Tensor]()
    for part in parts:
        if isinstance(part, Norm):
            found.append(part.weight)
        else:
            turned = part.turned()
            found += [turned.weight] if turned.bias is None else [turned.weight, turned.bias]
    return tuple(found)


def _as_norm(like: Norm, given: Iterator[Tensor]) -> Norm:
    return Norm(next(given), like.epsilon)


def _as_map(like: LinearMap, given: Iterator[Tensor]) -> TurnedMap:
    weight = next(given)
    return TurnedMap(weight, None if like.turned().bias is None else next(given))


def _filled(states: Tensor, beside: int) -> Tensor:
    """Return [1, n, ...] with so many zeros behind, contiguous."""
    if not beside:
        return states.contiguous()
    return pad(states, (*(0,) * (2 * (states.dim() - 2)), 0, beside))
