"""Workers: loops around microkernels, compiled once for each variant and run by address on all threads.

Numba compiles everything around a parallel loop anew for each combination of argument types, which takes seconds for
each width of code. A worker is a C function instead: `worker(parameters, number, ...)` reads addresses and counts from
an array of int64, and takes its share of the work; `llmq_kernels.crew` runs any of them on the threads.

Variants are told apart by the types of further arguments: pointers to tuples of `n` elements, of which only the length
counts (see `length`). That keeps Numba's cache right, which closures and factories do not.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

import numba
import numba.core.ccallback
import numpy as np
from llvmlite import ir
from numba.core import types

from llmq_kernels.crew import in_turn, launch
from llmq_kernels.jit import cached, compiling, fork_waits_for
from llmq_kernels.scratch import aligned_zeros
from llmq_kernels.simd import I64

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Turns", "constants", "launch", "length", "worker_address"]

Pointer: Final = types.CPointer(types.int64)


# Some Numba releases are half typed, others not at all.
_CFunc: Any = numba.core.ccallback.CFunc


class _Worker(_CFunc):  # type: ignore[misc]
    """A C function that tells when it is compiled."""

    def _compile_uncached(self) -> Any:
        compiling(self._pyfunc)
        return super()._compile_uncached()


_workers: dict[tuple[Any, ...], _Worker] = {}
_turn = threading.RLock()
fork_waits_for(_turn)


def length(kind: Any) -> int:
    """Length that the type of a variant's argument stands for."""
    count: int = kind.dtype.count
    return count


def constants(values: Sequence[int], *variant: Any) -> Any:
    """Make of numbers that a variant decides what an intrinsic returns to give them as int64 constants."""
    signature = types.UniTuple(types.int64, len(values))(*variant)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.make_tuple(builder, signature.return_type, [ir.Constant(I64, value) for value in values])

    return signature, emit


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


class Turns:
    """Runs two workers one after the other in one go of the threads: the second when the first is done.

    Parameters
    ----------
    parameters : int
        Address of int64, what both read.

    Attributes
    ----------
    counters : (int, int)
        Addresses of an int64 for each worker, from which it takes numbers; zero when `launch` begins.
    """

    def __init__(self, parameters: int) -> None:
        self._addresses = np.array([0, 0, parameters, 0], np.int64)
        self._place = self._addresses.ctypes.data
        # A cache line for each.
        self._numbers = aligned_zeros((2, 64)).view(np.int64)
        self.counters = self._numbers[0].ctypes.data, self._numbers[1].ctypes.data

    def launch(self, first: int, second: int, workers: int) -> None:
        """Run the workers at two addresses on this thread and on up to `workers - 1` others; see `launch`."""
        self._addresses[0], self._addresses[1] = first, second
        self._numbers[0, 0] = self._numbers[1, 0] = 0
        launch(worker_address(in_turn), self._place, workers)

    def go_on(self, start: int, workers: int) -> None:
        """Run the second worker once more, which takes numbers from `start` on."""
        self._numbers[1, 0] = start
        launch(int(self._addresses[1]), int(self._addresses[2]), workers)
