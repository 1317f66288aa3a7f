"""How fast this machine reads memory: a checksum that does next to nothing but load."""

from __future__ import annotations

from typing import Any, Final

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types

from llmq_kernels.doors import frozen
from llmq_kernels.jit import jit
from llmq_kernels.simd import intrinsic

__all__ = ["checksum", "checksum_reference"]

_STREAMS: Final = 4
"""Places that a thread reads from in turn: one alone reads little more than half as fast on some processors."""

_LINE: Final = 64
"""Bytes of a vector: a cache line, which is one load or more, as the target has it."""

_LINES: Final = 2
"""Lines that each stream reads in one step."""

_STEP: Final = _LINES * _LINE
_CHUNK: Final = _STREAMS << 16
"""Bytes that a thread takes at once: long streams, yet enough chunks of a matrix for every thread."""

_LANES: Final = ir.VectorType(ir.IntType(64), _LINE // 8)


def checksum_reference(data: np.ndarray) -> int:
    """Specify `checksum` in plain NumPy: the sum of all little-endian 64-bit words, modulo 2**64.

    A last word that is cut short counts as if zeros followed.

    Examples
    --------
    >>> checksum_reference(np.array([1, 0, 0, 0, 0, 0, 0, 0, 2, 1], np.uint8))
    259
    """
    padded = np.pad(data, (0, -data.size % 8))
    return int(padded.view("<u8").sum(dtype=np.uint64))


@intrinsic
def _sum_streams(
    typing_context: Any,
    data: types.Array,
    start: types.Integer,
    stride: types.Integer,
) -> Any:
    """Sum the 64-bit words of `_STREAMS` stretches of `stride` bytes each, a multiple of `_STEP`, from `start` on."""
    signature = types.uint64(data, types.int64, types.int64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, start, stride = arguments
        first = builder.gep(context.make_array(signature.args[0])(context, builder, array).data, [start])
        word = ir.IntType(64)
        streams = [builder.gep(first, [builder.mul(stride, word(i))]) for i in range(_STREAMS)]
        sums = [cgutils.alloca_once_value(builder, _LANES([0] * _LANES.count)) for _ in streams]
        with cgutils.for_range(builder, builder.udiv(stride, word(_STEP)), intp=word) as loop:
            offset = builder.mul(loop.index, word(_STEP))
            for line in range(_LINES):
                place = builder.add(offset, word(line * _LINE))
                for stream, total in zip(streams, sums, strict=True):
                    pointer = builder.bitcast(builder.gep(stream, [place]), _LANES.as_pointer())
                    builder.store(builder.add(builder.load(total), builder.load(pointer, align=1)), total)
        lanes = [
            builder.extract_element(builder.load(total), ir.IntType(32)(i))
            for total in sums
            for i in range(_LANES.count)
        ]
        result = lanes[0]
        for lane in lanes[1:]:
            result = builder.add(result, lane)
        return result

    return signature, generate


@jit
def _sum_rest(data: np.ndarray, start: int, stop: int) -> np.uint64:
    """Sum the bytes from `start` to `stop`, each by its place in its 64-bit word."""
    total = np.uint64(0)
    for i in range(start, stop):
        total += np.uint64(data[i]) << np.uint64(8 * (i % 8))
    return total


@jit(parallel=True)
def _checksum(data: np.ndarray) -> np.uint64:
    """Sum the 64-bit words of uint8 (n,); chunks start at multiples of 8, so that each sums words of its own."""
    total = np.uint64(0)
    for chunk in numba.prange((data.size + _CHUNK - 1) // _CHUNK):
        start = chunk * _CHUNK
        stop = min(start + _CHUNK, data.size)
        stride = (stop - start) // (_STREAMS * _STEP) * _STEP
        total += _sum_streams(data, start, stride) + _sum_rest(data, start + _STREAMS * stride, stop)
    return total


def checksum(data: np.ndarray) -> int:
    """Read an array once, on all threads and as fast as this machine can; sum its 64-bit words modulo 2**64.

    Whatever uses each byte of the same memory once can at best be as fast as this: the sum costs one addition for each
    vector, and is there so that no load is left out.

    Parameters
    ----------
    data : uint8 (n,)
        C-contiguous; may be read-only, mapped and unaligned.

    Returns
    -------
    int
        The same for any number of threads.

    Raises
    ------
    TypeError
        Another dtype.
    ValueError
        Not one-dimensional, or not contiguous.
    """
    if data.dtype != np.uint8:
        raise TypeError(f"data must be uint8, not {data.dtype}")
    if data.ndim != 1 or not data.flags.c_contiguous:
        raise ValueError(f"data must be one-dimensional and contiguous, not of shape {data.shape}")
    return int(_checksum(frozen(data)))
