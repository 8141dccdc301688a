"""Linear maps with what follows them fused in, packed for the processor where that is known to pay.

oneDNN's blocked weights make a forward of 2 to 16 tokens cost hardly more than that of one, which is what verification
asks; plain matrix products cost twice as much (benchmarks/LOG.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

_PACKED_FOR = 8  # tokens for which weights are laid out; this layout is within a tenth of the best for any number
CACHED_BYTES = 24 << 20  # of weights that stay in the last cache of a server's processor, which has 32 MiB and more
_X86 = ("AVX2", "AVX512")  # the processors for which packing was measured


class LinearMap(Protocol):
    """Inputs [..., in] to outputs [..., out]."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the outputs."""
        ...

    def plus(self, inputs: Tensor, other: Tensor) -> Tensor:
        """Return the outputs plus others of their shape."""
        ...

    def times(self, inputs: Tensor, other: Tensor) -> Tensor:
        """Return the outputs times others of their shape."""
        ...

    def silu(self, inputs: Tensor) -> Tensor:
        """Return the outputs times their sigmoid."""
        ...

    def weights(self) -> list[Tensor]:
        """Return what it holds."""
        ...

    def turned(self) -> TurnedMap:
        """Return the same map with its matrix turned, which is copied where it is not held in this form."""
        ...


class _Unfused(ABC):
    """What follows a map is an operation of its own."""

    @abstractmethod
    def __call__(self, inputs: Tensor) -> Tensor:
        """See `LinearMap`."""

    def plus(self, inputs: Tensor, other: Tensor) -> Tensor:
        """See `LinearMap`."""
        return self(inputs) + other

    def times(self, inputs: Tensor, other: Tensor) -> Tensor:
        """See `LinearMap`."""
        return self(inputs) * other

    def silu(self, inputs: Tensor) -> Tensor:
        """See `LinearMap`."""
        return silu(self(inputs))


class PlainMap(_Unfused):
    """Runs anywhere.

    Args:
        weight: [out, in].
        bias: [out], or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, inputs: Tensor) -> Tensor:
        """See `LinearMap`."""
        return linear(inputs, self.weight, self.bias)

    def weights(self) -> list[Tensor]:
        """See `LinearMap`."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    def turned(self) -> TurnedMap:
        """See `LinearMap`."""
        return TurnedMap(self.weight.t().contiguous(), self.bias)


class TurnedMap(PlainMap):
    """Runs inputs [1, n, in] by a batched product, which a compiler generates whatever the weights are.

    Args:
        weight: [in, out].
        bias: [out], or None.
    """

    def __call__(self, inputs: Tensor) -> Tensor:
        """See `LinearMap`."""
        num_new = inputs.shape[1]
        if num_new == 1:  # what is generated for one row alone is slower than for two (benchmarks/LOG.md)
            inputs = torch.cat([inputs, inputs], dim=1)
        outputs = torch.bmm(inputs, self.weight[None])[:, :num_new]
        return outputs if self.bias is None else outputs + self.bias

    def turned(self) -> TurnedMap:
        """See `LinearMap`."""
        return self


class SideBySide(_Unfused):
    """Several maps of the same inputs, each run by itself.

    Args:
        maps: Their outputs come in this order.
    """

    def __init__(self, maps: Sequence[PlainMap]) -> None:
        self._maps = tuple(maps)

    def __call__(self, inputs: Tensor) -> Tensor:
        """See `LinearMap`."""
        return torch.cat([one(inputs) for one in self._maps], dim=-1)

    def weights(self) -> list[Tensor]:
        """See `LinearMap`."""
        return [weight for one in self._maps for weight in one.weights()]

    def turned(self) -> TurnedMap:
        """See `LinearMap`."""
        made = [one.turned() for one in self._maps]
        biases = [one.bias for one in made if one.bias is not None]
        return TurnedMap(torch.cat([one.weight for one in made], dim=1), torch.cat(biases) if biases else None)


class PackedMap:
    """Runs on an x86 processor, with weights in oneDNN's blocked layout.

    Args:
        weight: [out, in]; copied.
        bias: [out], or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _PACKED_FOR)
        self._bias = bias
        self._run = torch.ops.mkldnn._linear_pointwise.default
        self._run_with = torch.ops.mkldnn._linear_pointwise.binary

    def __call__(self, inputs: Tensor) -> Tensor:
        """See `LinearMap`."""
        outputs: Tensor = self._run(inputs, self._weight, self._bias, "none", [], "")
        return outputs

    def plus(self, inputs: Tensor, other: Tensor) -> Tensor:
        """See `LinearMap`."""
        outputs: Tensor = self._run_with(inputs, other, self._weight, self._bias, "add")
        return outputs

    def times(self, inputs: Tensor, other: Tensor) -> Tensor:
        """See `LinearMap`."""
        outputs: Tensor = self._run_with(inputs, other, self._weight, self._bias, "mul")
        return outputs

    def silu(self, inputs: Tensor) -> Tensor:
        """See `LinearMap`."""
        outputs: Tensor = self._run(inputs, self._weight, self._bias, "swish", [], "")
        return outputs

    def weights(self) -> list[Tensor]:
        """See `LinearMap`."""
        return [self._weight] if self._bias is None else [self._weight, self._bias]

    def turned(self) -> TurnedMap:
        """See `LinearMap`."""
        return TurnedMap(self._weight.to_dense().t().contiguous(), self._bias)


class TwoForms:
    """Holds a matrix twice: packed for several tokens, and turned for a single one.

    A call of a packed one takes ten microseconds before it begins (benchmarks/LOG.md), which is most of what a single
    token costs while all weights of a model stay in the processor's cache.

    Args:
        weight: [out, in] in single precision; copied.
        bias: [out], or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._packed = PackedMap(weight, bias)
        self._turned = PlainMap(weight.t().contiguous().t(), bias)
        self._width = weight.shape[1]

    def __call__(self, inputs: Tensor) -> Tensor:
        """See `LinearMap`."""
        return self._form(inputs)(inputs)

    def plus(self, inputs: Tensor, other: Tensor) -> Tensor:
        """See `LinearMap`."""
        return self._form(inputs).plus(inputs, other)

    def times(self, inputs: Tensor, other: Tensor) -> Tensor:
        """See `LinearMap`."""
        return self._form(inputs).times(inputs, other)

    def silu(self, inputs: Tensor) -> Tensor:
        """See `LinearMap`."""
        return self._form(inputs).silu(inputs)

    def weights(self) -> list[Tensor]:
        """See `LinearMap`."""
        return [*self._packed.weights(), self._turned.weights()[0]]

    def turned(self) -> TurnedMap:
        """See `LinearMap`; shares the form for single tokens."""
        return self._turned.turned()

    def _form(self, inputs: Tensor) -> LinearMap:
        return self._turned if inputs.numel() == self._width else self._packed


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether weights of a device and number format can be packed and run right."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    if torch.backends.cpu.get_cpu_capability() not in _X86:
        return False
    has_halves = dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return (dtype == torch.float32 or has_halves) and _packs_right(dtype)


@cache
@torch.inference_mode()
def _packs_right(dtype: torch.dtype) -> bool:
    """Return whether a small packed map says what a plain one does: torch promises nothing of these operations."""
    weight, inputs = (
        torch.linspace(-1, 1, 512).view(16, 32).to(dtype),
        torch.linspace(-2, 2, 96).view(1, 3, 32).to(dtype),
    )
    packed, plain, other = PackedMap(weight, None), PlainMap(weight, None), torch.ones(1, 3, 16, dtype=dtype)
    pairs = (
        (packed(inputs), plain(inputs)),
        (packed.silu(inputs), plain.silu(inputs)),
        (packed.plus(inputs, other), plain.plus(inputs, other)),
        (packed.times(inputs, other), plain.times(inputs, other)),
    )
    limit = 1e-4 if dtype == torch.float32 else 0.05
    return all(torch.allclose(ours, theirs, rtol=limit, atol=limit) for ours, theirs in pairs)


@torch.inference_mode()
def shared_map(linears: Sequence[nn.Linear]) -> LinearMap:
    """Make one map of several linear layers of the same inputs, outputs side by side, of their own weights."""
    maps = [PlainMap(one.weight.detach(), None if one.bias is None else one.bias.detach()) for one in linears]
    return maps[0] if len(maps) == 1 else SideBySide(maps)


@torch.inference_mode()
def fast_map(linears: Sequence[nn.Linear], is_packed: bool, is_small: bool) -> LinearMap:
    """Make the same of weights of its own: one matrix, packed where `can_pack` allows it.

    Args:
        linears: All with a bias, or all without.
        is_packed: Whether to pack it; a single plain one shares its weight.
        is_small: Whether the whole model is so small that it is worth being held in two forms; see `stay_cached`.
    """
    if len(linears) == 1 and not is_packed:
        return shared_map(linears)
    weight = torch.cat([one.weight for one in linears])
    bias = None if linears[0].bias is None else torch.cat([one.bias for one in linears])
    if not is_packed:
        return PlainMap(weight, bias)
    return TwoForms(weight, bias) if is_small else PackedMap(weight, bias)


def stay_cached(weights: Iterable[Tensor]) -> bool:
    """Return whether weights of a model stay in a processor's cache, so that further forms of them pay.

    From main memory a turned form is read at half the speed of the packed one.
    """
    held = list(weights)
    return all(one.dtype == torch.float32 for one in held) and sum(one.nbytes for one in held) <= CACHED_BYTES
