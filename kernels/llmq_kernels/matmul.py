"""Multiplication with a packed weight: rows are unpacked tile by tile, on the fly, and never stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numba
import numpy as np

from llmq_kernels.activations import activation_group, quantize_activations
from llmq_kernels.doors import frozen, matrix_of, output_of
from llmq_kernels.dot import TILE_COLUMNS, TILE_ROWS, add_tile
from llmq_kernels.floats import scale_value
from llmq_kernels.jit import jit
from llmq_kernels.pack import unpack_columns
from llmq_kernels.quantize import dequantize_columns, zero_of

if TYPE_CHECKING:
    from llmq_kernels.layout import PackedMatrix

__all__ = ["matmul"]


@jit(parallel=True)
def _matmul_float(
    x: np.ndarray,
    packed: np.ndarray,
    scale: np.ndarray,
    zero_point: np.ndarray,
    form: tuple[int, int, int],
    out: np.ndarray,
) -> None:
    """Multiply float32 (tokens, columns) by the rows of a packed weight; `form` is (bits, group_size, scale_kind)."""
    rows, columns = out.shape[1], x.shape[1]
    for chunk in numba.prange((rows + TILE_ROWS - 1) // TILE_ROWS):
        first = chunk * TILE_ROWS
        last = min(first + TILE_ROWS, rows)
        codes = np.empty(TILE_COLUMNS, np.uint8)
        tile = np.empty((TILE_ROWS, TILE_COLUMNS), np.float32)
        out[:, first:last] = np.float32(0.0)
        for start in range(0, columns, TILE_COLUMNS):
            count = min(TILE_COLUMNS, columns - start)
            for row in range(first, last):
                place = (row, start, count)
                dequantize_columns(packed, scale, zero_point, form, place, codes, tile, row - first)
            add_tile(x, start, count, tile, out, first)


@jit
def _dot_codes(codes: np.ndarray, x: np.ndarray) -> np.int32:
    """Sum the products of uint8 (n,) and int8 (n,) in 32 bits."""
    total = np.int32(0)
    for i in range(codes.size):
        total = np.int32(total + np.int32(codes[i]) * np.int32(x[i]))
    return total


@jit(parallel=True)
def _matmul_int8(
    activations: tuple[np.ndarray, np.ndarray, np.ndarray],
    packed: np.ndarray,
    scale: np.ndarray,
    zero_point: np.ndarray,
    form: tuple[int, int, int],
    out: np.ndarray,
) -> None:
    """Multiply quantized activations by the rows of a packed weight; `form` is (bits, group_size, scale_kind).

    Groups of activations divide groups of the weight. Each adds ``x_scale * w_scale * (dot - zero_point * sum)``, in
    the order of the columns; the bracket is an integer, or a half of one for one bit.
    """
    x, x_scale, x_sum = activations
    bits, group_size, kind = form
    tokens, columns = x.shape
    n_groups = x_scale.shape[1]
    step = columns // n_groups
    for row in numba.prange(out.shape[1]):
        codes = np.empty(columns, np.uint8)
        unpack_columns(packed, bits, row, 0, columns, codes)
        for token in range(tokens):
            total = np.float32(0.0)
            for group in range(n_groups):
                start = group * step
                weight_group = start // group_size
                dot = _dot_codes(codes[start : start + step], x[token, start : start + step])
                twice = np.int64(np.float32(2.0) * zero_of(zero_point, row, weight_group, bits))
                centred = np.float32(0.5) * np.float32(2 * np.int64(dot) - twice * np.int64(x_sum[token, group]))
                total += x_scale[token, group] * scale_value(scale, row, weight_group, kind) * centred
            out[token, row] = total


def matmul(
    x: np.ndarray,
    matrix: PackedMatrix,
    *,
    compute: Literal["int8", "float32"] = "int8",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Multiply activations by a packed weight: `x @ w.T` with `w = scale * (code - zero_point)`.

    Parameters
    ----------
    x : float32 (tokens, columns)
    matrix : PackedMatrix
        The weight, (rows, columns).
    compute : {"int8", "float32"}
        `int8` rounds the activations of each group to 8 bits first (see `quantize_activations` for the error) and
        sums integers; `float32` keeps them.
    out : float32 (tokens, rows), optional
        Written instead of a new array.

    Returns
    -------
    float32 (tokens, rows)
        The same for any number of threads.

    Raises
    ------
    TypeError, ValueError
        Arrays that do not fit each other, or an unknown `compute`.
    """
    if compute not in ("int8", "float32"):
        raise ValueError(f"compute must be int8 or float32, not {compute!r}")
    x = matrix_of("x", x, np.float32, matrix.columns)
    out = output_of(out, (x.shape[0], matrix.rows))
    weight = (matrix.packed_view, matrix.scale_view, matrix.zero_point_view)
    form = (matrix.bits, matrix.group_size, matrix.scale_kind)
    if compute == "float32":
        _matmul_float(x, *weight, form, out)
    else:
        codes, scale, sums = quantize_activations(x, activation_group(matrix.group_size))
        _matmul_int8((frozen(codes), frozen(scale), frozen(sums)), *weight, form, out)
    return out
