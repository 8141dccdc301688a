"""Code that is compiled where it runs, of recorded operations or C++: torch keeps it on disk and finds it again."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from ctypes import CDLL
from typing import cast

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from autospec.engine.probing import first_line

# Matrix products are generated, too: calls of a library take longer to begin than small ones to run.
_GENERATES_PRODUCTS = {"max_autotune": True, "max_autotune_gemm_backends": "CPP"}

Piece = Callable[..., tuple[Tensor, ...]]


def recorded(run: Callable[..., Sequence[Tensor]], examples: Sequence[Tensor] = ()) -> torch.fx.GraphModule:
    """Return the operations of a function of tensors as code of its own.

    Of one function torch compiles only a few shapes; of a record it is asked for one.

    Args:
        run: The tensors that it reads besides its arguments become constants.
        examples: Its arguments.
    """
    return make_fx(lambda *given: tuple(run(*given)))(*examples)


@torch.inference_mode()
def compiled_piece(run: Callable[..., Sequence[Tensor]], examples: Sequence[Tensor]) -> Piece:
    """Compile a function of tensors on a CPU, for the number of threads that torch has now.

    Without the guards and wrappers of `torch.compile`, which cost 20 microseconds a call (benchmarks/LOG.md).

    Args:
        run: The function.
        examples: Arguments; it will be called with none but of their sizes and strides.

    Raises:
        RuntimeError: There is no compiler, or it fails.
    """
    # Said with the number of threads, because not every torch tells code on its disk apart by that.
    options = {**_GENERATES_PRODUCTS, "cpp.threads": torch.get_num_threads()}
    try:
        from torch._inductor import compile as compile_record

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what torch itself does
            piece = compile_record(recorded(run, examples), list(examples), options=options)
            piece(*examples)
    except Exception as error:  # of compilers, disks and torch's own parts, which raise what they like
        raise RuntimeError(f"torch's compiler failed: {first_line(error)}") from error
    return cast("Piece", piece)


def compiled_library(source: str) -> CDLL:
    """Compile C++ for this processor, as the compiler's own code is.

    Args:
        source: Functions of C.

    Raises:
        RuntimeError: There is no compiler, or it fails.
    """
    try:
        from torch._inductor.codecache import CppCodeCache

        return cast("CDLL", CppCodeCache.load(source))
    except Exception as error:  # of compilers, disks and torch's own parts, which raise what they like
        raise RuntimeError(f"torch's compiler failed: {first_line(error)}") from error
