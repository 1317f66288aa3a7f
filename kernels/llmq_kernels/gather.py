"""Rows of a packed matrix by number: the embedding look-up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmq_kernels.doors import frozen
from llmq_kernels.jit import jit
from llmq_kernels.quantize import dequantize_columns, dequantize_reference

if TYPE_CHECKING:
    from llmq_kernels.layout import PackedMatrix

__all__ = ["gather", "gather_reference"]


def gather_reference(matrix: PackedMatrix, ids: np.ndarray) -> np.ndarray:
    """Specify `gather` in plain NumPy.

    Examples
    --------
    >>> from llmq_kernels.layout import PackedMatrix
    >>> scale = np.array([[1], [2], [3]], np.float32).view(np.uint16)
    >>> matrix = PackedMatrix(np.full((3, 4), 0x9A, np.uint8), scale, None, 4, 2, 2, 2)
    >>> gather_reference(matrix, np.array([2, 0, 2])).tolist()
    [[6.0, 3.0], [2.0, 1.0], [6.0, 3.0]]
    """
    rows: np.ndarray = dequantize_reference(matrix)[ids]
    return rows


@jit
def _gather(
    weight: tuple[np.ndarray, np.ndarray, np.ndarray],
    form: tuple[int, int, int],
    ids: np.ndarray,
    out: np.ndarray,
) -> None:
    """Widen rows `ids`, int64 (n,), to float32 (n, columns)."""
    columns = out.shape[1]
    codes = np.empty(columns, np.uint8)
    for i in range(ids.size):
        dequantize_columns(weight, form, (ids[i], 0, columns), codes, out, i)


def gather(matrix: PackedMatrix, ids: np.ndarray) -> np.ndarray:
    """Widen some rows of a packed matrix.

    Parameters
    ----------
    matrix : PackedMatrix
    ids : int (n,)
        Row numbers, in any order, repeated or not; the same rows as `dequantize(matrix)[ids]`.

    Returns
    -------
    float32 (n, columns)

    Raises
    ------
    TypeError
        Ids are not integers.
    ValueError
        Ids are not one-dimensional, or one is negative or too large.
    """
    ids = np.asarray(ids)
    if not np.issubdtype(ids.dtype, np.integer):
        raise TypeError(f"ids must be integers, not {ids.dtype}")
    if ids.ndim != 1:
        raise ValueError(f"ids must be one-dimensional, not of shape {ids.shape}")
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < matrix.rows:
        raise ValueError(f"ids must be 0 to {matrix.rows - 1}, found {int(ids.min())} to {int(ids.max())}")
    out = np.empty((ids.size, matrix.columns), np.float32)
    numbers = frozen(np.require(ids, np.int64, ["C_CONTIGUOUS", "ALIGNED"]))
    _gather(matrix.views, matrix.form, numbers, out)
    return out
