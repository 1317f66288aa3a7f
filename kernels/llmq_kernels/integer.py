"""Products of int8 inputs and packed integers, summed exactly in 32 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numba
import numpy as np

from llmq_kernels.doors import frozen, matrix_of, output_of
from llmq_kernels.integer_product import multiply_tokens
from llmq_kernels.jit import call, jit, jit_enabled
from llmq_kernels.pack import unpack_columns
from llmq_kernels.row_forms import RowForms

if TYPE_CHECKING:
    from llmq_kernels.integer_weight import IntegerWeight

__all__ = ["integer_matmul", "integer_matmul_reference", "zero_points_of"]

_PARALLEL: Final = 1 << 18
"""Products from which waking the threads pays."""


def integer_matmul_reference(x: np.ndarray, weight: IntegerWeight, x_zero_point: np.ndarray | int = 0) -> np.ndarray:
    """Specify `integer_matmul` in plain NumPy, in int64.

    Examples
    --------
    >>> from llmq_kernels.integer_weight import IntegerWeight
    >>> weight = IntegerWeight.of(np.array([[0, 2, 3], [3, 3, 1]], np.uint8), 2)
    >>> integer_matmul_reference(np.array([[5, -3, 2]], np.int8), weight, 1).tolist()
    [[-7, -1]]
    """
    points = np.asarray(x_zero_point, np.int64).reshape(-1, 1)
    product: np.ndarray = (x.astype(np.int64) - points) @ weight.integers().astype(np.int64).T
    return product


@jit(parallel=True)
def _integer_matmul(
    x: np.ndarray, points: np.ndarray, packed: np.ndarray, form: tuple[int, int, np.ndarray], out: np.ndarray
) -> None:
    """Multiply int8 (tokens, columns) minus int32 (tokens,) by the rows of codes; `form` is (bits, factor, offset)."""
    bits, factor, offset = form
    tokens, columns = x.shape
    for row in numba.prange(out.shape[1]):
        codes = np.empty(columns, np.uint8)
        unpack_columns(packed, bits, row, 0, columns, codes)
        for token in range(tokens):
            total = np.int32(0)
            for i in range(columns):
                integer = np.int32(factor) * np.int32(codes[i]) - offset[row]
                total = np.int32(total + (np.int32(x[token, i]) - points[token]) * integer)
            out[token, row] = total


def zero_points_of(x_zero_point: Any, tokens: int) -> np.ndarray:
    """Zero points of inputs as int32 (tokens,).

    Raises
    ------
    TypeError
        Not integers.
    ValueError
        Neither one nor one a token, or not -128 to 127.
    """
    points = np.asarray(x_zero_point)
    if points.dtype.kind not in "iu":
        raise TypeError(f"x_zero_point must be integers, not {points.dtype}")
    if points.shape not in ((), (tokens,)):
        raise ValueError(f"x_zero_point must be one number or have shape ({tokens},), not {points.shape}")
    if points.size and not -128 <= int(points.min()) <= int(points.max()) <= 127:
        raise ValueError(f"x_zero_point must be -128 to 127, found {int(points.min())} to {int(points.max())}")
    return np.ascontiguousarray(np.broadcast_to(points, (tokens,)), np.int32)


def integer_matmul(
    x: np.ndarray, weight: IntegerWeight, *, x_zero_point: np.ndarray | int = 0, out: np.ndarray | None = None
) -> np.ndarray:
    """Multiply int8 inputs by packed integers: ``out[t, r] = sum over k of (x[t, k] - x_zero_point[t]) * w[r, k]``.

    Parameters
    ----------
    x : int8 (tokens, columns)
    weight : IntegerWeight
        (rows, columns)
    x_zero_point : int, or int32 (tokens,)
        Codes that stand for zero, -128 to 127.
    out : int32 (tokens, rows), optional
        Written instead of a new array.

    Returns
    -------
    int32 (tokens, rows)
        Exact.

    Raises
    ------
    TypeError, ValueError
        Arrays that do not fit each other.
    """
    x = matrix_of("x", x, np.int8, weight.columns)
    points = zero_points_of(x_zero_point, x.shape[0])
    out = output_of(out, (x.shape[0], weight.rows), np.int32)
    if jit_enabled():
        inputs = np.ones(x.shape[0], np.float32), points, 8
        multiply_tokens(x, weight, inputs, RowForms.of(weight).numbers, out)
        return out
    factor, offset = weight.form()
    form = (weight.bits, factor, frozen(offset))
    parallel = x.size * weight.rows >= _PARALLEL
    call(_integer_matmul, x, frozen(points), weight.view, form, out, parallel=parallel)
    return out
