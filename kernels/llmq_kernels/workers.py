"""Workers: loops around microkernels, compiled once for each variant and run by address on all threads.

Numba compiles everything around a parallel loop anew for each combination of argument types, which takes seconds for
each width of code. A worker is a C function instead: `worker(parameters, number, ...)` reads addresses and counts from
an array of int64, and takes its share of the work. One launcher, compiled once, runs any of them on the threads.

Variants are told apart by the types of further arguments: pointers to tuples of `n` elements, of which only the length
counts (see `length`). That keeps Numba's cache right, which closures and factories do not.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

import numba
import numba.core.ccallback
from llvmlite import ir
from numba.core import types

from llmq_kernels.jit import cached, compiling, jit
from llmq_kernels.simd import I64, intrinsic

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

__all__ = ["launch", "length", "worker_address"]

Pointer: Final = types.CPointer(types.int64)

_MOST_LENGTHS: Final = 5
"""Arguments of a variant that a call fills in: more than a function takes do no harm in C."""


# Some Numba releases are half typed, others not at all.
_CFunc: Any = numba.core.ccallback.CFunc


class _Worker(_CFunc):  # type: ignore[misc]
    """A C function that tells when it is compiled."""

    def _compile_uncached(self) -> Any:
        compiling(self._pyfunc)
        return super()._compile_uncached()


_workers: dict[tuple[Any, ...], _Worker] = {}
_turn = threading.Lock()


def length(kind: Any) -> int:
    """Length that the type of a variant's argument stands for."""
    count: int = kind.dtype.count
    return count


def worker_address(function: Callable[..., None], *lengths: int) -> int:
    """Compile a worker for a variant, or take it from the cache, and return its address.

    Parameters
    ----------
    function : callable
        ``function(parameters, number, *variant)``: a pointer to int64, the number of the worker, and arguments whose
        types have the given lengths.
    lengths : int
        What tells the variant from others, each at least 1.
    """
    key = (function, *lengths)
    found = _workers.get(key)
    if found is None:
        with _turn:
            found = _workers.get(key) or _compile(function, lengths)
            _workers[key] = found
    address: int = found.address
    return address


def _compile(function: Callable[..., None], lengths: tuple[int, ...]) -> _Worker:
    variant = [types.CPointer(types.UniTuple(types.int8, n)) for n in lengths]
    signature = types.void(Pointer, types.int64, *variant)
    worker = _Worker(function, (signature.args, signature.return_type), {}, {"error_model": "numpy", "nogil": True})
    cached(worker, function)
    worker.compile()
    return worker


@intrinsic
def _call(typingctx: Any, address: Any, parameters: Any, number: Any) -> Any:
    """Call the worker at an address; the rest of its arguments are never looked at."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[1])(context, builder, args[1]).data
        nothing = [ir.Constant(ir.PointerType(), None)] * _MOST_LENGTHS
        kind = ir.FunctionType(ir.VoidType(), [ir.PointerType(), I64] + [a.type for a in nothing])
        number = builder.sext(args[2], I64) if args[2].type != I64 else args[2]
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [data, number, *nothing])
        return context.get_dummy_value()

    return types.void(address, parameters, number), emit


@jit(parallel=True)
def _launch(address: int, parameters: np.ndarray, workers: int) -> None:
    for number in numba.prange(workers):
        _call(address, parameters, number)


@jit
def _launch_one(address: int, parameters: np.ndarray) -> None:
    _call(address, parameters, 0)


def launch(address: int, parameters: np.ndarray, workers: int) -> None:
    """Run a worker `workers` times, numbered from 0, on as many threads.

    Parameters
    ----------
    address : int
        From `worker_address`.
    parameters : int64 (n,)
        What the worker reads; whatever its addresses point to must stay alive.
    workers : int
        1 runs it on this thread, which costs a microsecond instead of the time that threads take to wake.
    """
    if workers == 1:
        _launch_one(address, parameters)
    else:
        _launch(address, parameters, workers)
