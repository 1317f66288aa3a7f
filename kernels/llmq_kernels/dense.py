"""Multiplication with a weight that is not quantized, straight from its 16-bit or float32 bytes."""

from __future__ import annotations

from typing import Final

import numba
import numpy as np

from llmq_kernels.dense_rows import MOST_TOKENS, multiply_few
from llmq_kernels.doors import matrix_of, output_of
from llmq_kernels.dot import TILE_COLUMNS, TILE_ROWS, add_tile, row_pieces
from llmq_kernels.floats import bfloat_to_float, float_of, half_to_float
from llmq_kernels.jit import call, jit, jit_enabled
from llmq_kernels.layout import SCALE_KINDS

__all__ = ["matmul_dense", "matmul_dense_reference"]

_FLOAT16: Final = SCALE_KINDS["float16"]
_BFLOAT16: Final = SCALE_KINDS["bfloat16"]

_PARALLEL: Final = 1 << 20
"""Products of activations and weights from which waking the threads pays: about 120 microseconds for one token."""


def matmul_dense_reference(x: np.ndarray, weight: np.ndarray, kind: str = "float32") -> np.ndarray:
    """Specify `matmul_dense` in plain NumPy, in float64: the kernel is off by the rounding of float32 sums.

    A NaN or infinity in `x` reaches its own token only, and may make of its outputs either.

    Examples
    --------
    >>> bits = np.array([[0x3F80, 0xC000], [0x4040, 0x0000]], np.uint16)
    >>> matmul_dense_reference(np.array([[1.0, 0.5]], np.float32), bits, "bfloat16").tolist()
    [[0.0, 3.0]]
    """
    if kind == "bfloat16":
        weight = (weight.astype(np.uint32) << 16).view(np.float32)
    elif kind == "float16":
        weight = weight.view(np.float16)
    product: np.ndarray = x.astype(np.float64) @ weight.astype(np.float64).T
    return product


@jit
def _widen_columns(weight: np.ndarray, kind: int, place: tuple[int, int, int], out: np.ndarray, out_row: int) -> None:
    """Widen columns `start` to `start + count` of a row of uint16 `weight`; `place` is (row, start, count)."""
    row, start, count = place
    base = np.uint64(start)
    if kind == _FLOAT16:
        for i in range(count):
            out[out_row, i] = half_to_float(weight[row, base + np.uint64(i)])
    elif kind == _BFLOAT16:
        for i in range(count):
            out[out_row, i] = bfloat_to_float(weight[row, base + np.uint64(i)])
    else:
        for i in range(count):
            j = np.uint64(2) * (base + np.uint64(i))
            out[out_row, i] = float_of(weight[row, j] | (np.uint32(weight[row, j + np.uint64(1)]) << 16))


@jit(parallel=True)
def _matmul_dense(x: np.ndarray, weight: np.ndarray, kind: int, chunks: tuple[int, int], out: np.ndarray) -> None:
    """Multiply float32 (tokens, columns) by rows of uint16 (rows, columns), twice as wide for float32.

    The rows are chunks of `TILE_ROWS`, from one up to another.
    """
    rows, columns = out.shape[1], x.shape[1]
    for number in numba.prange(chunks[1] - chunks[0]):
        first = (chunks[0] + number) * TILE_ROWS
        last = min(first + TILE_ROWS, rows)
        tile = np.empty((TILE_ROWS, TILE_COLUMNS), np.float32)
        out[:, first:last] = np.float32(0.0)
        for start in range(0, columns, TILE_COLUMNS):
            count = min(TILE_COLUMNS, columns - start)
            for row in range(first, last):
                _widen_columns(weight, kind, (row, start, count), tile, row - first)
            add_tile(x, start, count, tile, out, first)


def matmul_dense(
    x: np.ndarray, weight: np.ndarray, kind: str = "float32", *, out: np.ndarray | None = None
) -> np.ndarray:
    """Multiply activations by a dense weight: `x @ weight.T` in float32.

    Parameters
    ----------
    x : float32 (tokens, columns)
    weight : uint16 (rows, columns), or float32 if `kind` says so
        May be read-only and mapped.
    kind : {"float16", "bfloat16", "float32"}
        What the bits of `weight` mean.
    out : float32 (tokens, rows), optional
        Written instead of a new array.

    Returns
    -------
    float32 (tokens, rows)

    Raises
    ------
    TypeError, ValueError
        Arrays that do not fit each other, or an unknown kind.
    """
    if kind not in SCALE_KINDS:
        raise ValueError(f"kind must be one of {', '.join(SCALE_KINDS)}, not {kind!r}")
    dtype = np.float32 if kind == "float32" else np.uint16
    if weight.dtype != dtype:
        raise TypeError(f"a {kind} weight must be {np.dtype(dtype)}, not {weight.dtype}")
    x = matrix_of("x", x, np.float32)
    weight = matrix_of("weight", weight, dtype, x.shape[1])
    out = output_of(out, (x.shape[0], weight.shape[0]))
    if 1 <= x.shape[0] <= MOST_TOKENS and jit_enabled():
        multiply_few(x, weight.view(np.uint16), SCALE_KINDS[kind], out)
        return out
    parallel = x.size * weight.shape[0] >= _PARALLEL
    for part in row_pieces(x, weight.shape[0]):
        call(
            _matmul_dense,
            x,
            weight.view(np.uint16),
            SCALE_KINDS[kind],
            (part.start, part.stop),
            out,
            parallel=parallel,
        )
    return out
