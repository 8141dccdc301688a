"""A lean forward whose few tokens run by compiled code on a CPU: pieces for what lies between two attentions.

A small model spends most of a step on beginning operations. The compiler fuses those that follow one another, and
attention runs as ever, because what it reads depends on the text. Layers are alike, so that one piece with the weights
as arguments serves all of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding, pad

from autospec.engine.cache import KVCache
from autospec.engine.compiling import Piece, compiled_piece
from autospec.engine.lean.attention import Attending
from autospec.engine.lean.forward import LeanForward, LeanLayer, Norm
from autospec.engine.lean.kernel import Kernel, KernelAttention, attention_kernel
from autospec.engine.lean.maps import CACHED_BYTES, LinearMap, TurnedMap, stay_cached
from autospec.engine.masks import NewTokens
from autospec.engine.probing import differ
from autospec.engine.rows import FlatRows

SIZES = (1, 2, 4, 8)  # tokens; 16 are as fast without (benchmarks/LOG.md)

_Part = LinearMap | Norm
_Pieces = dict[tuple[str, int], Piece]  # by name and number of tokens

_making = Lock()  # torch's compiler has settings that are everybody's


class CompiledLean(LeanForward):
    """A lean forward that runs up to 8 tokens, of one row or of several laid one behind the other, by compiled pieces.

    Code has a number of threads of its own, so that pieces are made when a number first comes, all at once. Where that
    fails, it says so and runs as without.

    Args:
        lean: What runs all others.
        turned: The same with turned maps.
        kernel: By which tokens attend.
        whole: Of which these are some of the layers, and whose pieces serve them; None: it has its own.
    """

    def __init__(
        self, lean: LeanForward, turned: LeanForward, kernel: Kernel, whole: CompiledLean | None = None
    ) -> None:
        super().__init__(lean.embeddings, lean.layers, lean.norm, lean.output_map, lean.rotary, lean.windows)
        self._lean, self._turned, self._kernel, self._whole = lean, turned, kernel, whole
        self._code = dict[int, _Pieces | None]()  # by number of threads
        self._before = [_tensors(_parts_before(layer)) for layer in turned.layers]
        after = [_tensors(_parts_after(layer)) for layer in turned.layers]
        self._between = [(*one, *before) for one, before in zip(after, self._before[1:], strict=False)]
        self._at_end = (*after[-1], *_tensors((turned.norm, turned.output_map)))

    def through(
        self,
        input_ids: Tensor,
        rope: tuple[Tensor, Tensor],
        attending: Attending,
        with_logits: slice | Tensor,
        wants_hidden: bool,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `LeanForward`."""
        num_new = input_ids.shape[1]
        by_kernel = attending if isinstance(attending, KernelAttention) and num_new <= SIZES[-1] else None
        pieces = None if by_kernel is None else self.pieces()
        if by_kernel is None or pieces is None:
            return super().through(input_ids, rope, attending, with_logits, wants_hidden)
        logits, hidden = self._by_pieces(pieces, input_ids, rope, by_kernel)
        own = slice(None, num_new)
        return logits[:, own][:, with_logits], tuple(one[:, own] for one in hidden) if wants_hidden else ()

    def attending(self, new: NewTokens, cache: KVCache) -> Attending:
        """See `LeanForward`; those of one row attend by the kernel."""
        if len(new.lengths) > 1:
            return super().attending(new, cache)
        return KernelAttention(self._kernel, cache, [(0, new)], self.windows)

    def attending_rows(self, flat: FlatRows, cache: KVCache) -> Attending:
        """See `LeanForward`; they attend by the kernel."""
        asked = [(one.row, new) for one, new in zip(flat.asked, flat.by_row(), strict=True)]
        return KernelAttention(self._kernel, cache, asked, self.windows)

    def pieces(self) -> _Pieces | None:
        """Return the pieces for the number of threads that torch has now, or None where they could not be made."""
        if self._whole is not None:
            return self._whole.pieces()
        num_threads = torch.get_num_threads()
        if num_threads not in self._code:
            with _making:
                if num_threads not in self._code:
                    self._code[num_threads] = self._made()
        return self._code[num_threads]

    def weights(self) -> list[Tensor]:
        """See `LeanForward`; with those that had to be copied."""
        return [*super().weights(), *self._turned.weights()]

    def keep(self, layers: Sequence[int]) -> LeanForward:
        """See `LeanForward`; the pieces are shared."""
        return CompiledLean(self._lean.keep(layers), self._turned.keep(layers), self._kernel, self._whole or self)

    def _by_pieces(
        self, pieces: _Pieces, input_ids: Tensor, rope: tuple[Tensor, Tensor], attending: KernelAttention
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return logits and hidden states of tokens [1, n] and those that fill up the next size.

        No token attends to the latter, and what comes out for them stands for nothing.
        """
        num_new = input_ids.shape[1]
        size = next(size for size in SIZES if num_new <= size)
        beside = size - num_new
        states = _filled(embedding(input_ids, self.embeddings), beside)
        cosines, sines = (_filled(angles.view(1, num_new, 1, -1), beside) for angles in rope)
        hidden = [states]
        attended: Sequence[Tensor] = pieces["first", size](states, cosines, sines, *self._before[0])
        for layer, weights in zip(self.layers, (*self._between, None), strict=True):
            mixed = attending.mix(layer.number, layer.heads, *attended)
            if weights is None:
                logits, states = pieces["last", size](states, mixed, *self._at_end)
            else:
                states, *attended = pieces["between", size](states, mixed, cosines, sines, *weights)
            hidden.append(states)
        return logits, tuple(hidden)

    @torch.inference_mode()
    def _made(self) -> _Pieces | None:
        """Compile all pieces, and see whether they compute what they stand for."""
        names = ("first", "between", "last") if len(self.layers) > 1 else ("first", "last")
        try:
            pieces = {(name, size): compiled_piece(*self._described(name, size)) for size in SIZES for name in names}
            for size in SIZES:
                self._check(pieces, size)
        except RuntimeError as error:
            _tell(error)
            return None
        return pieces

    def _described(self, name: str, size: int) -> tuple[Callable[..., Sequence[Tensor]], Sequence[Tensor]]:
        """Return a piece as a function, and examples of its arguments."""
        turned, layer = self._turned, self._turned.layers[0]
        states = self.like.new_zeros(1, size, self.like.shape[1])
        mixed = self.like.new_zeros(1, size, layer.heads.num_queries, layer.heads.size)
        rope = [angles[None].clone() for angles in self.rotary.at(0, size)]
        if name == "first":
            return _first(layer), (states, *rope, *self._before[0])
        if name == "between":
            return _between(layer), (states, mixed, *rope, *self._between[0])
        return _last(layer, turned.norm, turned.output_map), (states, mixed, *self._at_end)

    def _check(self, pieces: _Pieces, size: int) -> None:
        """Refuse pieces that compute something else."""
        input_ids, new = torch.arange(size)[None] % len(self.embeddings), NewTokens([0], size)
        attending = KernelAttention(self._kernel, KVCache(size), [(0, new)], self.windows)
        logits, _ = self._by_pieces(pieces, input_ids, self.rotary.at(0, size), attending)
        expected, _ = self._lean.run(input_ids, new, KVCache(size), 0, wants_hidden=False)
        if differ(logits, expected, expected.dtype):
            raise RuntimeError(f"compiled for {size} tokens they compute something else")


def compile_lean(lean: LeanForward) -> LeanForward:
    """Compile a lean forward where that pays, and say so where it does not or cannot be; else return it as it is.

    It pays for models on a CPU that stay in the processor's cache: with larger ones reading weights takes the time.

    Args:
        lean: In the form that is fastest without.
    """
    if lean.like.device.type != "cpu":
        return lean
    maps = (*(one for layer in lean.layers for one in layer.maps), lean.output_map)
    if not stay_cached(weight for one in maps for weight in one.weights()[:1]):
        warnings.warn(
            f"forwards are not compiled, because on a CPU that pays for models in float32 of at most "
            f"{CACHED_BYTES >> 20} MiB only",
            stacklevel=2,
        )
        return lean
    try:
        made = CompiledLean(lean, _turned(lean), attention_kernel(lean.layers[0].heads.size))
    except (RuntimeError, OSError) as error:
        _tell(error)
        return lean
    return lean if made.pieces() is None else made


def _tell(error: Exception) -> None:
    warnings.warn(f"forwards are not compiled, because {error}", stacklevel=3)


def _turned(lean: LeanForward) -> LeanForward:
    layers = [
        replace(layer, **{name: getattr(layer, name).turned() for name in ("project", "out", "gate", "up", "down")})
        for layer in lean.layers
    ]
    return LeanForward(lean.embeddings, layers, lean.norm, lean.output_map.turned(), lean.rotary, lean.windows)


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
    """Return the weights of parts, one after the other."""
    return tuple(weight for part in parts for weight in ([part.weight] if isinstance(part, Norm) else part.weights()))


def _as_norm(like: Norm, given: Iterator[Tensor]) -> Norm:
    return Norm(next(given), like.epsilon)


def _as_map(like: LinearMap, given: Iterator[Tensor]) -> TurnedMap:
    """Return a turned map like another, with the weights that come next."""
    weight, *bias = (next(given) for _ in like.weights())
    return TurnedMap(weight, bias[0] if bias else None)


def _filled(states: Tensor, beside: int) -> Tensor:
    """Return [1, n, ...] with so many zeros behind, contiguous."""
    if not beside:
        return states.contiguous()
    return pad(states, (*(0,) * (2 * (states.dim() - 2)), 0, beside))
