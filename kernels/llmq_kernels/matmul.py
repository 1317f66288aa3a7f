"""Multiplication with a packed weight, straight from its bytes: rows are unpacked on the fly, and never stored.

Activations of 8 bits meet the codes in emitted microkernels (`llmq_kernels.decode`, `llmq_kernels.prefill`), which want
groups of whole 32-bit lanes. Other groups, and exact activations, go through plain kernels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import numba
import numpy as np

from llmq_kernels.activations import activation_group, activations_reference, quantize_activations
from llmq_kernels.bundle import Bundle
from llmq_kernels.doors import frozen, matrix_of, output_of
from llmq_kernels.dot import TILE_COLUMNS, TILE_ROWS, add_tile, row_pieces
from llmq_kernels.floats import scale_value
from llmq_kernels.jit import call, jit, jit_enabled
from llmq_kernels.pack import unpack_columns
from llmq_kernels.quantize import dequantize_columns, dequantize_reference
from llmq_kernels.quantize_rows import zero_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmq_kernels.layout import PackedMatrix

__all__ = ["bundle_of", "matmul", "matmul_reference"]

_PARALLEL: Final = 3 << 17
"""Products of activations and weights from which waking the threads pays: about 90 microseconds for one token."""


def matmul_reference(x: np.ndarray, matrix: PackedMatrix, compute: str = "int8") -> np.ndarray:
    """Specify `matmul` in plain NumPy, in float64: the kernel is off by the rounding of float32 sums.

    Microkernels sum codes and zero points apart, so that their rounding is in proportion to ``|scale| * (code +
    zero_point)``, not to the weight: a row of zeros with a scale other than zero gives about 1e-7, not 0.

    A NaN or infinity reaches its own token only, and may make of its outputs either.

    Examples
    --------
    >>> from llmq_kernels.layout import PackedMatrix
    >>> scale = np.array([[1], [2]], np.float32).view(np.uint16)
    >>> matrix = PackedMatrix(np.full((2, 4), 0x9A, np.uint8), scale, None, 4, 2, 2, 2)
    >>> matmul_reference(np.array([[127.0, 0.8]], np.float32), matrix, "float32").round(3).tolist()
    [[254.8, 509.6]]
    >>> matmul_reference(np.array([[127.0, 0.8]], np.float32), matrix, "int8").tolist()
    [[255.0, 510.0]]
    """
    if compute == "int8":
        group = activation_group(matrix.group_size)
        codes, scale, _ = activations_reference(x, group)
        x = codes * np.repeat(scale.astype(np.float64), group, axis=1)
    product: np.ndarray = x.astype(np.float64) @ dequantize_reference(matrix).astype(np.float64).T
    return product


@jit(parallel=True)
def _matmul_float(
    x: np.ndarray,
    weight: tuple[np.ndarray, np.ndarray, np.ndarray],
    form: tuple[int, int, int],
    chunks: tuple[int, int],
    out: np.ndarray,
) -> None:
    """Multiply float32 (tokens, columns) by rows of a packed weight: chunks of `TILE_ROWS` from one up to another."""
    rows, columns = out.shape[1], x.shape[1]
    for number in numba.prange(chunks[1] - chunks[0]):
        first = (chunks[0] + number) * TILE_ROWS
        last = min(first + TILE_ROWS, rows)
        codes = np.empty(TILE_COLUMNS, np.uint8)
        tile = np.empty((TILE_ROWS, TILE_COLUMNS), np.float32)
        out[:, first:last] = np.float32(0.0)
        for start in range(0, columns, TILE_COLUMNS):
            count = min(TILE_COLUMNS, columns - start)
            for row in range(first, last):
                place = (row, start, count)
                dequantize_columns(weight, form, place, codes, tile, row - first)
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
    weight: tuple[np.ndarray, np.ndarray, np.ndarray],
    form: tuple[int, int, int],
    chunks: tuple[int, int],
    out: np.ndarray,
) -> None:
    """Multiply quantized activations by rows of a packed weight: chunks of `TILE_ROWS` from one up to another.

    Groups of activations divide groups of the weight. Each adds ``x_scale * w_scale * (dot - zero_point * sum)``, in
    the order of the columns; the bracket is an integer, or a half of one for one bit.
    """
    x, x_scale, x_sum = activations
    packed, scale, zero_point = weight
    bits, group_size, kind = form
    tokens, columns = x.shape
    n_groups = x_scale.shape[1]
    step = columns // n_groups
    start_row, stop_row = chunks[0] * TILE_ROWS, min(chunks[1] * TILE_ROWS, out.shape[1])
    for number in numba.prange(stop_row - start_row):
        row = start_row + number
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
    x = matrix_of("x", x, np.float32, matrix.columns)
    out = output_of(out, (x.shape[0], matrix.rows))
    _multiply(x, matrix, compute, out)
    return out


def _multiply(x: np.ndarray, matrix: PackedMatrix, compute: str, out: np.ndarray) -> None:
    if compute not in ("int8", "float32"):
        raise ValueError(f"compute must be int8 or float32, not {compute!r}")
    bundle = bundle_of(matrix) if compute == "int8" else None
    if bundle is not None:
        bundle.multiply(x, [out])
        return
    parallel = x.size * matrix.rows >= _PARALLEL
    kernel: Callable[..., None] = _matmul_float
    activations: Any = x
    if compute == "int8":
        codes, scale, sums = quantize_activations(x, activation_group(matrix.group_size))
        kernel, activations = _matmul_int8, (frozen(codes), frozen(scale), frozen(sums))
    for part in row_pieces(x, matrix.rows):
        call(kernel, activations, matrix.views, matrix.form, (part.start, part.stop), out, parallel=parallel)


def bundle_of(matrix: PackedMatrix) -> Bundle | None:
    """Return the microkernels' view of a weight, made once and kept with it; None if they do not serve it."""
    kept = matrix.__dict__
    if "_bundle" not in kept:
        kept["_bundle"] = Bundle((matrix,)) if jit_enabled() and Bundle.serves(matrix) else None
    bundle: Bundle | None = kept["_bundle"]
    return bundle
